"""Reads a SQLite store: connections that cannot write, as many as there are readers at once."""

import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from queue import Empty, LifoQueue
from typing import Any, Final, NamedTuple

from cloud_bridge.errors import StoreError, StoreRefusedError
from cloud_bridge.store import checking, schema
from cloud_bridge.store.displaced import Identity, identity_of
from cloud_bridge.store.keys import RunKeys
from cloud_bridge.store.lines import Condition, Line, Rows, bucketed_record_ids
from cloud_bridge.store.reading import SqlReader
from cloud_bridge.values import Violation

BUSY_SECONDS: Final = 1.0
"""How long a connection waits for another one's lock."""

_LAST_READS_SECONDS: Final = 5.0

_DAMAGED: Final = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
_REFUSED: Final = (sqlite3.IntegrityError, sqlite3.DataError, sqlite3.ProgrammingError, sqlite3.InterfaceError)


def is_damage(error: BaseException | None) -> bool:
    """Tell whether an error of SQLite says that the file is damaged, or no database."""
    return getattr(error, "sqlite_errorcode", sqlite3.SQLITE_OK) & 0xFF in _DAMAGED


def translated(error: sqlite3.Error, path: Path) -> StoreError | StoreRefusedError:
    """Make our error of a library's: refused is what trying again cannot help."""
    if isinstance(error, _REFUSED):
        return StoreRefusedError(f"{path}: {error}")
    return StoreError(f"{path}: {error}")


class _Reading(NamedTuple):
    """A connection that reads, and which file of that name it has open."""

    connection: sqlite3.Connection
    of: Identity | None


class SqliteReader(SqlReader):
    """Reads a store file, whoever writes it, and also when another one has taken its place."""

    _keys = RunKeys()

    def __init__(self, path: Path) -> None:
        self.path = path
        self._idle: LifoQueue[_Reading] = LifoQueue()
        self._version: _Reading | None = None
        self._changes = 0  # when the present file took the name
        self._changed = 0
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
            reading = self._taken()
            try:
                yield reading.connection
            except sqlite3.Error:
                reading.connection.close()  # it may be the file's fault
                raise
            with self._in_use:
                if not self._closed:
                    self._idle.put(reading)
                    return
            reading.connection.close()
        finally:
            with self._in_use:
                self._borrowed -= 1
                self._in_use.notify_all()

    def _taken(self) -> _Reading:
        """Return a connection that nobody uses, of the file that has the name now."""
        present = identity_of(self.path)
        while True:
            try:
                reading = self._idle.get_nowait()
            except Empty:
                return _Reading(self._open_reading(), present)
            if reading.of == present:
                return reading
            reading.connection.close()

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
        connection = sqlite3.connect(uri, uri=True, isolation_level=None, check_same_thread=False, timeout=BUSY_SECONDS)
        connection.execute("PRAGMA query_only = ON")
        ((version,),) = connection.execute("PRAGMA user_version").fetchall()
        if version != len(schema.SQLITE):
            connection.close()
            newer = version > len(schema.SQLITE)
            remedy = "install the version that made it" if newer else "start this version of the bridge on it once"
            raise StoreError(f"{self.path} has layout {version}, and this program reads {len(schema.SQLITE)}: {remedy}")
        return connection

    def change_counter(self) -> int:
        """See Reader. SQLite's own counter, which sees the commits of every process; it goes on in another file."""
        with self._version_lock:
            try:
                present = identity_of(self.path)
                if self._version is not None and self._version.of != present:
                    self._version.connection.close()
                    self._version = None
                    self._changes = self._changed
                if self._version is None:
                    self._version = _Reading(self._open_reading(), present)
                ((version,),) = self._version.connection.execute("PRAGMA data_version").fetchall()
            except sqlite3.Error as error:
                raise translated(error, self.path) from error
            self._changed = self._changes + int(version)
            return self._changed

    def check(self, *, hours_from_s: int = 0) -> list[Violation]:
        """See Reader."""
        try:
            return self._checked(hours_from_s)
        except StoreError as error:
            if is_damage(error.__cause__):
                return [Violation("damage", str(self.path), str(error.__cause__))]
            raise

    def _checked(self, hours_from_s: int) -> list[Violation]:
        with self._snapshot() as rows:
            damage = [str(row[0]) for row in rows("PRAGMA quick_check(20)", ())]
            if damage != ["ok"]:
                return [Violation("damage", str(self.path), text) for text in damage]
            found = checking.check(rows, self._keys, hours_from_s=hours_from_s)
            return found + checking.shortened(checking.runs(rows))

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
                self._version.connection.close()
                self._version = None
        self._drop_idle()
        with self._in_use:
            self._in_use.wait_for(lambda: not self._borrowed, _LAST_READS_SECONDS)

    def _drop_idle(self) -> None:
        while True:
            try:
                self._idle.get_nowait().connection.close()
            except Empty:
                return
