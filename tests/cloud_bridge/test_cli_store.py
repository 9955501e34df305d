"""`rollups`, `store check`, `backup`, `restore`, and pages of every list, on the command line."""

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result

from cloud_bridge.cli import main
from cloud_bridge.ingest.decoding import intake_of
from cloud_bridge.ingest.incoming import Incoming
from cloud_bridge.store.sqlite import SqliteStore
from cloud_bridge.values import Intake
from tests.simulators.samples import batch, event, eviction, measure, record

COUNT = 12


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "bridge.db"
    store = SqliteStore(path)
    for number in range(1, COUNT + 1):
        gone = eviction("bulk", number * 10, number * 10)
        payloads = {
            "event": batch(record(number * 2 - 1, event(f"e{number}")), record(number * 2, measure())),
            "critical": batch(record(number, gone)),
        }
        messages = [Incoming(f"sluice/v1/dock/records/{name}", body, 1, 1, 1, 0) for name, body in payloads.items()]
        messages.append(Incoming(f"sluice/v1/dock/records/event-{number}", b"junk", 1, 1, 1, 0))
        store.ingest(intake_of(messages, root="sluice", received_at_ns=1_800_000_000_000_000_000 + number))
    while store.roll_up(100).records:
        pass
    store.close()
    return path


def call(path: Path, *arguments: str) -> Result:
    return CliRunner().invoke(main, [*arguments, "--store", f"sqlite:///{path}"])


def lines(result: Result) -> list[dict[str, Any]]:
    assert result.exit_code == 0, result.output
    return [json.loads(line) for line in result.stdout.split("\n") if line]


@pytest.mark.parametrize(
    ("command", "key", "count"),
    [
        (("records", "--class", "event"), "seq", COUNT * 2),
        (("events",), "event_id", COUNT),
        (("gaps",), "first", COUNT),
        (("deadletters", "list", "--reason", "unknown-class"), "id", COUNT),
    ],
)
def test_pages_of_each_list_meet(path: Path, command: tuple[str, ...], key: str, count: int) -> None:
    seen: list[object] = []
    more: list[str] = []
    for _ in range(20):
        result = call(path, *command, "--limit", "5", "--json", *more)
        seen += [one[key] for one in lines(result)]
        if "there is more: " not in result.stderr:
            break
        more = result.stderr.split("there is more: ")[1].split()
    assert len(seen) == len(set(seen)) == count


def test_a_cursor_that_is_none_is_wrong_usage(path: Path) -> None:
    assert call(path, "gaps", "--before", "xyz").exit_code == 2
    assert call(path, "events", "--before", "xyz").exit_code == 2


def test_times_choose_from_each_list(path: Path) -> None:
    for command in (("records",), ("events",), ("gaps",), ("deadletters", "list")):
        assert lines(call(path, *command, "--until", "2020-01-01T00:00:00Z", "--json")) == []
        assert lines(call(path, *command, "--since", "2027-01-01T00:00:00Z", "--json")) != []
        assert lines(call(path, *command, "--since", "2028-01-01T00:00:00Z", "--json")) == []


def test_rollups_are_shown_for_people_and_programs(path: Path) -> None:
    shown = lines(call(path, "rollups", "--by", "day", "--label", "person", "--gateway", "dock", "--json"))
    assert sum(one["events"] for one in shown) == COUNT
    assert shown[-1]["score"] == {"count": COUNT, "min": 0.9, "mean": pytest.approx(0.9), "max": 0.9}
    assert f"dock/camera person: {COUNT} events" in call(path, "rollups").stdout
    limited = call(path, "rollups", "--limit", "1")
    assert "there is more: --before" in limited.stderr


def test_rollups_are_exported_as_parquet(path: Path, tmp_path: Path) -> None:
    file = tmp_path / "sums.parquet"
    (said,) = lines(call(path, "export", "--rollups", "day", "--output", str(file), "--json"))
    table = pq.read_table(file)
    assert said["rollups"] == table.num_rows == 3
    assert sum(table.column("events").to_pylist()) == COUNT
    assert str(table.schema.field("start").type) == "timestamp[ms, tz=UTC]"
    assert call(path, "export", "--rollups", "hour").exit_code == 2
    assert call(path, "export", "--rollups", "hour", "--output", str(file), "--kind", "event").exit_code == 2


def test_status_tells_rates_and_ages(path: Path) -> None:
    (status,) = lines(call(path, "status", "--json"))
    assert set(status["records_per_second"]) == {"10s", "60s", "600s"}
    assert status["rollup_backlog"] == 0
    marked = {stream["class"]: stream["marked_at"] for stream in status["streams"]}
    assert marked["event"].startswith("2027-01-15")
    assert marked["bulk"] is None, "its first number is missing"
    text = call(path, "status").stdout
    assert "taken in " in text
    assert "dead letters, unknown-class: 12" in text


def test_a_sound_store_passes_the_check_and_a_broken_one_does_not(path: Path) -> None:
    (sound,) = lines(call(path, "store", "check", "--json"))
    assert (sound["sound"], sound["violations"]) == (True, [])
    store = SqliteStore(path)
    store._write(lambda tx: tx.change("DELETE FROM stream_records WHERE seq = 3"))
    store.close()
    result = call(path, "store", "check")
    assert result.exit_code == 3
    assert "rows-and-counters: dock/event" in result.stdout


def test_a_backup_is_made_and_put_back(path: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy.db"
    (said,) = lines(call(path, "backup", str(copy), "--json"))
    assert said["bytes"] == copy.stat().st_size
    assert call(path, "backup", str(copy)).exit_code == 1
    store = SqliteStore(path)
    store.ingest(Intake(1))
    assert call(path, "restore", str(copy)).exit_code == 1
    store.close()
    (said,) = lines(call(path, "restore", str(copy), "--json"))
    assert Path(said["aside"]).exists()
    assert call(path, "store", "check").exit_code == 0


def test_the_tools_of_postgresql_are_named_for_its_backups(tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["backup", str(tmp_path / "x"), "--store", "postgresql://db/sluice"])
    assert result.exit_code == 2
    assert "pg_dump" in result.stderr
