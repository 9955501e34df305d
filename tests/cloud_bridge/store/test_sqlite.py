import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest
import structlog

from cloud_bridge.errors import StoreError, StoreInUseError
from cloud_bridge.store.base import RecordFilter
from cloud_bridge.store.sqlite import SqliteReader, SqliteStore
from cloud_bridge.values import Arrival, Intake, Row, StreamKey
from tests.simulators.samples import EPOCH
from tests.simulators.waiting import wait_for

KEY = StreamKey("dock", EPOCH, "event")


def rows(first: int, last: int, size: int = 10) -> Intake:
    body = b'"' + b"x" * size + b'"'
    return Intake(1, (Arrival(KEY, 1, tuple(Row(seq, "notice", None, 1, body) for seq in range(first, last + 1))),))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "bridge.db"


@pytest.fixture
def store(path: Path) -> Iterator[SqliteStore]:
    found = SqliteStore(path)
    yield found
    found.close()


def test_a_commit_is_synced_and_only_one_connection_writes(store: SqliteStore) -> None:
    store.open()
    connection = store._connection
    assert connection is not None
    assert connection.execute("PRAGMA synchronous").fetchone() == (2,), "FULL"
    assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    with pytest.raises(StoreInUseError, match="another process"):
        SqliteStore(store.path)


def test_a_mistake_in_the_middle_of_a_transaction_does_not_spoil_the_next(store: SqliteStore) -> None:
    def mistaken(_transaction: object) -> None:
        raise KeyError("a mistake")

    with pytest.raises(KeyError):
        store._write(mistaken)
    assert store.ingest(rows(1, 3)).marks


def test_the_file_is_free_again_after_closing(store: SqliteStore) -> None:
    store.ingest(rows(1, 3))
    store.close()
    store.close()
    with pytest.raises(StoreError, match="closed"):
        store.ingest(rows(4, 5))
    again = SqliteStore(store.path)
    assert again.streams()[0].mark == 3
    again.close()


def test_a_file_locked_by_someone_else_is_waited_for_and_nothing_is_half_written(store: SqliteStore) -> None:
    store.ingest(rows(1, 3))
    with closing(sqlite3.connect(store.path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreError, match="locked"):
            store.ingest(rows(4, 6))
        other.execute("ROLLBACK")
    assert store.streams()[0].mark == 3
    assert store.ingest(rows(4, 6)).marks == {KEY: 6}


def test_readers_see_commits_while_the_writer_writes(store: SqliteStore, path: Path) -> None:
    store.ingest(rows(1, 3))
    reader = SqliteReader(path)
    assert reader.counts().records == 3
    store.ingest(rows(4, 6))
    assert reader.counts().records == 6
    with pytest.raises(StoreError, match="readonly"):
        reader._rows("DELETE FROM streams")
    reader.close()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    directory = tmp_path / "small"
    directory.mkdir()
    if (
        os.geteuid() != 0
        or subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(directory)], check=False, capture_output=True
        ).returncode
    ):
        pytest.skip("a small tmpfs needs root")
    yield directory
    subprocess.run(["umount", "-l", str(directory)], check=True)


def test_a_full_disk_is_an_error_now_and_no_loss_later(small_disk: Path) -> None:
    store = SqliteStore(small_disk / "bridge.db")
    store.ingest(rows(1, 10))
    ballast = small_disk / "ballast"
    ballast.write_bytes(b"\0" * shutil.disk_usage(small_disk).free)
    committed = 10
    full = ""
    while not full:
        try:
            store.ingest(rows(committed + 1, committed + 100, size=300))
            committed += 100
        except StoreError as error:
            full = str(error)
    assert "full" in full
    assert store.counts().records == committed, "reading still works"
    ballast.unlink()
    outcome = store.ingest(rows(committed + 1, committed + 100, size=300))
    assert outcome.marks == {KEY: committed + 100}
    store.close()
    with closing(sqlite3.connect(small_disk / "bridge.db")) as db:
        assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


