"""Copies are whole whoever writes meanwhile, and put back they go on with the devices."""

import sqlite3
import threading
from contextlib import closing
from pathlib import Path

import pytest

from cloud_bridge.errors import StoreError, StoreInUseError, TransferError
from cloud_bridge.store.backup import back_up, restore
from cloud_bridge.store.base import RecordFilter
from cloud_bridge.store.sqlite import SqliteStore
from tests.cloud_bridge.store.test_contract import KEY, take
from tests.simulators.samples import batch, event, record


def fill(store: SqliteStore, first: int, last: int) -> None:
    take(store, batch(*(record(n, event(f"e{n}")) for n in range(first, last + 1))))


def test_a_copy_made_while_the_store_is_written_is_sound(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "bridge.db")
    fill(store, 1, 500)
    stopping = threading.Event()

    def write() -> None:
        first = 501
        while not stopping.is_set():
            fill(store, first, first + 19)
            first += 20

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for turn in range(5):
            assert back_up(store.path, tmp_path / f"copy-{turn}.db") > 0
    finally:
        stopping.set()
        writer.join()
    store.close()
    marks = []
    for turn in range(5):
        copy = SqliteStore(tmp_path / f"copy-{turn}.db")
        assert copy.check() == []
        marks.append(copy.streams()[0].mark)
        copy.close()
    assert marks == sorted(marks)
    assert marks[0] >= 500
    assert not list(tmp_path.glob("*.part*"))


def test_the_control_a_file_copied_while_it_is_written_lacks_what_is_in_the_log(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "bridge.db")
    fill(store, 1, 50)
    (tmp_path / "naive.db").write_bytes(store.path.read_bytes())
    back_up(store.path, tmp_path / "copy.db")
    store.close()
    with closing(sqlite3.connect(tmp_path / "naive.db")) as naive, pytest.raises(sqlite3.OperationalError):
        naive.execute("SELECT count(*) FROM stream_records")
    with closing(sqlite3.connect(tmp_path / "copy.db")) as copy:
        assert copy.execute("SELECT count(*) FROM stream_records").fetchone() == (50,)


def test_a_store_put_back_goes_on_and_says_what_is_missing(tmp_path: Path) -> None:
    path = tmp_path / "bridge.db"
    store = SqliteStore(path)
    fill(store, 1, 100)
    back_up(path, tmp_path / "copy.db")
    fill(store, 101, 150)  # acknowledged, so that the device has let go of it
    with pytest.raises(StoreInUseError, match="stop it first"):
        restore(tmp_path / "copy.db", path)
    store.close()
    aside = restore(tmp_path / "copy.db", path, wall_ns=lambda: 42)
    assert aside == tmp_path / "bridge.db.before-restore-42"
    again = SqliteStore(path)
    assert again.streams()[0].mark == 100
    outcome = take(again, batch(*(record(n, event(f"e{n}")) for n in range(151, 161)), base=151))
    assert outcome.marks == {KEY: 160}, "nobody waits for ever"
    (gap,) = again.gaps()
    assert (gap.first, gap.last, gap.source) == (101, 150, "base")
    assert again.check() == []
    again.close()
    kept = SqliteStore(aside)
    assert len(kept.records(RecordFilter(), limit=1000)) == 150, "what was there can still be exported"
    kept.close()


def test_a_copy_never_replaces_a_file_nor_appears_half(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "bridge.db")
    fill(store, 1, 5)
    (tmp_path / "there").write_text("mine")
    with pytest.raises(TransferError, match="is there already"):
        back_up(store.path, tmp_path / "there")
    assert (tmp_path / "there").read_text() == "mine"
    with pytest.raises((TransferError, StoreError)):
        back_up(store.path, tmp_path / "nowhere" / "copy.db")
    with pytest.raises(StoreError, match="nothing was copied"):
        back_up(tmp_path / "none.db", tmp_path / "copy.db")
    assert not (tmp_path / "copy.db").exists()
    store.close()


@pytest.mark.parametrize("content", [b"", b"not a database at all" * 100, b"SQLite format 3\0" + b"\0" * 5000])
def test_what_is_no_copy_is_not_put_back(tmp_path: Path, content: bytes) -> None:
    store = SqliteStore(tmp_path / "bridge.db")
    fill(store, 1, 5)
    store.close()
    (tmp_path / "copy.db").write_bytes(content)
    with pytest.raises(TransferError):
        restore(tmp_path / "copy.db", tmp_path / "bridge.db")
    again = SqliteStore(tmp_path / "bridge.db")
    assert again.streams()[0].mark == 5
    again.close()
