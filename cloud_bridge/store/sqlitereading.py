"""Reads a SQLite store: connections that cannot write, as many as there are readers at once."""

import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from queue import Empty, LifoQueue
from typing import Any, Final

from cloud_bridge.errors import StoreError, StoreRefusedError
from cloud_bridge.store import checking, schema
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
            if is_damage(error.__cause__):
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
