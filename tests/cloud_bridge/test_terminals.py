"""What devices send is shown to people and split into lines by programs: it must do neither any harm."""

import json
import random
import unicodedata
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner

from cloud_bridge.cli import main
from cloud_bridge.commands import options
from cloud_bridge.ingest.decoding import intake_of
from cloud_bridge.ingest.incoming import Incoming
from cloud_bridge.store.base import RecordFilter
from cloud_bridge.store.sqlite import SqliteStore
from cloud_bridge.transfer import as_line, read_lines
from gateway.wire.messages import Availability, Notice, encode
from tests.simulators.samples import AT, batch, event, record

NASTY = "\x1b[2J\x9b31m\x9d0;title\x07\x85\u2028\u2029\u202e\x7f\r\n\ttail"
LISTS = [
    ("status",),
    ("records",),
    ("events",),
    ("gaps",),
    ("deadletters", "list"),
]


def nasty_bytes(seed: int) -> bytes:
    chance = random.Random(seed)
    text = "".join(chance.choice(NASTY + 'ab{}"\\') for _ in range(60)).encode()
    return text + bytes(chance.randrange(256) for _ in range(60))


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of what a device with bad intentions, or a broken one, might send."""
    path = tmp_path_factory.mktemp("store") / "bridge.db"
    store = SqliteStore(path)
    notice = Notice(
        code="store_quarantined", severity="error", detail=NASTY, at=AT, epoch="f" * 16, missing={"event": (1, 2)}
    )
    records = [
        record(1, event(label=NASTY)),
        record(2, encode(event(event_id=NASTY)), kind="event"),
        record(3, msgspec.json.encode({"what": NASTY}), kind=NASTY),
    ]
    messages = [
        Incoming("sluice/v1/dock/records/event", batch(*records), 1, 1, 1, 0),
        Incoming("sluice/v1/dock/records/critical", batch(record(1, notice)), 2, 1, 1, 0),
        Incoming(
            "sluice/v1/dock/availability/gateway",
            encode(Availability(state="online", at=AT, version=NASTY)),
            3,
            1,
            1,
            0,
        ),
        Incoming(f"sluice/v1/dock/records/{NASTY}", b"x", 4, 1, 1, 0),
        *(Incoming("sluice/v1/dock/records/event", nasty_bytes(seed), seed, 1, 1, 0) for seed in range(10, 60)),
    ]
    store.ingest(intake_of(messages, root="sluice", received_at_ns=1_800_000_000_000_000_000))
    store.close()
    return path


def printed(path: Path, *words: str) -> str:
    result = CliRunner().invoke(main, [*words, "--store", f"sqlite:///{path}"], color=True)
    assert result.exit_code == 0, result.output
    return result.stdout_bytes.decode()


def acting(text: str) -> set[str]:
    """Return the characters of a text that act on a terminal."""
    return {each for each in text if unicodedata.category(each) == "Cc" or "\u2028" <= each <= "\u202e"} - {"\n", "\t"}


@pytest.mark.parametrize("words", [*LISTS, ("records", "--limit", "0")])
def test_json_has_one_line_for_each_thing_whoever_splits_it(path: Path, words: tuple[str, ...]) -> None:
    shown = printed(path, *words, "--json")
    lines = shown.split("\n")[:-1]
    assert shown.splitlines() == lines
    assert all(isinstance(json.loads(line), dict) for line in lines)
    assert not acting(shown)


@pytest.mark.parametrize("words", LISTS)
def test_lines_for_people_show_control_characters_and_obey_none(path: Path, words: tuple[str, ...]) -> None:
    shown = printed(path, *words)
    assert not acting(shown)
    assert shown.splitlines() == shown.split("\n")[:-1]
    if words in (("events",), ("records",), ("gaps",)):
        assert "\\x9b" in shown


def test_each_dead_letter_is_one_line(path: Path) -> None:
    letters = len(printed(path, "deadletters", "list", "--limit", "500", "--json").splitlines())
    assert letters > 45
    assert len(printed(path, "deadletters", "list", "--limit", "500").splitlines()) == letters


def test_an_export_has_one_line_for_each_record_and_is_imported_byte_for_byte(path: Path) -> None:
    shown = printed(path, "export")
    assert not acting(shown)
    assert len(shown.splitlines()) == 6  # the records and the seal around them
    store = SqliteStore(path)
    records = store.records(RecordFilter(), with_blobs=True)
    store.close()
    chunk = read_lines([as_line(one) for one in records], None)
    assert not chunk.bad
    bodies = {row.body for arrival in chunk.arrivals for row in arrival.rows}
    assert bodies == {one.body for one in records}


def test_control_without_the_escapes_lines_break_and_terminals_obey(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("plain", "plain_lines", "plain_json"):
        monkeypatch.setattr(options, name, lambda content: content)
    shown = printed(path, "deadletters", "list", "--json")
    assert acting(shown)
    assert shown.splitlines() != shown.split("\n")[:-1]
    assert acting(printed(path, "events"))
