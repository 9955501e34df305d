"""Records kept beside the store, and rows that the disk gave back changed."""

import json
import os
import sqlite3
from base64 import b64decode
from dataclasses import replace
from pathlib import Path

import pytest

from cloud_bridge.transfer import read_lines
from gateway.config import Outbox as OutboxSettings
from gateway.errors import OutboxError
from gateway.outbox import aside
from gateway.outbox.aside import Aside, held_aside
from gateway.outbox.store import Outbox
from gateway.uplink.packing import unreadable
from gateway.values import Entry, Stored
from gateway.wire.messages import Notice, encode
from tests.simulators.samples import event

EPOCH = "0123456789abcdef"
ROW = Stored(7, "event", 1_700_000_000_000_000_000, encode(event()), b"\xff\xd8 a picture")


def test_what_is_too_large_is_a_line_that_the_bridge_imports(tmp_path: Path) -> None:
    kept = Aside(tmp_path / "outbox.db")
    kept.keep("bulk", EPOCH, ROW, "too-large", "dock")
    (file,) = kept.directory.iterdir()
    chunk = read_lines(file.read_bytes().splitlines(keepends=True), None)
    assert chunk.bad == ()
    (arrival,) = chunk.arrivals
    assert arrival.key == ("dock", EPOCH, "bulk")
    assert (arrival.rows[0].seq, arrival.rows[0].body, arrival.rows[0].blob) == (7, ROW.body, ROW.blob)


def test_what_is_damaged_is_kept_as_it_was_read(tmp_path: Path) -> None:
    kept = Aside(tmp_path / "outbox.db")
    kept.keep("event", EPOCH, Stored(7, "event", -1, b'{"half\xff'), "unreadable", "dock")
    (file,) = kept.directory.iterdir()
    assert b64decode(json.loads(file.read_bytes())["damaged_body"]) == b'{"half\xff'


def test_what_was_set_aside_for_its_size_is_known_after_a_restart(tmp_path: Path) -> None:
    kept = Aside(tmp_path / "outbox.db")
    kept.keep("bulk", EPOCH, ROW, "too-large", "dock")
    kept.keep("bulk", EPOCH, Stored(8, "event", 1, b"}"), "unreadable", "dock")
    again = Aside(tmp_path / "outbox.db")
    assert again.too_large("bulk", EPOCH) == {7}
    assert again.too_large("event", EPOCH) == again.too_large("bulk", EPOCH[::-1]) == frozenset()


def test_a_second_try_leaves_the_file_as_it_is(tmp_path: Path) -> None:
    kept = Aside(tmp_path / "outbox.db")
    kept.keep("bulk", EPOCH, ROW, "too-large", "dock")
    (file,) = kept.directory.iterdir()
    before = file.stat()
    kept.keep("bulk", EPOCH, ROW, "too-large", "dock")
    assert file.stat().st_mtime_ns == before.st_mtime_ns
    assert list(kept.directory.iterdir()) == [file]


def test_the_oldest_unreadable_go_first_and_critical_ones_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aside, "MAX_FILES", 3)
    kept = Aside(tmp_path / "outbox.db")
    for seq, name in enumerate(("critical", "bulk", "event", "bulk", "event"), start=1):
        kept.keep(name, EPOCH, Stored(seq, "event", 1, b"}"), "unreadable", "dock")  # type: ignore[arg-type]  # classes
        os.utime(max(kept.directory.iterdir(), key=lambda file: file.stat().st_ctime_ns), (seq, seq))
    left = sorted(file.name.split("-")[1:3] for file in kept.directory.iterdir())
    assert [name for name, _ in left] == ["bulk", "critical", "event"]
    assert {int(rest.split(".")[0]) for _, rest in left} == {1, 4, 5}


