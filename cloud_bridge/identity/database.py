"""Where identities are kept: a SQLite file of its own, or the PostgreSQL database that the bridge's store uses.

A file of its own, because the command line writes here while the bridge runs, and the store's file has one writing
process. Statements are written once, with `?`; both databases understand them.
"""

import errno
import os
import sqlite3
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

import psycopg
from psycopg_pool import ConnectionPool, PoolClosed, PoolTimeout

from cloud_bridge.config import Store as StoreSettings
from cloud_bridge.errors import StoreError
from cloud_bridge.identity.files import own_like_directory
from cloud_bridge.identity.schema import VERSIONS
from cloud_bridge.store.opening import password_of, sqlite_path

FILE_NAME: Final = "identity.db"
_BUSY_SECONDS: Final = 10.0
_CONNECT_SECONDS: Final = 5

Row = tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class Schema:
    """Tables that are kept together; other parts of the bridge keep theirs in the same way."""

    name: str  # the table `<name>_schema` holds its version
    what: str  # what is kept, for messages
    versions: tuple[tuple[str, ...], ...]
    lock: int  # of PostgreSQL, while tables are made


IDENTITY: Final = Schema("identity", "identities", VERSIONS, 0x51_1C_E8)


class Transaction(Protocol):
    """What can be done within a transaction."""

    def rows(self, sql: str, parameters: Sequence[Any] = ()) -> list[Row]:
        """Return what a query finds."""
        ...

    def change(self, sql: str, parameters: Sequence[Any] = ()) -> int:
        """Change something; return how many rows."""
        ...


class Database(Protocol):
    """Transactions, kept when they end without an exception. Safe to use from any thread."""

    def transaction(self, *, durable: bool = True) -> AbstractContextManager[Transaction]:
        """Begin a transaction; an exception rolls it back.

        durable: False for what a power cut may take back, such as a challenge: it is cheaper by a sync of the disk.

        Raises:
            StoreError: the database cannot be reached or used now.
        """
        ...

    def close(self) -> None:
        """Close all connections."""
        ...


def open_database(store: StoreSettings, directory: Path) -> Database:
    """Return the database that goes with the store's setting. It is connected, or made, by the first transaction.

    Raises:
        ConfigError: the password file cannot be read.
    """
    if sqlite_path(store.url) is not None:
        return SqliteDatabase(directory / FILE_NAME)
    return PostgresDatabase(store.url, password_of(store.password_file))


class _SqliteTransaction:
    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def rows(self, sql: str, parameters: Sequence[Any] = ()) -> list[Row]:
        return self._connection.execute(sql, parameters).fetchall()

    def change(self, sql: str, parameters: Sequence[Any] = ()) -> int:
        return self._connection.execute(sql, parameters).rowcount


class SqliteDatabase:
    """A file; other processes may use it at the same time."""

    def __init__(self, path: Path, schema: Schema = IDENTITY) -> None:
        self._path = path
        self._schema = schema
        self._lock = threading.Lock()
        self._connection: sqlite3.Connection | None = None
        self._synchronous = ""  # as the connection is set

    @contextmanager
    def transaction(self, *, durable: bool = True) -> Iterator[Transaction]:
        """See Database."""
        with self._lock:
            try:
                connection = self._opened()
                self._set_synchronous(connection, "FULL" if durable else "NORMAL")
                connection.execute("BEGIN IMMEDIATE")
                try:
                    yield _SqliteTransaction(connection)
                    connection.execute("COMMIT")
                except BaseException:
                    if connection.in_transaction:
                        connection.execute("ROLLBACK")
                    raise
            except (sqlite3.Error, OSError) as error:
                self._close()  # after an I/O error a connection is not trusted further
                raise StoreError(f"{self._path}: {error}") from (self._shut() or error)

    def _shut(self) -> PermissionError | None:
        """Return what the system would say of a file that is another user's; SQLite says only that it cannot open it.

        Nothing is opened for that: closing it would end the locks of other connections of this process.
        """
        asked = self._path if os.path.exists(self._path) else self._path.parent  # noqa: PTH110 - it raises nothing
        if os.access(asked, os.R_OK | os.W_OK, effective_ids=True):
            return None
        return PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(self._path))

    def _set_synchronous(self, connection: sqlite3.Connection, wanted: str) -> None:
        if wanted != self._synchronous:
            connection.execute(f"PRAGMA synchronous = {wanted}")
            self._synchronous = wanted

    def close(self) -> None:
        """See Database."""
        with self._lock:
            self._close()

    def _close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None
            self._synchronous = ""

    def _opened(self) -> sqlite3.Connection:
        if self._connection is None:
            self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            connection = sqlite3.connect(
                self._path, isolation_level=None, check_same_thread=False, timeout=_BUSY_SECONDS
            )
            try:
                self._path.chmod(0o600)  # its -wal and -shm take the same mode and owner
                own_like_directory(self._path)
                for pragma in ("journal_mode = WAL", "trusted_schema = OFF"):
                    connection.execute(f"PRAGMA {pragma}")
                connection.execute("BEGIN IMMEDIATE")
                _migrate(_SqliteTransaction(connection), str(self._path), self._schema)
                connection.execute("COMMIT")
            except BaseException:
                connection.close()
                raise
            self._connection = connection
        return self._connection


