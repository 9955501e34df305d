"""The store in one SQLite file.

One connection writes, in one thread (`store-writer`), and it alone checkpoints: two of them doing so at once is
what damages databases in SQLite before 3.51.3. A lock file keeps a second writing process out. Readers have
read-only connections of their own and never wait for the writer.

Commits are durable: WAL with synchronous=FULL. After an I/O error the connection is closed and opened again, never
trusted further. A file that is no database, or a damaged one, is set aside, and a new one begins: devices say with
their next batch which numbers it will never see. A file that somebody deletes or replaces is written out again
(`displaced`) before anything else is acknowledged.
"""

import fcntl
import os
import sqlite3
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final, TypeVar

import structlog

from cloud_bridge.errors import StoreError, StoreInUseError, StoreRefusedError
from cloud_bridge.store import displaced, schema, sweeping, writing
from cloud_bridge.store.base import Limits, Swept
from cloud_bridge.store.folding import Folding
from cloud_bridge.store.sqlitereading import BUSY_SECONDS, SqliteReader, is_damage, translated
from cloud_bridge.store.sqlitetransaction import SqliteTransaction
from cloud_bridge.store.truth import forget
from cloud_bridge.values import Intake, Outcome, StreamKey

__all__ = ["SqliteReader", "SqliteStore", "take_lock"]

log = structlog.get_logger()

T = TypeVar("T")

_CHECKPOINT_PAGES: Final = 4000
_PAGES_A_COMMIT: Final = 12  # the ends of the indexes, the streams, the spans
_CHANGES_A_PAGE: Final = 4
_CACHE_KIB: Final = 64 * 1024
_TIDY_PAGES: Final = 2000
_WAL_LIMIT_BYTES: Final = 64 * 1024 * 1024


