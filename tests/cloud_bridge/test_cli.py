"""The commands on a store, with no bridge running; test_app.py has them beside a running one."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from cloud_bridge.cli import main
from cloud_bridge.commands.reach import not_allowed
from cloud_bridge.ingest.decoding import intake_of
from cloud_bridge.ingest.incoming import Incoming
from cloud_bridge.store.sqlite import SqliteStore
from cloud_bridge.values import REASONS
from gateway.wire.messages import Availability, encode
from tests.simulators.samples import AT, batch, event, eviction, measure, record


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A store with something of everything."""
    path = tmp_path / "bridge.db"
    store = SqliteStore(path)
    records = [record(5, event()), record(6, measure()), record(7, b"{}", kind="event")]
    messages = [
        Incoming("sluice/v1/dock/records/event", batch(*records, base=5), 1, 1, 1, 0),
        Incoming("sluice/v1/dock/records/critical", batch(record(1, eviction("event", 1, 2))), 2, 1, 1, 0),
        Incoming("sluice/v1/dock/records/event", b"junk", 3, 1, 1, 0),
        Incoming("sluice/v1/dock/availability/gateway", encode(Availability(state="online", at=AT)), 4, 1, 1, 0),
    ]
    store.ingest(intake_of(messages, root="sluice", received_at_ns=1_800_000_000_000_000_000))
    store.close()
    return path


def call(path: Path, *arguments: str) -> Result:
    *command, last = arguments if len(arguments) > 1 else (arguments[0], "")
    return CliRunner().invoke(main, [*command, *([last] if last else []), "--store", f"sqlite:///{path}"])


def lines(result: Result) -> list[dict[str, Any]]:
    assert result.exit_code == 0, result.output
    return [json.loads(line) for line in result.stdout.split("\n") if line]


def test_status_is_one_line_of_json(path: Path) -> None:
    (status,) = lines(call(path, "status", "--json"))
    assert (status["records"], status["events"], status["gaps"]) == (4, 1, 4)
    assert status["dead_letters"] == {"bad-body": 1, "bad-payload": 1}
    assert [(s["class"], s["mark"]) for s in status["streams"]] == [("critical", 1), ("event", 7)]
    assert status["gateways"][0]["state"] == "online"


def test_status_for_people_names_what_matters(path: Path) -> None:
    result = call(path, "status")
    assert "4 records, 1 event in" in result.stdout
    assert "gateway dock: online" in result.stdout
    assert "complete to 7" in result.stdout


def test_records_are_filtered_and_in_the_order_of_receipt(path: Path) -> None:
    assert [r["seq"] for r in lines(call(path, "records", "--json"))] == [5, 6, 7, 1]
    assert [r["seq"] for r in lines(call(path, "records", "--kind", "measure", "--json"))] == [6]
    assert [r["seq"] for r in lines(call(path, "records", "--class", "critical", "--json"))] == [1]
    assert lines(call(path, "records", "--since", "1h", "--gateway", "gate", "--json")) == []
    assert "dock/event#6 measure camera" in call(path, "records", "--pipeline", "camera").stdout


def test_events_and_gaps_are_shown(path: Path) -> None:
    (shown,) = lines(call(path, "events", "--json"))
    assert (shown["event_id"], shown["type"]) == ("e1", "new")
    assert "camera new" in call(path, "events").stdout
    assert {(g["first"], g["last"], g["source"]) for g in lines(call(path, "gaps", "--json"))} == {
        (1, 2, "eviction"),
        (3, 4, "base"),
    }
    assert "evicted (bytes)" in call(path, "gaps").stdout


def test_dead_letters_are_listed_shown_replayed_and_discarded(path: Path) -> None:
    listed = lines(call(path, "deadletters", "list", "--json"))
    junk = next(one["id"] for one in listed if one["reason"] == "bad-payload")
    assert json.loads(call(path, "deadletters", "show", str(junk)).stdout)["payload"] == "junk"
    assert CliRunner().invoke(
        main, ["deadletters", "show", str(junk), "--raw", "--store", f"sqlite:///{path}"]
    ).stdout == ("junk")
    assert call(path, "deadletters", "show", "99").exit_code == 1
    replayed = call(path, "deadletters", "replay", "--all", "--json")
    assert replayed.exit_code == 3
    assert [json.loads(line)["settled"] for line in replayed.stdout.splitlines()] == [False, False]
    spared = call(path, "deadletters", "discard", "--all")
    assert spared.exit_code == 0
    assert "1 stay: the only copy of records of gateways" in spared.stderr
    (letter,) = lines(call(path, "deadletters", "list", "--json"))
    assert (letter["reason"], letter["only_copy"]) == ("bad-payload", True)
    assert call(path, "deadletters", "discard", "--all", "--only-copies").exit_code == 0
    assert lines(call(path, "deadletters", "list", "--json")) == []


