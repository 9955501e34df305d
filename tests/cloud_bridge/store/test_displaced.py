"""A store whose file is deleted or replaced while the bridge has it open."""

import os
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
import structlog

from cloud_bridge.errors import StoreError
from cloud_bridge.store.backup import back_up, restore
from cloud_bridge.store.base import RecordFilter
from cloud_bridge.store.sqlite import SqliteReader, SqliteStore, take_lock
from tests.cloud_bridge.store.test_sqlite import KEY, rows


class Blind(SqliteStore):
    """The control: never looks where its file is."""

    def _in_place(self) -> bool:
        return True


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "store" / "bridge.db"


@pytest.fixture
def store(path: Path) -> Iterator[SqliteStore]:
    found = SqliteStore(path, wall_ns=lambda: 42)
    found.ingest(rows(1, 100))
    yield found
    found.close()


def held(path: Path) -> int:
    """Return how many records the next one finds who opens the store."""
    again = SqliteStore(path)
    try:
        again.open()
        assert again.check() == []
        return again.counts().records
    finally:
        again.close()


def delete(path: Path, *ends: str) -> None:
    for end in ends:
        Path(f"{path}{end}").unlink()


EVERYTHING = ("", "-wal", "-shm", ".lock")


@pytest.mark.parametrize("ends", [EVERYTHING, ("",), ("-wal",), ("-shm",), (".lock",), ("-wal", "-shm")])
def test_what_was_committed_and_what_comes_after_it_is_there_for_the_next_one(
    store: SqliteStore, path: Path, ends: tuple[str, ...]
) -> None:
    delete(path, *ends)
    assert store.ingest(rows(101, 200)).marks == {KEY: 200}
    assert store.ingest(rows(201, 300)).marks == {KEY: 300}
    store.close()
    assert held(path) == 300
    assert [file.name for file in path.parent.iterdir() if "replaced" in file.name or "resc" in file.name] == []


def test_control_a_store_that_never_looks_loses_all_of_it(path: Path) -> None:
    store = Blind(path)
    store.ingest(rows(1, 100))
    delete(path, *EVERYTHING)
    assert store.ingest(rows(101, 200)).marks == {KEY: 200}, "and says that it is committed"
    store.close()
    assert held(path) == 0


def test_a_directory_that_was_removed_is_made_again(store: SqliteStore, path: Path) -> None:
    shutil.rmtree(path.parent)
    assert store.ingest(rows(101, 200)).marks == {KEY: 200}
    store.close()
    assert held(path) == 200


def test_nothing_need_come_after_it(store: SqliteStore, path: Path) -> None:
    delete(path, *EVERYTHING)
    store.close()
    assert held(path) == 100


def test_tidying_up_notices_it_where_nothing_comes(store: SqliteStore, path: Path) -> None:
    delete(path, *EVERYTHING)
    with structlog.testing.capture_logs() as logs:
        store.tidy()
    assert [entry["event"] for entry in logs] == ["store_displaced", "store_put_back"]
    assert path.exists()