def test_a_file_that_is_no_database_is_set_aside_and_a_new_one_begins(path: Path) -> None:
    path.write_bytes(b"\0" * 8192 + b"garbage" * 1000)
    with structlog.testing.capture_logs() as logs:
        store = SqliteStore(path, wall_ns=lambda: 42)
        assert store.ingest(rows(1, 3)).marks == {KEY: 3}
        store.close()
    assert path.with_name("bridge.db.damaged-42").exists()
    assert [entry["event"] for entry in logs] == ["store_set_aside"]


def test_damage_found_while_running_stops_acknowledging_and_is_repaired_by_a_new_file(path: Path) -> None:
    store = SqliteStore(path, wall_ns=lambda: 42)
    for first in range(1, 5000, 500):
        store.ingest(rows(first, first + 499))
    store.close()
    data = bytearray(path.read_bytes())
    page = int.from_bytes(data[16:18], "big")
    data[2 * page :] = os.urandom(len(data) - 2 * page)
    store = SqliteStore(path, wall_ns=lambda: 42)
    store.open()  # all is well so far, and the schema is in memory
    path.write_bytes(data)
    with pytest.raises(StoreError, match="malformed"):
        store.ingest(rows(5001, 5001))
    assert path.with_name("bridge.db.suspect").exists()
    assert store.ingest(rows(5001, 5002)).inserted == 2
    assert path.with_name("bridge.db.damaged-42").exists()
    store.close()


def test_a_file_of_a_newer_version_is_left_alone(path: Path) -> None:
    with closing(sqlite3.connect(path)) as db:
        db.execute("PRAGMA user_version = 99")
    store = SqliteStore(path)
    with pytest.raises(StoreError, match="newer version"):
        store.open()
    store.close()


_VICTIM = """
import sys
import threading
from pathlib import Path
from cloud_bridge.store.sqlite import SqliteStore
from tests.cloud_bridge.store.test_sqlite import rows
store = SqliteStore(Path(sys.argv[1]))
first = 1
while True:
    store.ingest(rows(first, first + 19))
    first += 20
    print(first - 1, flush=True)
"""


def test_what_was_committed_survives_a_kill(path: Path) -> None:
    victim = subprocess.Popen(
        [sys.executable, "-c", _VICTIM, str(path)], stdout=subprocess.PIPE, cwd=Path(__file__).parents[3]
    )
    assert victim.stdout is not None
    said = [int(victim.stdout.readline()) for _ in range(50)]
    victim.send_signal(signal.SIGKILL)
    said.extend(int(line) for line in victim.stdout.read().split())
    victim.wait()
    wait_for(lambda: victim.returncode is not None)
    store = SqliteStore(path)
    (stream,) = store.streams()
    assert stream.mark >= said[-1]
    assert stream.records == stream.mark == len(store.records(RecordFilter(), limit=10**6))
    store.close()


def test_a_directory_that_cannot_be_written_is_an_error_with_its_place(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="must be able to write in this directory"):
        SqliteStore(tmp_path / "file" / "bridge.db")


@pytest.mark.parametrize(("patience", "log_is_left"), [(5.0, False), (0.0, True)])
def test_closing_waits_for_a_snapshot_that_is_read_and_the_log_is_emptied(
    path: Path, monkeypatch: pytest.MonkeyPatch, *, patience: float, log_is_left: bool
) -> None:
    """The second is the control: without the patience the file is not whole without its log."""
    monkeypatch.setattr("cloud_bridge.store.sqlitereading._LAST_READS_SECONDS", patience)
    store = SqliteStore(path)
    store.ingest(rows(1, 10))
    reading, go_on = threading.Event(), threading.Event()

    def read() -> None:
        with store._snapshot() as found:
            found("SELECT count(*) FROM records", ())
            reading.set()
            go_on.wait(5)

    with ThreadPoolExecutor(2) as pool:
        snapshot = pool.submit(read)
        assert reading.wait(5)
        closing_it = pool.submit(store.close)
        if patience:
            with pytest.raises(TimeoutError):
                closing_it.result(0.2)
        else:
            closing_it.result(5)
        assert Path(f"{path}-wal").exists()
        go_on.set()
        snapshot.result(5)
        closing_it.result(5)
    assert Path(f"{path}-wal").exists() is log_is_left