class SqliteStore(SqliteReader, Folding):
    """Reads and writes a store file; no other process may write it meanwhile."""

    def __init__(self, path: Path, wall_ns: Callable[[], int] = time.time_ns) -> None:
        """Take the file; it is opened by `open`, or by the first call that writes.

        Raises:
            StoreInUseError: another process has it.
            StoreError: its directory cannot be used.
        """
        super().__init__(path)
        self._wall_ns = wall_ns
        self._lock = take_lock(path)
        self._connection: sqlite3.Connection | None = None
        self._place: displaced.Identities = ()  # of what the connection has open
        self._displaced = False
        self._streams: dict[StreamKey, int] = {}
        self._dirty_pages = 0  # an estimate of what the next checkpoint has to move
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="store-writer")

    def open(self) -> None:
        """Open or make the file now.

        Raises:
            StoreError: it cannot be opened now.
        """
        self._write(lambda _: None)

    def ingest(self, intake: Intake) -> Outcome:
        """See Store."""
        return self._write(lambda tx: writing.write(tx, intake))

    def settle(self, letter_id: int, intake: Intake | None = None) -> Outcome:
        """See Store."""
        return self._write(lambda tx: writing.settle(tx, letter_id, intake))

    def forget(self, gateway: str) -> bool:
        """See Store."""
        return self._write(lambda tx: writing.forget(tx, gateway))

    def sweep(self, limits: Limits, limit: int) -> Swept:
        """See Store."""
        return self._write(lambda tx: sweeping.sweep(tx, limits, limit))

    def tidy(self) -> None:
        """See Store. A slice of SQLite's incremental vacuum."""
        self._in_writer(self._vacuum_slice)

    def close(self) -> None:
        """See Store."""
        if not self._closed:
            super().close()
            self._writer.submit(self._close_in_place).result()
            self._writer.shutdown()
            os.close(self._lock)

    # ---- in the writer's thread --------------------------------------------------------------------

    def _write(self, work: "Callable[[SqliteTransaction], T]") -> T:
        return self._in_writer(lambda: self._transact(work))

    def _in_writer(self, work: Callable[[], T]) -> T:
        try:
            future = self._writer.submit(work)
        except RuntimeError as error:
            raise StoreError(f"{self.path}: the store is closed") from error
        return future.result()

    def _transact(self, work: Callable[["SqliteTransaction"], T]) -> T:
        try:
            connection = self._opened()
        except (sqlite3.Error, OSError) as error:
            raise StoreError(f"{self.path}: {error}") from error
        changes = connection.total_changes
        try:
            connection.execute("BEGIN IMMEDIATE")
            result = work(SqliteTransaction(connection, self._streams))
            connection.execute("COMMIT")
        except sqlite3.Error as error:
            self._roll_back(connection, error)
            raise translated(error, self.path) from error
        except (OverflowError, UnicodeError, ValueError) as error:  # values that SQLite cannot hold
            self._roll_back(connection, None)
            raise StoreRefusedError(f"{self.path}: {error}") from error
        except BaseException:  # a mistake of ours must not leave the one connection inside a transaction
            self._roll_back(connection, None)
            raise
        self._dirty_pages += _PAGES_A_COMMIT + (connection.total_changes - changes) // _CHANGES_A_PAGE
        if self._dirty_pages >= _CHECKPOINT_PAGES:
            self._checkpoint(connection)
        return result

    def _checkpoint(self, connection: sqlite3.Connection) -> None:
        """Move the log into the file. What is committed stays so, however this ends.

        Not left to SQLite: its own checkpoint after a commit keeps errors of the disk to itself.
        """
        self._dirty_pages = 0
        try:
            connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
        except sqlite3.Error as error:
            log.error("store_checkpoint_failed", path=str(self.path), error=str(error))
            self._roll_back(connection, error)

    def _roll_back(self, connection: sqlite3.Connection, error: sqlite3.Error | None) -> None:
        self._streams.clear()
        damaged = is_damage(error)
        if damaged:
            log.error("store_damaged", path=str(self.path), error=str(error))
            self._suspect.touch()
        if damaged or getattr(error, "sqlite_errorcode", sqlite3.SQLITE_OK) & 0xFF == sqlite3.SQLITE_IOERR:
            # What the page cache holds after a failed sync is not what the disk holds: nothing of it may be moved.
            self._close_distrusted()
            return
        try:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
        except sqlite3.Error:
            self._close_connection()

    @property
    def _suspect(self) -> Path:
        """Stands beside the file from the first sign of damage until a check has been made."""
        return Path(f"{self.path}.suspect")

    def _opened(self) -> sqlite3.Connection:
        if self._connection is not None and not self._in_place():
            self._rescue(self._connection)
        if self._connection is None:
            try:
                self._connection = self._open_checked()
            except sqlite3.DatabaseError as error:
                if not is_damage(error):
                    raise
                self._set_aside(str(error))
                self._connection = self._open_checked()
        return self._connection

    def _in_place(self) -> bool:
        """Tell whether what is open still has its names. Asked before each commit: four calls of stat."""
        return displaced.identities(self.path) == self._place and _same(self._lock, lock_file(self.path))

    def _rescue(self, connection: sqlite3.Connection) -> None:
        """Write out what somebody has deleted or replaced, and let go of it; the next opening puts it back.

        Raises:
            StoreError: there is no room, or another bridge has begun a store there; the open file is kept until then.
        """
        if not self._displaced:
            log.error("store_displaced", path=str(self.path), reason="deleted or replaced while the bridge has it open")
            self._displaced = True
        try:
            if not _same(self._lock, lock_file(self.path)):
                fresh = take_lock(self.path)
                os.close(self._lock)
                self._lock = fresh
            displaced.write_out(connection, self.path)
            aside = displaced.clear(self.path, self._wall_ns(), self._place)
        except StoreInUseError as error:
            raise StoreError(f"{self.path} was taken away, and {error}") from error
        except OSError as error:
            raise StoreError(f"{self.path}: {error.strerror or error}") from error
        if aside is not None:
            log.error("store_set_aside", path=str(self.path), now=str(aside), error="it had replaced the one in use")
        self._close_connection()
        self._drop_idle()

    def _open_checked(self) -> sqlite3.Connection:
        displaced.put_back(self.path, self._wall_ns())
        self._displaced = False
        forget(self.path)
        connection = sqlite3.connect(self.path, isolation_level=None, check_same_thread=False, timeout=BUSY_SECONDS)
        try:
            for pragma in (
                "auto_vacuum = INCREMENTAL",  # counts only before the first table
                "journal_mode = WAL",
                "synchronous = FULL",  # NORMAL loses committed transactions when the power goes
                "wal_autocheckpoint = 0",  # see _checkpoint
                f"journal_size_limit = {_WAL_LIMIT_BYTES}",
                f"cache_size = -{_CACHE_KIB}",
                "mmap_size = 0",
                "trusted_schema = OFF",
            ):
                connection.execute(f"PRAGMA {pragma}")
            if self._suspect.exists():
                ((answer,),) = connection.execute("PRAGMA quick_check(1)").fetchall()
                if answer != "ok":
                    self._set_aside(str(answer))
                    connection.close()
                    return self._open_checked()
                self._suspect.unlink()
            _migrate(connection, self.path)
            self._place = displaced.identities(self.path)
        except BaseException:
            connection.close()
            raise
        return connection

    def _set_aside(self, error: str) -> None:
        stamp = self._wall_ns()
        self._drop_idle()
        for suffix in ("", "-wal", "-shm"):
            file = Path(f"{self.path}{suffix}")
            if file.exists():
                file.rename(f"{self.path}.damaged-{stamp}{suffix}")
        self._suspect.unlink(missing_ok=True)
        log.error("store_set_aside", path=str(self.path), now=f"{self.path}.damaged-{stamp}", error=error)

    def _close_distrusted(self) -> None:
        """Close without the checkpoint that the last connection makes: while a reader is there, it is not the last."""
        witness: sqlite3.Connection | None = None
        try:
            witness = self._open_reading()
            witness.execute("SELECT count(*) FROM sqlite_schema").fetchall()
        except (sqlite3.Error, StoreError) as error:
            log.debug("store_closed_alone", path=str(self.path), error=str(error))
        self._close_connection()
        self._drop_idle()
        if witness is not None:
            witness.close()

    def _close_in_place(self) -> None:
        """Close for good; what was taken away since the last commit is written out first."""
        if self._connection is not None and not self._in_place():
            connection = self._connection
            try:
                self._rescue(connection)
                displaced.put_back(self.path, self._wall_ns())
            except StoreError as error:
                self._leave_beside(connection, error)
            except OSError as error:  # it is written out, and the next start puts it back
                kept = f"{self.path}{displaced.RESCUED}"
                log.error("store_not_put_back", path=str(self.path), reason=str(error), kept_as=kept)
        self._close_connection()

    def _leave_beside(self, connection: sqlite3.Connection, reason: Exception) -> None:
        """Write a store out whose place another one has now, under a name of its own, for a person to look at."""
        beside = Path(f"{self.path}.displaced-{self._wall_ns()}")
        try:
            displaced.write_out(connection, beside)
        except StoreError as error:
            log.error("store_lost", path=str(self.path), reason=str(reason), error=str(error))
        else:
            file = f"{beside}{displaced.RESCUED}"
            log.error("store_not_put_back", path=str(self.path), reason=str(reason), kept_as=file)

    def _close_connection(self) -> None:
        self._streams.clear()
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _vacuum_slice(self) -> None:
        try:
            self._opened().execute(f"PRAGMA incremental_vacuum({_TIDY_PAGES})").fetchall()
        except sqlite3.Error as error:
            raise translated(error, self.path) from error


