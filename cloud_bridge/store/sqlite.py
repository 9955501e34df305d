"""The store in one SQLite file.

One connection writes, in one thread (`store-writer`), and it alone checkpoints: two of them doing so at once is
what damages databases in SQLite before 3.51.3. A lock file keeps a second writing process out. Readers have
read-only connections of their own and never wait for the writer.

Commits are durable: WAL with synchronous=FULL. After an I/O error the connection is closed and opened again, never
trusted further. A file that is no database, or a damaged one, is set aside, and a new one begins: devices say with
their next batch which numbers it will never see.
"""

import fcntl
import itertools
import os
import re
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from queue import Empty, LifoQueue
from typing import Any, Final, TypeVar

import structlog

from cloud_bridge.errors import StoreError, StoreInUseError, StoreRefusedError
from cloud_bridge.store import checking, schema, sweeping, writing
from cloud_bridge.store.base import Limits, Swept
from cloud_bridge.store.folding import Folding
from cloud_bridge.store.keys import RunKeys, add_runs, buckets_in, runs_in
from cloud_bridge.store.lines import Condition, Line, Rows, bucketed_record_ids
from cloud_bridge.store.reading import SqlReader
from cloud_bridge.store.truth import forget
from cloud_bridge.store.writing import Range, SqlRow
from cloud_bridge.values import Intake, Outcome, StreamKey, Violation

log = structlog.get_logger()

T = TypeVar("T")

_BUSY_MILLISECONDS: Final = 1000
_LAST_READS_SECONDS: Final = 5.0
_CHECKPOINT_PAGES: Final = 4000
_PAGES_A_COMMIT: Final = 12  # the ends of the indexes, the streams, the spans
_CHANGES_A_PAGE: Final = 4
_CACHE_KIB: Final = 64 * 1024
_TIDY_PAGES: Final = 2000
_WAL_LIMIT_BYTES: Final = 64 * 1024 * 1024

_DAMAGED: Final = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
_REFUSED: Final = (sqlite3.IntegrityError, sqlite3.DataError, sqlite3.ProgrammingError, sqlite3.InterfaceError)


def translated(error: sqlite3.Error, path: Path) -> StoreError | StoreRefusedError:
    """Make our error of a library's: refused is what trying again cannot help."""
    if isinstance(error, _REFUSED):
        return StoreRefusedError(f"{path}: {error}")
    return StoreError(f"{path}: {error}")


