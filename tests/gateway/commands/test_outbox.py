"""`gateway outbox`, beside a store that is open and one that is closed."""

import errno
import json
import os
from datetime import UTC
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from gateway.cli import main
from gateway.commands import outbox as outbox_command
from gateway.config import Budget, FeatureMetering, Metering
from gateway.config import Outbox as OutboxSettings
from gateway.metering.ledger import Ledger
from gateway.metering.meter import Meter
from gateway.outbox.export import Exported
from gateway.outbox.store import Outbox
from gateway.values import Entry
from gateway.wire.messages import Notice, RecordClass


def notice(record_class: RecordClass, code: str, blob: bytes = b"") -> Entry:
    return Entry(record_class, "notice", Notice(code=code, severity="info", detail="", at=""), 1, blob)


@pytest.fixture
def config_file(tmp_path: Path) -> Path:
    file = tmp_path / "gateway.yaml"
    file.write_text("gateway: {id: dock-7, state_directory: .}\nvault: {level: software}\nsources: {}\npipelines: {}\n")
    store = Outbox.open(tmp_path / "outbox.db", OutboxSettings(ballast_bytes=0))
    store.put([notice("critical", "a"), notice("bulk", "b", b"jpeg"), notice("bulk", "c")])
    store.close()
    return file


def test_the_status_tells_depth_by_class(config_file: Path) -> None:
    run = CliRunner().invoke(main, ["outbox", "status", "--config", str(config_file)])
    assert run.exit_code == 0, run.output
    rows = {line.split()[0]: line.split()[1] for line in run.output.splitlines()[2:6]}
    assert rows == {"critical": "1", "event": "0", "measure": "0", "bulk": "2"}


def test_the_status_is_json_for_programs(config_file: Path) -> None:
    run = CliRunner().invoke(main, ["outbox", "status", "--config", str(config_file), "--json"])
    report = json.loads(run.output)
    assert report["classes"]["bulk"]["rows"] == 2
    assert report["classes"]["bulk"]["max_rows"] == 100_000
    assert len(report["epoch"]) == 16


@pytest.mark.parametrize("option", [["--out"], []])
def test_records_are_exported_with_their_whole_key(config_file: Path, tmp_path: Path, option: list[str]) -> None:
    out = tmp_path / "stick" / "records.ndjson"
    out.parent.mkdir()
    run = CliRunner().invoke(main, ["outbox", "export", "--config", str(config_file), *option, str(out)])
    assert run.exit_code == 0, run.output
    _, *records, _ = [json.loads(line) for line in out.read_text().splitlines()]
    assert [(r["gateway"], r["class"], r["seq"]) for r in records] == [
        ("dock-7", "critical", 1),
        ("dock-7", "bulk", 1),
        ("dock-7", "bulk", 2),
    ]
    assert [file.name for file in out.parent.iterdir()] == ["records.ndjson"]
    # They stay until the cloud has them.
    again = CliRunner().invoke(main, ["outbox", "status", "--config", str(config_file), "--json"])
    assert json.loads(again.output)["classes"]["bulk"]["rows"] == 2


def test_one_class_can_be_chosen(config_file: Path) -> None:
    run = CliRunner().invoke(main, ["outbox", "export", "--config", str(config_file), "--class", "critical"])
    assert run.stdout.count('"class":"critical"') == 1
    assert run.stdout.count("\n") == 3


def test_a_file_alone_needs_the_id_of_its_gateway(config_file: Path) -> None:
    file = str(config_file.parent / "outbox.db")
    assert CliRunner().invoke(main, ["outbox", "export", "--file", file]).exit_code == 2
    run = CliRunner().invoke(main, ["outbox", "export", "--file", file, "--gateway", "other-1"])
    assert json.loads(run.stdout.splitlines()[1])["gateway"] == "other-1"


def test_a_store_that_is_open_can_be_looked_into(config_file: Path) -> None:
    file = config_file.parent / "outbox.db"
    store = Outbox.open(file, OutboxSettings(ballast_bytes=0))
    try:
        store.put([notice("event", "d")])
        run = CliRunner().invoke(main, ["outbox", "status", "--file", str(file), "--json"])
        assert json.loads(run.output)["classes"]["event"]["rows"] == 1
    finally:
        store.close()


def test_a_full_stick_is_told(config_file: Path) -> None:
    run = CliRunner().invoke(main, ["outbox", "export", "--config", str(config_file), "--out", "/proc/records.ndjson"])
    assert run.exit_code == 1
    assert "/proc/records.ndjson" in run.output