def test_a_store_that_was_put_in_its_place_is_kept_beside_it(store: SqliteStore, path: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy.db"
    back_up(path, copy)
    store.ingest(rows(101, 200))
    assert path.with_name("bridge.db-wal").stat().st_size, "which is no log of the one that comes"
    shutil.copy(copy, path.with_name("new"))
    path.with_name("new").rename(path)
    assert store.ingest(rows(201, 300)).marks == {KEY: 300}
    store.close()
    assert held(path) == 300
    with closing(sqlite3.connect(path.with_name("bridge.db.replaced-42"))) as other:
        assert other.execute("SELECT count(*) FROM stream_records").fetchone() == (100,)


def test_the_file_that_was_moved_away_is_whole_too(store: SqliteStore, path: Path) -> None:
    path.rename(path.with_name("moved"))
    store.ingest(rows(101, 200))
    store.close()
    assert held(path) == 200
    with closing(sqlite3.connect(path.with_name("moved"))) as other:
        assert other.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


def test_readers_see_what_is_committed_afterwards(store: SqliteStore, path: Path) -> None:
    reader = SqliteReader(path)
    before = reader.change_counter()
    assert reader.counts().records == store.counts().records == 100
    delete(path, *EVERYTHING)
    store.ingest(rows(101, 200))
    assert reader.counts().records == store.counts().records == 200
    assert len(store.records(RecordFilter(), limit=1000)) == 200
    assert reader.change_counter() > before
    reader.close()


def test_without_room_for_it_nothing_more_is_acknowledged_until_there_is(store: SqliteStore, path: Path) -> None:
    delete(path, *EVERYTHING)
    obstacle = path.with_name("bridge.db.rescuing")
    obstacle.mkdir()
    with structlog.testing.capture_logs() as logs:
        for _ in range(3):
            with pytest.raises(StoreError, match="rescuing"):
                store.ingest(rows(101, 200))
    assert [entry["event"] for entry in logs] == ["store_displaced"], "said once"
    obstacle.rmdir()
    assert store.ingest(rows(101, 200)).marks == {KEY: 200}
    store.close()
    assert held(path) == 200


def test_beside_another_bridge_that_has_begun_a_store_there_nothing_is_acknowledged(
    store: SqliteStore, path: Path
) -> None:
    delete(path, *EVERYTHING)
    other = SqliteStore(path)
    other.ingest(rows(1, 7))
    with pytest.raises(StoreError, match="written by another process"):
        store.ingest(rows(101, 200))
    assert other.counts().records == 7
    other.close()
    assert store.ingest(rows(101, 200)).marks == {KEY: 200}
    with closing(sqlite3.connect(path.with_name("bridge.db.replaced-42"))) as kept:
        assert kept.execute("SELECT count(*) FROM stream_records").fetchone() == (7,)


def test_stopped_beside_another_bridge_it_leaves_what_it_has_under_another_name(store: SqliteStore, path: Path) -> None:
    delete(path, *EVERYTHING)
    other = take_lock(path)
    with structlog.testing.capture_logs() as logs:
        store.close()
    os.close(other)
    (entry,) = [entry for entry in logs if entry["event"] == "store_not_put_back"]
    assert held(Path(entry["kept_as"])) == 100


def test_stopped_where_it_cannot_get_its_name_back_it_is_left_for_the_next_start(
    store: SqliteStore, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(_path: Path, _stamp: int) -> bool:
        raise OSError(5, "Input/output error")

    delete(path, *EVERYTHING)
    with monkeypatch.context() as patched, structlog.testing.capture_logs() as logs:
        patched.setattr("cloud_bridge.store.displaced.put_back", fails)
        store.close()
    (entry,) = [entry for entry in logs if entry["event"] == "store_not_put_back"]
    assert entry["kept_as"] == f"{path}.rescued"
    assert held(path) == 100


def test_killed_in_the_middle_the_next_start_puts_it_back(store: SqliteStore, path: Path) -> None:
    delete(path, *EVERYTHING)
    connection = store._connection
    assert connection is not None
    store._rescue(connection)  # the process ends here
    assert not path.exists()
    os.close(store._lock)
    store._lock = os.open("/dev/null", os.O_RDONLY)
    assert held(path) == 100


def test_a_backup_that_is_put_back_is_not_replaced_by_what_was_written_out_before(
    store: SqliteStore, path: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "copy.db"
    back_up(path, copy)
    store.ingest(rows(101, 200))
    delete(path, *EVERYTHING)
    connection = store._connection
    assert connection is not None
    store._rescue(connection)
    os.close(store._lock)
    store._lock = os.open("/dev/null", os.O_RDONLY)
    restore(copy, path, lambda: 43)
    assert held(path) == 100
    assert path.with_name("bridge.db.before-restore-43.rescued").exists()