def lock_file(path: Path) -> Path:
    """Return the file whose lock says that a process writes a store."""
    return Path(f"{path}.lock")


def _same(descriptor: int, file: Path) -> bool:
    found = os.fstat(descriptor)
    return displaced.identity_of(file) == (found.st_dev, found.st_ino)


def take_lock(path: Path) -> int:
    """Keep other processes from writing a store, for as long as the descriptor is open.

    Raises:
        StoreInUseError: another process has it.
        StoreError: its directory cannot be used.
    """
    file = lock_file(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
    except OSError as error:
        raise StoreError(f"{file}: {error.strerror}; the bridge must be able to write in this directory") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        raise StoreInUseError(f"{path} is written by another process; stop it first") from error
    return descriptor


def _migrate(connection: sqlite3.Connection, path: Path) -> None:
    ((done,),) = connection.execute("PRAGMA user_version").fetchall()
    if done > len(schema.SQLITE):
        raise StoreError(f"{path} was made by a newer version (schema {done}); install that version")
    for version, statements in enumerate(schema.SQLITE[done:], start=done + 1):
        if done:
            log.info("store_migrating", path=str(path), to=version, size_bytes=path.stat().st_size)
        connection.execute("BEGIN IMMEDIATE")
        try:
            for statement in statements:
                connection.execute(statement)
            connection.execute(f"PRAGMA user_version = {version}")
            connection.execute("COMMIT")
        except sqlite3.Error:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise
