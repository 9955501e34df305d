"""Errors of sqlite3 become errors that say who can act."""

import sqlite3
from pathlib import Path

import pytest

from gateway.errors import OutboxError
from gateway.outbox.faults import DamagedStoreError, StoreFaultError, StoreFullError, translated


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (sqlite3.SQLITE_FULL, StoreFullError),
        (sqlite3.SQLITE_CORRUPT, DamagedStoreError),
        (sqlite3.SQLITE_CORRUPT_SEQUENCE, DamagedStoreError),
        (sqlite3.SQLITE_NOTADB, DamagedStoreError),
        (sqlite3.SQLITE_IOERR_WRITE, StoreFaultError),
        (sqlite3.SQLITE_IOERR_FSYNC, StoreFaultError),
        (sqlite3.SQLITE_READONLY, StoreFaultError),
        (sqlite3.SQLITE_BUSY, StoreFaultError),
    ],
)
def test_a_code_becomes_the_error_that_fits(code: int, expected: type[OutboxError]) -> None:
    error = sqlite3.OperationalError("it went wrong")
    error.sqlite_errorcode = code
    error.sqlite_errorname = "SQLITE_SOMETHING"
    with pytest.raises(OutboxError, match=r"/some/outbox\.db") as caught, translated(Path("/some/outbox.db")):
        raise error
    assert type(caught.value) is expected


def test_a_closed_connection_is_a_fault(tmp_path: Path) -> None:
    db = sqlite3.connect(":memory:")
    db.close()
    with pytest.raises(StoreFaultError), translated(tmp_path):
        db.execute("SELECT 1")


def test_another_program_that_holds_the_lock_is_named(tmp_path: Path) -> None:
    holder = sqlite3.connect(tmp_path / "db", isolation_level=None)
    holder.execute("CREATE TABLE t (x)")
    holder.execute("BEGIN IMMEDIATE")
    other = sqlite3.connect(tmp_path / "db", isolation_level=None, timeout=0)
    with pytest.raises(StoreFaultError, match="another program has locked it"), translated(tmp_path / "db"):
        other.execute("BEGIN IMMEDIATE")
    other.close()
    holder.close()
