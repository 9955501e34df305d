import sqlite3
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from gateway.outbox import readers as module
from gateway.outbox.faults import StoreClosedError
from gateway.outbox.readers import Readers
from gateway.outbox.schema import TABLES

EPOCH = "0123456789abcdef"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "outbox.db"
    db = sqlite3.connect(path)
    db.execute("CREATE TABLE meta (name TEXT, value TEXT)")
    db.execute("INSERT INTO meta VALUES ('epoch', ?)", (EPOCH,))
    for table in TABLES.values():
        db.execute(f"CREATE TABLE {table} (seq INTEGER PRIMARY KEY, kind, recorded_at_ns, body, blob)")
    db.commit()
    db.close()
    return path


def test_closing_waits_for_a_read_that_is_under_way(file: Path) -> None:
    readers = Readers(file, EPOCH)
    reading, go_on = threading.Event(), threading.Event()

    def read() -> None:
        with readers._borrow() as db:
            db.execute("BEGIN")
            db.execute("SELECT * FROM meta").fetchone()
            reading.set()
            assert go_on.wait(5)
            db.execute("COMMIT")

    with ThreadPoolExecutor(2) as pool:
        borrowed = pool.submit(read)
        assert reading.wait(5)
        closing = pool.submit(readers.close)
        with pytest.raises(TimeoutError):
            closing.result(0.2)
        go_on.set()
        borrowed.result(5)
        closing.result(5)
    with pytest.raises(StoreClosedError):
        readers.rows("event", 0, 10, 10, 1000)


def test_closing_does_not_wait_for_ever_for_a_disk_that_hangs(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_LAST_READS_SECONDS", 0.05)
    readers = Readers(file, EPOCH)
    with readers._borrow() as db:
        readers.close()
        db.execute("SELECT 1")
    with pytest.raises(sqlite3.ProgrammingError):
        db.execute("SELECT 1")  # closed when it came back


def test_a_read_that_fails_is_not_waited_for(file: Path) -> None:
    readers = Readers(file, "fedcba9876543210")
    with pytest.raises(StoreClosedError):
        readers.rows("event", 0, 10, 10, 1000)
    readers.close()