class SqliteReader(SqlReader):
    """Reads a store file, whoever writes it."""

    _keys = RunKeys()

    def __init__(self, path: Path) -> None:
        self.path = path
        self._idle: LifoQueue[sqlite3.Connection] = LifoQueue()
        self._version: sqlite3.Connection | None = None
        self._version_lock = threading.Lock()
        self._in_use = threading.Condition()
        self._borrowed = 0
        self._closed = False

    def _record_ids(
        self, line: Line, bounds: Sequence[Condition], *, newest_first: bool
    ) -> tuple[str, tuple[Any, ...]]:
        return bucketed_record_ids(line, bounds, newest_first=newest_first)

    def _rows(self, sql: str, parameters: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        try:
            with self._reading() as connection:
                return connection.execute(sql, parameters).fetchall()
        except sqlite3.Error as error:
            raise translated(error, self.path) from error

    @contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        with self._in_use:
            self._borrowed += 1
        try:
            try:
                connection = self._idle.get_nowait()
            except Empty:
                connection = self._open_reading()
            try:
                yield connection
            except sqlite3.Error:
                connection.close()  # it may belong to a file that was set aside
                raise
            with self._in_use:
                if not self._closed:
                    self._idle.put(connection)
                    return
            connection.close()
        finally:
            with self._in_use:
                self._borrowed -= 1
                self._in_use.notify_all()

    @contextmanager
    def _snapshot(self) -> Iterator[Rows]:
        def rows(sql: str, parameters: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
            return connection.execute(sql, parameters).fetchall()

        try:
            with self._reading() as connection:
                connection.execute("BEGIN")
                yield rows
                connection.execute("COMMIT")
        except sqlite3.Error as error:
            raise translated(error, self.path) from error

    def _open_reading(self) -> sqlite3.Connection:
        uri = f"{self.path.absolute().as_uri()}?mode=ro"
        connection = sqlite3.connect(
            uri, uri=True, isolation_level=None, check_same_thread=False, timeout=_BUSY_MILLISECONDS / 1000
        )
        connection.execute("PRAGMA query_only = ON")
        ((version,),) = connection.execute("PRAGMA user_version").fetchall()
        if version != len(schema.SQLITE):
            connection.close()
            newer = version > len(schema.SQLITE)
            remedy = "install the version that made it" if newer else "start this version of the bridge on it once"
            raise StoreError(f"{self.path} has layout {version}, and this program reads {len(schema.SQLITE)}: {remedy}")
        return connection

    def change_counter(self) -> int:
        """See Reader. SQLite's own counter, which sees the commits of every process."""
        with self._version_lock:
            try:
                if self._version is None:
                    self._version = self._open_reading()
                ((version,),) = self._version.execute("PRAGMA data_version").fetchall()
            except sqlite3.Error as error:
                raise translated(error, self.path) from error
            return int(version)

    def check(self) -> list[Violation]:
        """See Reader."""
        try:
            return self._checked()
        except StoreError as error:
            if getattr(error.__cause__, "sqlite_errorcode", 0) & 0xFF in _DAMAGED:
                return [Violation("damage", str(self.path), str(error.__cause__))]
            raise

    def _checked(self) -> list[Violation]:
        with self._snapshot() as rows:
            damage = [str(row[0]) for row in rows("PRAGMA quick_check(20)", ())]
            if damage != ["ok"]:
                return [Violation("damage", str(self.path), text) for text in damage]
            return checking.check(rows, self._keys) + checking.shortened(checking.runs(rows))

    def size_bytes(self) -> int:
        """See Reader. The file and its write-ahead log."""
        total = 0
        for suffix in ("", "-wal"):
            try:
                total += Path(f"{self.path}{suffix}").stat().st_size
            except OSError:
                continue
        return total

    def close(self) -> None:
        """See Store. Reads under way end first, within reason: a snapshot keeps the log from being emptied."""
        with self._in_use:
            self._closed = True
        with self._version_lock:
            if self._version is not None:
                self._version.close()
                self._version = None
        self._drop_idle()
        with self._in_use:
            self._in_use.wait_for(lambda: not self._borrowed, _LAST_READS_SECONDS)

    def _drop_idle(self) -> None:
        while True:
            try:
                self._idle.get_nowait().close()
            except Empty:
                return


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
            self._writer.submit(self._close_connection).result()
            self._writer.shutdown()
            os.close(self._lock)

    # ---- in the writer's thread --------------------------------------------------------------------

    def _write(self, work: "Callable[[_SqliteTransaction], T]") -> T:
        return self._in_writer(lambda: self._transact(work))

    def _in_writer(self, work: Callable[[], T]) -> T:
        try:
            future = self._writer.submit(work)
        except RuntimeError as error:
            raise StoreError(f"{self.path}: the store is closed") from error
        return future.result()

    def _transact(self, work: Callable[["_SqliteTransaction"], T]) -> T:
        try:
            connection = self._opened()
        except (sqlite3.Error, OSError) as error:
            raise StoreError(f"{self.path}: {error}") from error
        changes = connection.total_changes
        try:
            connection.execute("BEGIN IMMEDIATE")
            result = work(_SqliteTransaction(connection, self._streams))
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
        code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_OK)
        if code & 0xFF in _DAMAGED:
            log.error("store_damaged", path=str(self.path), error=str(error))
            self._suspect.touch()
        if code & 0xFF in (*_DAMAGED, sqlite3.SQLITE_IOERR):
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
        if self._connection is None:
            try:
                self._connection = self._open_checked()
            except sqlite3.DatabaseError as error:
                if error.sqlite_errorcode & 0xFF not in _DAMAGED:
                    raise
                self._set_aside(str(error))
                self._connection = self._open_checked()
        return self._connection

    def _open_checked(self) -> sqlite3.Connection:
        forget(self.path)
        connection = sqlite3.connect(
            self.path, isolation_level=None, check_same_thread=False, timeout=_BUSY_MILLISECONDS / 1000
        )
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


def take_lock(path: Path) -> int:
    """Keep other processes from writing a store, for as long as the descriptor is open.

    Raises:
        StoreInUseError: another process has it.
        StoreError: its directory cannot be used.
    """
    file = Path(f"{path}.lock")
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


_OVER: Final = (
    " FROM {table} WHERE stream = ? AND first <= ?"
    " AND first >= coalesce((SELECT max(first) FROM {table} WHERE stream = ? AND first <= ?), 0) AND last >= ?"
)


_ROWS_AT_ONCE: Final = (400, 80, 16)
"""So many rows in one statement: 400 of 11 columns are far below the 32,766 parameters that SQLite takes.

For each step of a statement Python lets go of its lock, and waits up to 5 ms to have it back while the threads beside
it decode; with one step for each row that was most of the time of an ingest with two workers.
"""
_INSERTED: Final = re.compile(r"VALUES (\([?, ]+\))")
_INSERT_RECORD: Final = (
    "INSERT INTO stream_records (stream, seq, kind, pipeline, recorded_at_ns, received_at_ns, body, blob)"
    " VALUES (?, ?, ?, ?, ?, ?, ?, ?)"
)


_NEXT_ID: Final = (
    "SELECT 1 + max(coalesce((SELECT seq FROM sqlite_sequence WHERE name = 'stream_records'), 0),"
    " coalesce((SELECT max(id) FROM stream_records), 0))"
)


@lru_cache(maxsize=64)
def _for_rows(sql: str, rows: int) -> str:
    """Return an INSERT of one row as one of several; "" for another statement."""
    found = _INSERTED.search(sql)
    return "" if found is None else f"{sql[: found.end()]}{f', {found[1]}' * (rows - 1)}{sql[found.end() :]}"


class _SqliteTransaction:
    """See writing.Transaction. `streams` outlives it; it is emptied when a transaction is rolled back."""

    keys = RunKeys()

    def __init__(self, connection: sqlite3.Connection, streams: dict[StreamKey, int]) -> None:
        self._connection = connection
        self._streams = streams

    def rows(self, sql: str, parameters: Sequence[Any] = ()) -> list[SqlRow]:
        return self._connection.execute(sql, parameters).fetchall()

    def change(self, sql: str, parameters: Sequence[Any] = ()) -> int:
        return self._connection.execute(sql, parameters).rowcount

    def change_many(self, sql: str, parameters: Sequence[Sequence[Any]]) -> None:
        self._change_each(sql, parameters)

    def open_streams(self, keys: Sequence[StreamKey]) -> dict[StreamKey, int]:
        for key in keys:
            if key not in self._streams:
                self._connection.execute(
                    "INSERT INTO streams (gateway, epoch, class) VALUES (?, ?, ?) ON CONFLICT DO NOTHING", key
                )
                (found,) = self.rows("SELECT id FROM streams WHERE gateway = ? AND epoch = ? AND class = ?", key)
                self._streams[key] = found[0]
        return {key: self._streams[key] for key in keys}

    def spans_over(self, ranges: Sequence[Range]) -> list[SqlRow]:
        return self._over("SELECT stream, first, last" + _OVER.format(table="stream_spans"), ranges)

    def gaps_over(self, ranges: Sequence[Range]) -> list[SqlRow]:
        return self._over("SELECT stream, first, last, source, reason" + _OVER.format(table="stream_gaps"), ranges)

    def _over(self, sql: str, ranges: Sequence[Range]) -> list[SqlRow]:
        execute = self._connection.execute
        found: list[SqlRow] = []
        for stream, first, last in ranges:
            found.extend(execute(sql, (stream, last, stream, first, first)))
        return found

    def insert_records(self, rows: Sequence[SqlRow]) -> int:
        # AUTOINCREMENT gives the ids in order from here on, whatever was removed, and nobody else writes meanwhile.
        ((next_id,),) = self.rows(_NEXT_ID)
        add_runs(self, runs_in(rows, next_id))  # only confirms what the spans have told already
        self._change_each(
            "INSERT INTO line_buckets (stream, kind, pipeline, bucket) VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING",
            list(buckets_in(rows, next_id)),
        )
        inserted = self._change_each(_INSERT_RECORD, rows)
        if self.rows(_NEXT_ID) != [(next_id + len(rows),)]:
            raise StoreError(f"the ids from {next_id} on were not given in order; nothing was stored")
        return inserted

    def _change_each(self, sql: str, rows: Sequence[Sequence[Any]]) -> int:
        changed = at = 0
        for count in _ROWS_AT_ONCE:
            many = _for_rows(sql, count) if len(rows) - at >= count else ""
            while many and len(rows) - at >= count:
                values = list(itertools.chain.from_iterable(rows[at : at + count]))
                changed += self._connection.execute(many, values).rowcount
                at += count
        if at < len(rows):
            changed += self._connection.executemany(sql, rows[at:]).rowcount
        return changed