def test_an_export_is_imported_elsewhere_without_loss(path: Path, tmp_path: Path) -> None:
    file, other = tmp_path / "out.ndjson", tmp_path / "other.db"
    (said,) = lines(call(path, "export", "--output", str(file), "--json"))
    assert said["records"] == 4
    again = call(path, "export").stdout.encode()
    assert again.splitlines()[1:-1] == file.read_bytes().splitlines()[1:-1]
    (said,) = lines(call(other, "import", str(file), "--json"))
    assert (said["imported"], said["known"], said["bad"]) == (4, 0, 0)
    (said,) = lines(call(other, "import", str(file), "--json"))
    assert (said["imported"], said["known"], said["bad"]) == (0, 4, 0)
    file.write_bytes(file.read_bytes() + b"rubbish\n")
    result = call(other, "import", str(file))
    assert result.exit_code == 3
    assert "line 7: " in result.stderr


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "empty, as of a medium that was pulled out too early"),
        (b"\0" * 4096, "zeros at its beginning"),
        (b"\x1f\x8b\x08\0", "packed with gzip: unpack it first"),
        (b"\xef\xbb\xbf{}", "byte-order mark"),
        ('{"a": 1}'.encode("utf-16"), "UTF-16"),
        (b"SQLite format 3\0", "gateway outbox export --file"),
    ],
)
def test_a_file_that_is_none_of_records_is_refused_with_what_it_is(
    path: Path, tmp_path: Path, content: bytes, words: str
) -> None:
    file = tmp_path / "brought.ndjson"
    file.write_bytes(content)
    result = call(path, "import", str(file))
    assert result.exit_code == 1
    assert words in result.stderr
    assert "Nothing was imported" in result.stderr


@pytest.mark.parametrize("name", ["out.ndjson", "out.parquet"])
def test_an_export_that_does_not_come_about_leaves_the_one_before_as_it_was(
    path: Path, tmp_path: Path, name: str
) -> None:
    file = tmp_path / name
    assert call(path, "export", "--output", str(file)).exit_code == 0
    before = file.read_bytes()
    broken = tmp_path / "broken.db"
    broken.write_bytes(path.read_bytes()[:5000])
    assert call(broken, "export", "--output", str(file)).exit_code != 0
    assert file.read_bytes() == before
    assert [each.name for each in tmp_path.iterdir() if each.name.endswith(".part")] == []


@pytest.mark.parametrize("options", [["--format", "ndjson"], ["--format", "parquet"], ["--rollups"]])
def test_an_export_never_takes_the_place_of_a_store(path: Path, options: list[str]) -> None:
    before = path.read_bytes()
    result = call(path, "export", *options, "--output", str(path))
    assert result.exit_code == 1
    assert "is a database, which an export would replace" in result.stderr
    assert path.read_bytes() == before


@pytest.mark.parametrize("keep", [slice(0, 3), slice(0, -1), slice(2, None)])
def test_an_export_that_was_cut_is_refused_whole_unless_a_part_is_wished(
    path: Path, tmp_path: Path, keep: slice
) -> None:
    file, other = tmp_path / "out.ndjson", tmp_path / "other.db"
    call(path, "export", "--output", str(file))
    whole = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(b"".join(whole[keep]))
    refused = call(other, "import", str(file))
    assert refused.exit_code == 1, "it failed; 2 is wrong usage, 3 that something else of it was done"
    assert "Nothing was imported" in refused.stderr
    assert not other.exists()
    result = call(other, "import", str(file), "--allow-partial", "--json")
    assert result.exit_code == 0
    (said,) = lines(result)
    assert said["imported"] == sum(b'"epoch"' in line for line in whole[keep])
    assert not said["whole"]
    file.write_bytes(b"".join(whole))
    (said,) = lines(call(other, "import", str(file), "--json"))
    assert (said["imported"] + said["known"], said["whole"]) == (4, True)