@pytest.mark.parametrize(("limit", "value"), [("MAX_FILES", 2), ("MAX_BYTES", 800)])
def test_without_room_nothing_that_is_only_too_large_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str, value: int
) -> None:
    monkeypatch.setattr(aside, limit, value)
    kept = Aside(tmp_path / "outbox.db")
    row = Stored(1, "event", 1, b'"%s"' % (b"x" * 200))
    for seq in (1, 2):
        kept.keep("critical", EPOCH, replace(row, seq=seq), "too-large", "dock")
    before = sorted(kept.directory.iterdir())
    for reason in ("too-large", "unreadable"):
        with pytest.raises(OutboxError, match=r"record 3 of class bulk stays in the outbox; take files away"):
            kept.keep("bulk", EPOCH, replace(row, seq=3), reason, "dock")
    assert sorted(kept.directory.iterdir()) == before
    assert kept.too_large("bulk", EPOCH) == frozenset()
    before[0].unlink()
    kept.keep("bulk", EPOCH, replace(row, seq=3), "too-large", "dock")
    assert kept.too_large("bulk", EPOCH) == {3}
    assert held_aside(tmp_path / "outbox.db")[0] == 2


def test_unreadable_ones_make_room_for_their_like_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aside, "MAX_FILES", 2)
    kept = Aside(tmp_path / "outbox.db")
    kept.keep("bulk", EPOCH, ROW, "too-large", "dock")
    kept.keep("bulk", EPOCH, Stored(8, "event", 1, b"}"), "unreadable", "dock")
    with pytest.raises(OutboxError, match="is full"):
        kept.keep("bulk", EPOCH, Stored(9, "event", 1, b"{}"), "too-large", "dock")
    kept.keep("bulk", EPOCH, Stored(10, "event", 1, b"}"), "unreadable", "dock")
    assert sorted(file.name.split("-")[2] for file in kept.directory.iterdir()) == [
        "000000000007.too",
        "000000000010.unreadable.ndjson",
    ]


def test_a_record_larger_than_all_may_be_the_only_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aside, "MAX_BYTES", 10)
    Aside(tmp_path / "outbox.db").keep("bulk", EPOCH, ROW, "too-large", "dock")
    assert held_aside(tmp_path / "outbox.db")[0] == 1


def test_what_cannot_be_written_is_an_error_with_the_place(tmp_path: Path) -> None:
    (tmp_path / "outbox.db.aside").write_text("a file in the way")
    with pytest.raises(OutboxError, match=r"record 7 of class bulk .* make room there"):
        Aside(tmp_path / "outbox.db").keep("bulk", EPOCH, ROW, "too-large", "dock")


def put_three(file: Path) -> None:
    """Store three notices, and close so that all is in the file itself."""
    outbox = Outbox.open(file, OutboxSettings(ballast_bytes=0))
    for n in range(1, 4):
        body = Notice(code=f"mark-{n}", severity="info", detail="all is well", at="2026-01-01T00:00:00.000Z")
        outbox.put([Entry("event", "notice", body, n)])
    outbox.close()


def flip(file: Path, pattern: bytes, offset: int, bit: int) -> None:
    """Flip one bit of the only place where a pattern stands."""
    content = bytearray(file.read_bytes())
    assert content.count(pattern) == 1
    content[content.index(pattern) + offset] ^= 1 << bit
    file.write_bytes(content)


@pytest.mark.parametrize(
    ("pattern", "offset", "bit"),
    [
        (b'{"code":"mark-2"', 0, 5),  # the bracket
        (b'{"code":"mark-2"', 7, 4),  # the colon
        (b'{"code":"mark-2"', 10, 7),  # no UTF-8 any more
        (b'notice{"code":"mark-2"', 0, 7),  # the kind is no UTF-8
    ],
)
def test_a_flipped_bit_in_a_row_leaves_the_store_usable_and_the_row_readable(
    tmp_path: Path, pattern: bytes, offset: int, bit: int
) -> None:
    file = tmp_path / "outbox.db"
    put_three(file)
    flip(file, pattern, offset, bit)
    with sqlite3.connect(file) as db:
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    outbox = Outbox.open(file, OutboxSettings(ballast_bytes=0))
    try:
        run = outbox.read("event", 0, 10, 100_000)
        assert run is not None
        assert [row.seq for row in run.rows] == [1, 2, 3]
        damaged = [row.seq for row in run.rows if unreadable(row)]
        assert damaged == ([] if pattern.startswith(b"notice") else [2])
    finally:
        outbox.close()