class _PostgresTransaction:
    def __init__(self, connection: psycopg.Connection[Row]) -> None:
        self._connection = connection

    def rows(self, sql: str, parameters: Sequence[Any] = ()) -> list[Row]:
        return self._connection.execute(_marked(sql), parameters).fetchall()

    def change(self, sql: str, parameters: Sequence[Any] = ()) -> int:
        return self._connection.execute(_marked(sql), parameters).rowcount


def _marked(sql: str) -> Any:  # psycopg asks for a literal
    return sql.replace("?", "%s")


class PostgresDatabase:
    """Tables in a PostgreSQL database, for any number of bridges."""

    def __init__(self, url: str, password: str | None = None, connections: int = 4, schema: Schema = IDENTITY) -> None:
        self._schema = schema
        extra = {"password": password} if password is not None else {}
        self._lock = threading.Lock()
        self._ready = False
        self._pool: ConnectionPool[psycopg.Connection[Row]] = ConnectionPool(
            url,
            min_size=1,
            max_size=connections,
            open=False,
            timeout=_CONNECT_SECONDS,
            kwargs={"connect_timeout": _CONNECT_SECONDS, "application_name": f"cloud-bridge-{schema.name}", **extra},
            check=ConnectionPool.check_connection,
            name=schema.name,
        )

    @contextmanager
    def transaction(self, *, durable: bool = True) -> Iterator[Transaction]:
        """See Database."""
        try:
            self._prepare()
            with self._pool.connection() as connection:
                connection.execute(f"SET LOCAL synchronous_commit TO {'on' if durable else 'off'}")
                yield _PostgresTransaction(connection)
        except (PoolTimeout, PoolClosed) as error:
            raise StoreError(f"the database of the {self._schema.what} cannot be reached: {error}") from error
        except psycopg.Error as error:
            raise StoreError(f"the database of the {self._schema.what}: {str(error).strip()}") from error

    def close(self) -> None:
        """See Database."""
        self._pool.close()

    def _prepare(self) -> None:
        with self._lock:
            if not self._ready:
                self._pool.open()
                with self._pool.connection() as connection:
                    connection.execute("SELECT pg_advisory_xact_lock(%s)", (self._schema.lock,))
                    _migrate(_PostgresTransaction(connection), "the database", self._schema)
                self._ready = True


def _migrate(tx: Transaction, where: str, schema: Schema) -> None:
    table = f"{schema.name}_schema"
    tx.change(f"CREATE TABLE IF NOT EXISTS {table} (version BIGINT PRIMARY KEY)")
    ((done,),) = tx.rows(f"SELECT coalesce(max(version), 0) FROM {table}")  # noqa: S608  # a constant of the program
    if done > len(schema.versions):
        raise StoreError(f"{where} was made by a newer version ({schema.name} schema {done}); install that version")
    for version, statements in enumerate(schema.versions[done:], start=done + 1):
        for statement in statements:
            tx.change(statement)
        tx.change(f"INSERT INTO {table} (version) VALUES (?)", (version,))  # noqa: S608  # a constant of the program


Clock = Callable[[], int]
"""Nanoseconds since 1970, UTC."""