def test_lines_without_a_seal_come_in_and_it_is_said_that_more_may_be_missing(path: Path, tmp_path: Path) -> None:
    file, other = tmp_path / "out.ndjson", tmp_path / "other.db"
    call(path, "export", "--output", str(file))
    file.write_bytes(b"".join(file.read_bytes().splitlines(keepends=True)[1:3]))
    result = call(other, "import", str(file))
    assert result.exit_code == 0
    assert "without an end mark, whether more is missing cannot be told: 2 records" in result.stderr


def test_parquet_needs_a_file(path: Path, tmp_path: Path) -> None:
    assert call(path, "export", "--format", "parquet").exit_code == 2
    file = tmp_path / "x.parquet"
    assert (
        CliRunner()
        .invoke(main, ["export", "--format=parquet", f"--output={file}", f"--store=sqlite:///{path}"])
        .exit_code
        == 0
    )
    assert file.read_bytes()[:4] == b"PAR1"


def test_a_store_that_is_not_there_is_a_mistake_with_a_hint(tmp_path: Path) -> None:
    result = call(tmp_path / "none.db", "status")
    assert result.exit_code == 2
    assert "has the bridge run yet" in result.stderr


def test_a_mistake_of_the_command_line_ends_with_status_two(path: Path) -> None:
    assert call(path, "records", "--since", "yesterday").exit_code == 2
    assert CliRunner().invoke(main, ["run", "--broker", "mqtt://broker.example"]).exit_code == 2
    assert CliRunner().invoke(main, ["run", "--store", f"sqlite:///{path}"]).exit_code == 2
    assert CliRunner().invoke(main, ["status", "--store", "mysql://x"]).exit_code == 2


def test_a_configuration_is_validated_and_its_schema_printed(tmp_path: Path) -> None:
    file = tmp_path / "bridge.yaml"
    file.write_text("brokers: [{url: 'mqtt://localhost'}]\n")
    assert CliRunner().invoke(main, ["config", "validate", str(file)]).exit_code == 0
    assert json.loads(CliRunner().invoke(main, ["config", "validate", str(file), "--json"]).stdout)["valid"]
    file.write_text("broker: []\n")
    result = CliRunner().invoke(main, ["config", "validate", str(file), "--json"])
    assert result.exit_code == 2
    assert json.loads(result.stdout)["problems"][0]["line"] == 1
    assert json.loads(CliRunner().invoke(main, ["config", "schema"]).stdout)["title"]


def test_the_name_of_a_file_decides_its_format(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    named = {"x.parquet": b"PAR1", "X.PARQUET": b"PAR1", "x.ndjson": b"{", "x": b"{"}
    for name, begins in named.items():
        assert call(path, "export", "--output", name).exit_code == 0
        assert (tmp_path / name).read_bytes().startswith(begins), name
    for options in (["--output", "x.csv"], ["--format", "ndjson", "--output", "y.parquet"], ["--rollups", "day",
                    "--output", "y.ndjson"]):  # fmt: skip
        refused = call(path, "export", *options)
        assert refused.exit_code == 2, options
    assert not (tmp_path / "y.parquet").exists()


def test_a_dash_is_standard_output(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    written = call(path, "export", "--output", "-")
    assert written.exit_code == 0
    assert len(written.stdout.splitlines()) == 6  # the records and the seal around them
    assert not (tmp_path / "-").exists()
    assert call(path, "export", "--format", "parquet", "--output", "-").exit_code == 2


def test_reasons_that_are_none_are_refused_and_every_one_is_known(path: Path) -> None:
    for command in (["list"], ["replay", "--all"], ["discard", "--all"]):
        refused = call(path, "deadletters", *command, "--reason", "nix")
        assert refused.exit_code == 2
        assert "bad-payload" in refused.stderr
    assert {one["reason"] for one in lines(call(path, "deadletters", "list", "--json"))} <= set(REASONS)
    assert lines(call(path, "deadletters", "list", "--reason", "bad-body", "--json"))


def _shell(path: Path, words: str) -> "subprocess.CompletedProcess[str]":
    command = ["bash", "-c", f'exec "$0" -m cloud_bridge {words}', sys.executable]
    environment = {**os.environ, "STORE": f"sqlite:///{path}"}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        ("records --store $STORE >/dev/full", 1, "standard output: No space left"),
        ("export --store $STORE >/dev/full", 1, "standard output: No space left"),
        ("--help >/dev/full", 1, "standard output: No space left"),
        ("records --store $STORE >&-", 1, "standard output is closed"),
        ("records --store $STORE --gateway $'\\xff'", 2, r"'\udcff' is no text in UTF-8"),
    ],
)
def test_a_shells_mistakes_end_in_one_line(path: Path, words: str, status: int, said: str) -> None:
    run = _shell(path, words)
    assert run.returncode == status, run.stderr
    assert said in run.stderr
    assert len(run.stderr.splitlines()) == 1


