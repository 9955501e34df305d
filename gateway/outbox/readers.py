"""Reading beside the writer: connections that cannot write, and therefore never checkpoint."""

import sqlite3
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from gateway.errors import OutboxError
from gateway.outbox.faults import StoreClosedError, translated
from gateway.outbox.schema import TABLES
from gateway.values import Stored
from gateway.wire.messages import RecordClass

_IDLE: Final = 4
_LAST_READS_SECONDS: Final = 5.0
# A flipped bit may change the type of a column, or make a text that is no UTF-8; a row must come out all the same.
AS_WRITTEN: Final = (
    "seq, coalesce(CAST(kind AS BLOB), x''), coalesce(CAST(recorded_at_ns AS INTEGER), -1), "
    "coalesce(CAST(body AS BLOB), x''), coalesce(CAST(blob AS BLOB), x'')"
)
_PRAGMAS: Final = ("PRAGMA mmap_size = 0", "PRAGMA query_only = ON", "PRAGMA cache_size = -2048")


class Readers:
    """Read-only connections to one store, kept for whoever reads next; safe to use from any thread."""

    def __init__(self, file: Path, epoch: str, options: Mapping[str, str] | None = None) -> None:
        self.epoch = epoch
        self._file = file
        self._options = options
        self._lock = threading.Condition()
        self._idle: list[sqlite3.Connection] = []
        self._borrowed = 0
        self._closed = False

    def rows(
        self, record_class: RecordClass, after_seq: int, up_to: int, max_records: int, max_bytes: int
    ) -> tuple[int, list[Stored]]:
        """Return the lowest number present and the rows above `after_seq`, at least one if there is any.

        Raises:
            DamagedStoreError: the file cannot be understood.
            StoreClosedError: the store was replaced or closed meanwhile.
            StoreFaultError: the disk failed.
        """
        table = TABLES[record_class]
        found: list[Stored] = []
        size = 0
        with self._borrow() as db, translated(self._file):
            db.execute("BEGIN")  # both answers from one moment
            try:
                (base,) = db.execute(f"SELECT min(seq) FROM {table}").fetchone()  # noqa: S608  # own names only
                cursor = db.execute(
                    f"SELECT {AS_WRITTEN} FROM {table} "  # noqa: S608
                    "WHERE seq > ? AND seq <= ? ORDER BY seq LIMIT ?",
                    (after_seq, up_to, max_records),
                )
                for row in cursor:
                    stored = Stored(row[0], row[1].decode("utf-8", "replace"), *row[2:])
                    size += len(stored.body) + len(stored.blob)
                    if found and size > max_bytes:
                        break
                    found.append(stored)
                cursor.close()
            finally:
                db.execute("COMMIT")
        return base or 0, found

    def close(self) -> None:
        """Close what is idle, and wait for what is in use: a snapshot that is held keeps the log from being emptied.

        Not for ever: what a disk that hangs does not give back closes when it comes.
        """
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
        for db in idle:
            db.close()
        with self._lock:
            self._lock.wait_for(lambda: not self._borrowed, _LAST_READS_SECONDS)

    @contextmanager
    def _borrow(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            if self._closed:
                raise StoreClosedError(f"{self._file}: the store was closed")
            idle = self._idle.pop() if self._idle else None
            self._borrowed += 1
        try:
            db = idle if idle is not None else self._connect()
            try:
                yield db
            except OutboxError:
                db.close()
                raise
            self._give_back(db)
        finally:
            with self._lock:
                self._borrowed -= 1
                self._lock.notify_all()

    def _give_back(self, db: sqlite3.Connection) -> None:
        with self._lock:
            if not self._closed and len(self._idle) < _IDLE:
                self._idle.append(db)
                return
        db.close()

    def _connect(self) -> sqlite3.Connection:
        with translated(self._file):
            db = connect_read_only(self._file, self._options)
            found = db.execute("SELECT value FROM meta WHERE name = 'epoch'").fetchone()
        if found is None or found[0] != self.epoch:
            db.close()
            raise StoreClosedError(f"{self._file}: the store was replaced")
        return db


def connect_read_only(file: Path, options: Mapping[str, str] | None = None) -> sqlite3.Connection:
    """Open a connection that cannot write; sqlite3 errors pass."""
    words = "&".join(f"{key}={value}" for key, value in {"mode": "ro", **(options or {})}.items())
    db = sqlite3.connect(
        f"{file.absolute().as_uri()}?{words}", uri=True, isolation_level=None, check_same_thread=False, timeout=5.0
    )
    for pragma in _PRAGMAS:
        db.execute(pragma)
    return db