@pytest.mark.parametrize("name", ["records.ndjson", "records.parquet"])
def test_an_export_that_finds_no_room_leaves_nothing_of_it_behind(
    config_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    made: list[bool] = []

    def full(*_: object, **__: object) -> Exported:
        made.append((tmp_path / f"{name}.part").exists())
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(outbox_command, "export_to", full)
    run = CliRunner().invoke(main, ["outbox", "export", "--config", str(config_file), str(tmp_path / name)])
    assert (run.exit_code, "make room there" in run.output) == (1, True)
    assert made == [True]  # else there would have been nothing to leave
    assert not list(tmp_path.glob("records.*"))


def test_a_ballast_that_is_wished_and_missing_is_told(config_file: Path) -> None:
    words = ["outbox", "status", "--config", str(config_file)]
    assert "ballast: missing" in CliRunner().invoke(main, words).output
    (config_file.parent / "outbox.db.ballast").touch()
    assert "ballast: missing" not in CliRunner().invoke(main, words).output


def test_a_target_named_parquet_becomes_parquet(config_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "records.parquet"
    run = CliRunner().invoke(main, ["outbox", "export", "--config", str(config_file), str(out)])
    assert run.exit_code == 0, run.output
    assert pq.read_table(out).num_rows == 3
    assert not out.with_name(out.name + ".part").exists()


@pytest.mark.parametrize(
    ("since", "count"), [("2d", 0), ("90min", 0), ("1970-01-01", 3), ("1970-01-01T00:00:00.001+00:00", 0)]
)
def test_since_is_a_stretch_or_a_time(config_file: Path, since: str, count: int) -> None:
    run = CliRunner().invoke(main, ["outbox", "export", "--config", str(config_file), "--since", since])
    assert run.exit_code == 0, run.output
    assert f"{count} records" in run.stderr


@pytest.mark.parametrize("since", ["yesterday", "2w", ""])
def test_a_since_that_is_neither_is_wrong_usage(config_file: Path, since: str) -> None:
    run = CliRunner().invoke(main, ["outbox", "export", "--config", str(config_file), "--since", since])
    assert run.exit_code == 2
    assert "90min" in run.stderr


def test_a_target_and_out_together_are_wrong_usage(config_file: Path) -> None:
    arguments = ["outbox", "export", "--config", str(config_file), "--out", "a", "b"]
    assert CliRunner().invoke(main, arguments).exit_code == 2


def test_of_a_gateway_that_is_off_the_rates_are_not_made_up(config_file: Path) -> None:
    run = CliRunner().invoke(main, ["outbox", "status", "--config", str(config_file), "--json"])
    report = json.loads(run.output)
    assert report["running"] is False
    assert report["classes"]["bulk"]["incoming"] is None
    assert report["classes"]["bulk"]["full_in_seconds"] is None


def test_of_a_gateway_that_is_off_the_budgets_are_told_from_its_file(config_file: Path) -> None:
    with config_file.open("a") as file:
        file.write(
            "cloud: {brokers: [{url: mqtt://127.0.0.1:1}]}\n"
            "metering: {features: {snapshots: {budget: {bytes: 1kB, per: month}}}}\n"
        )
    settings = Metering(features={"snapshots": FeatureMetering(budget=Budget(bytes=1000, per="month"))})
    meter = Meter(settings, UTC, Ledger(config_file.parent / "link-usage.json"))
    assert meter.allow("snapshots", 1000)
    meter.spent("snapshots", "out", 1000)
    meter.close()
    run = CliRunner().invoke(main, ["outbox", "status", "--config", str(config_file)])
    assert run.exit_code == 0, run.output
    assert "budget used up until" in run.output
    assert "2 records wait (bulk); critical, event, measure flow" in run.output
    report = json.loads(CliRunner().invoke(main, ["outbox", "status", "--config", str(config_file), "--json"]).output)
    assert report["link_usage"]["features"]["snapshots"]["left_bytes"] == 0
    assert report["link_usage"]["held"]["bulk"]["reason"] == "budget"


def test_a_dash_is_standard_output(config_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run = CliRunner().invoke(main, ["outbox", "export", "--config", str(config_file), "-"])
    assert run.exit_code == 0
    assert run.stdout.startswith("{")
    assert not (tmp_path / "-").exists()


def test_an_export_never_takes_the_place_of_an_outbox(config_file: Path) -> None:
    store = config_file.with_name("outbox.db")
    before = store.read_bytes()
    run = CliRunner().invoke(main, ["outbox", "export", "--config", str(config_file), str(store)])
    assert run.exit_code == 1
    assert "is a database, which an export would replace" in run.output
    assert store.read_bytes() == before