def test_the_control_a_sound_standard_output_takes_everything(path: Path) -> None:
    run = _shell(path, "records --store $STORE")
    assert (run.returncode, run.stderr) == (0, "")
    assert run.stdout


@pytest.mark.skipif(os.geteuid() == 0 and shutil.which("setpriv") is None, reason="root may read everything")
@pytest.mark.parametrize(
    ("command", "shut"),
    [
        (["model", "list"], "identity"),
        (["registry", "status"], "identity"),
        (["rollout", "list"], "data"),
        (["training", "samples", "m"], "data"),
        (["status"], "data"),
    ],
    ids=lambda one: " ".join(one) if isinstance(one, list) else one,
)
def test_what_the_caller_may_not_reach_is_one_line_with_the_remedy(
    tmp_path: Path, command: list[str], shut: str
) -> None:
    """As for an administrator who calls a command while the directory is the bridge's own."""
    for each in ("data", "identity"):
        (tmp_path / each).mkdir()
    settings = {
        "store": {"url": f"sqlite:///{tmp_path}/data/bridge.db"},
        "identity": {"trust_domain": "example.org", "directory": f"{tmp_path}/identity"},
        "registry": {"url": f"{tmp_path}/registry", "keys": f"{tmp_path}/keys"},
    }
    (tmp_path / "bridge.yaml").write_text(json.dumps(settings))
    plain_user = [
        "setpriv",
        "--bounding-set=-dac_override,-dac_read_search",
        "--inh-caps=-dac_override,-dac_read_search",
    ]
    line = [sys.executable, "-m", "cloud_bridge", *command, "--config", str(tmp_path / "bridge.yaml")]
    (tmp_path / shut).chmod(0)
    try:
        done = subprocess.run(
            [*(plain_user if os.geteuid() == 0 else []), *line],
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
    finally:
        (tmp_path / shut).chmod(0o700)
    assert (done.returncode, done.stdout) == (1, "")
    (told,) = done.stderr.splitlines()
    assert told.startswith(f"error: {tmp_path}/{shut}/")
    assert "Permission denied" in told
    assert "ls -ld" in told


@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("setpriv") is None, reason="only root can be somebody else")
def test_of_whom_the_fleets_file_is_that_cannot_be_opened_is_told() -> None:
    with tempfile.TemporaryDirectory() as made:  # others may reach it, unlike those of pytest
        folder = Path(made)
        folder.chmod(0o755)
        store = SqliteStore(folder / "bridge.db")
        junk = Incoming("sluice/v1/dock/records/event", b"junk", 1, 1, 1, 0)
        store.ingest(intake_of([junk], root="sluice", received_at_ns=1))
        store.close()
        (folder / "bridge.yaml").write_text(
            f"store: {{url: 'sqlite:///{folder}/bridge.db'}}\nrollout: {{enabled: true}}\n"
        )
        line = ["-m", "cloud_bridge", "rollout", "list", "--config", str(folder / "bridge.yaml")]
        done = subprocess.run([sys.executable, *line], capture_output=True, text=True, check=False, timeout=60)
        assert done.returncode == 0, done.stderr
        (folder / "fleet.db").chmod(0o600)
        without = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", sys.executable]
        done = subprocess.run([*without, *line], capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stdout) == (1, "")
    assert f"fleet.db: Permission denied, for nobody; {folder}/fleet.db belongs to root: call it as" in done.stderr


def test_of_whom_the_place_is_that_cannot_be_reached_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    error = PermissionError(13, "Permission denied", str(tmp_path / "bridge.db"))
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    told = not_allowed(error)
    assert told is not None
    assert f"for #12345; {tmp_path} belongs to" in str(told)
    assert "call it as that user" in str(told)
    assert not_allowed(FileNotFoundError(2, "gone", "x")) is None
    assert not_allowed(PermissionError(1, "of no file")) is None
