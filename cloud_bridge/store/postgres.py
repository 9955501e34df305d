"""The store in a PostgreSQL database, for any number of bridge processes.

Two processes that write the same stream wait for each other at its row in `streams`; everything that decides about
duplicates happens behind that lock. The database may be away when the bridge starts, and at any time later.
"""

import re
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, TypeVar

import psycopg
import structlog
from psycopg import errors as pg
from psycopg_pool import ConnectionPool, PoolClosed, PoolTimeout

from cloud_bridge.errors import StoreError, StoreRefusedError
from cloud_bridge.store import schema, writing
from cloud_bridge.store.base import Swept
from cloud_bridge.store.reading import SqlReader
from cloud_bridge.store.writing import Range, SqlRow
from cloud_bridge.values import Intake, Outcome, StreamKey

log = structlog.get_logger()

T = TypeVar("T")

_CONNECT_SECONDS: Final = 5
_MIGRATION_LOCK: Final = 0x51_1C_E5
"""Key of the advisory lock under which one process makes the tables while the others wait."""

_REFUSED: Final = (psycopg.DataError, psycopg.IntegrityError, psycopg.ProgrammingError, psycopg.NotSupportedError)

_COLUMNS: Final = "(stream, seq, kind, pipeline, recorded_at_ns, received_at_ns, body, blob)"
_COPY: Final = f"COPY stream_records {_COLUMNS} FROM STDIN (FORMAT BINARY)"
_INSERT: Final = (
    f"INSERT INTO stream_records {_COLUMNS} VALUES (%s, %s, %s, %s, %s, %s, %s, %s)"  # noqa: S608  # constants
    " ON CONFLICT (stream, seq) DO NOTHING"
)
_RECORD_TYPES: Final = ("int8", "int8", "text", "text", "int8", "int8", "bytea", "bytea")


class PostgresStore(SqlReader):
    """Reads and writes a store in PostgreSQL."""

    def __init__(self, url: str, password: str | None = None, connections: int = 8) -> None:
        """Prepare; nothing is connected before the first call.

        Raises:
            StoreError: the address cannot be read.
        """
        try:
            self._where = psycopg.conninfo.conninfo_to_dict(url)
        except psycopg.ProgrammingError as error:
            raise StoreError(f"the address of the store cannot be read: {error}") from error
        self._ready = False
        self._ready_lock = threading.Lock()
        extra = {"password": password} if password is not None else {}
        self._pool: ConnectionPool[psycopg.Connection[SqlRow]] = ConnectionPool(
            url,
            min_size=1,
            max_size=connections,
            open=False,
            timeout=_CONNECT_SECONDS,
            kwargs={"connect_timeout": _CONNECT_SECONDS, "application_name": "cloud-bridge", **extra},
            configure=_configure,
            check=ConnectionPool.check_connection,
            name="store",
        )

    @property
    def _name(self) -> str:
        return f"postgresql://{self._where.get('host', '')}/{self._where.get('dbname', '')}"

    def open(self) -> None:
        """Connect and make the tables now.

        Raises:
            StoreError: the database cannot be reached or used.
        """
        self._with(lambda _: None)

    # ---- Reader ------------------------------------------------------------------------------------

    def _rows(self, sql: str, parameters: Sequence[Any] = ()) -> list[SqlRow]:
        return self._with(lambda connection: connection.execute(_marked(sql), parameters).fetchall())

    def change_counter(self) -> int:
        """See Reader."""
        ((value,),) = self._rows("SELECT last_value FROM changes")
        return int(value)

    def size_bytes(self) -> int:
        """See Reader."""
        ((size,),) = self._rows("SELECT pg_database_size(current_database())")
        return int(size)

    # ---- Store -------------------------------------------------------------------------------------

    def ingest(self, intake: Intake) -> Outcome:
        """See Store."""
        return self._write(lambda tx: writing.write(tx, intake))

    def settle(self, letter_id: int, intake: Intake | None = None) -> Outcome:
        """See Store."""
        return self._write(lambda tx: writing.settle(tx, letter_id, intake))

    def sweep(self, before_ns: Mapping[str, int], dead_letters_before_ns: int, limit: int) -> Swept:
        """See Store."""
        return self._write(lambda tx: writing.sweep(tx, before_ns, dead_letters_before_ns, limit))

    def tidy(self) -> None:
        """See Store. Left to autovacuum."""

    def close(self) -> None:
        """See Store."""
        self._pool.close()

    def _write(self, work: Callable[["_PostgresTransaction"], T]) -> T:
        def transact(connection: psycopg.Connection[SqlRow]) -> T:
            result = work(_PostgresTransaction(connection))
            connection.execute("SELECT nextval('changes')")
            return result

        return self._with(transact)

    def _with(self, work: Callable[[psycopg.Connection[SqlRow]], T]) -> T:
        """Run work in one transaction on a connection of the pool."""
        try:
            if not self._ready:
                self._prepare()
            with self._pool.connection() as connection:
                return work(connection)
        except _REFUSED as error:
            raise StoreRefusedError(f"{self._name}: {error}") from error
        except (OverflowError, UnicodeError, ValueError) as error:
            raise StoreRefusedError(f"{self._name}: {error}") from error
        except (PoolTimeout, PoolClosed) as error:
            raise StoreError(f"{self._name}: cannot be reached: {error}") from error
        except psycopg.Error as error:
            raise StoreError(f"{self._name}: {str(error).strip()}") from error

    def _prepare(self) -> None:
        with self._ready_lock:
            if self._ready:
                return
            self._pool.open()
            with self._pool.connection() as connection:
                _migrate(connection)
                ((fsync,),) = connection.execute("SHOW fsync").fetchall()
            if fsync != "on":
                log.error(
                    "store_not_durable", store=self._name, fsync=fsync, remedy="set fsync = on in postgresql.conf"
                )
            self._ready = True


def _configure(connection: psycopg.Connection[SqlRow]) -> None:
    # A record is acknowledged to a device after the commit, so the commit must have reached the disk.
    connection.execute("SET synchronous_commit TO on")
    connection.execute("SET idle_in_transaction_session_timeout TO '60s'")
    connection.commit()


def _migrate(connection: psycopg.Connection[SqlRow]) -> None:
    connection.execute("SELECT pg_advisory_xact_lock(%s)", (_MIGRATION_LOCK,))
    connection.execute("CREATE TABLE IF NOT EXISTS sluice_schema (version INTEGER NOT NULL)")
    ((done,),) = connection.execute("SELECT coalesce(max(version), 0) FROM sluice_schema").fetchall()
    if done > len(schema.POSTGRES):
        raise StoreError(f"the database was made by a newer version (schema {done}); install that version")
    for version, statements in enumerate(schema.POSTGRES[done:], start=done + 1):
        for statement in statements:
            connection.execute(statement)
        connection.execute("INSERT INTO sluice_schema (version) VALUES (%s)", (version,))


def _marked(sql: str) -> str:
    return sql.replace("?", "%s")


_INSERT_VALUES: Final = re.compile(
    r"INSERT INTO (?P<table>\w+) \((?P<columns>[\w, ]+)\) VALUES \([?, ]+\)(?P<rest>.*)", re.S
)
_TYPES: Final = {
    **dict.fromkeys(("gateway", "epoch", "class", "source", "reason", "state", "at", "version", "pipeline"), "text"),
    **dict.fromkeys(("event_id", "label", "phase", "evidence_id", "content_type", "digest", "topic", "detail"), "text"),
    **dict.fromkeys(("status", "body", "payload"), "bytea"),
}
"""Columns that are no numbers."""

_WANTED: Final = "unnest(%s::text[], %s::text[], %s::text[]) AS w(gateway, epoch, class)"
_LOCK_STREAMS: Final = (
    f"SELECT s.gateway, s.epoch, s.class, s.id FROM streams s JOIN {_WANTED} USING (gateway, epoch, class)"  # noqa: S608  # constants
    " ORDER BY s.gateway, s.epoch, s.class FOR UPDATE OF s"
)
_MAKE_STREAMS: Final = (
    f"INSERT INTO streams (gateway, epoch, class) SELECT * FROM {_WANTED}"  # noqa: S608  # constants
    " ORDER BY gateway, epoch, class ON CONFLICT DO NOTHING"
)
_OVER: Final = (
    " FROM unnest(%s::bigint[], %s::bigint[], %s::bigint[]) AS w(stream, lowest, highest)"
    " JOIN {table} t ON t.stream = w.stream AND t.first <= w.highest AND t.last >= w.lowest AND t.first >="
    " coalesce((SELECT max(b.first) FROM {table} b WHERE b.stream = w.stream AND b.first <= w.lowest), 0)"
)


class _PostgresTransaction:
    """See writing.Transaction."""

    def __init__(self, connection: psycopg.Connection[SqlRow]) -> None:
        self._connection = connection

    def rows(self, sql: str, parameters: Sequence[Any] = ()) -> list[SqlRow]:
        return self._connection.execute(_marked(sql), parameters).fetchall()

    def change(self, sql: str, parameters: Sequence[Any] = ()) -> int:
        return self._connection.execute(_marked(sql), parameters).rowcount

    def change_many(self, sql: str, parameters: Sequence[Sequence[Any]]) -> None:
        if not parameters:
            return
        with self._connection.cursor() as cursor:
            insert = _INSERT_VALUES.match(sql)
            if insert is None:
                cursor.executemany(_marked(sql), parameters)
                return
            # One statement for all rows: each column travels as an array.
            arrays = ", ".join(f"%b::{_TYPES.get(name, 'bigint')}[]" for name in insert["columns"].split(", "))
            cursor.execute(
                # The parts come from the statements of this program.
                f"INSERT INTO {insert['table']} ({insert['columns']}) SELECT * FROM unnest({arrays}){insert['rest']}",  # noqa: S608
                [list(column) for column in zip(*parameters, strict=True)],
            )

    def open_streams(self, keys: Sequence[StreamKey]) -> dict[StreamKey, int]:
        columns = [list(column) for column in zip(*keys, strict=True)]
        found = self._connection.execute(_LOCK_STREAMS, columns).fetchall()
        if len(found) < len(keys):
            self._connection.execute(_MAKE_STREAMS, columns)
            found = self._connection.execute(_LOCK_STREAMS, columns).fetchall()
        return {StreamKey(*row[:3]): row[3] for row in found}

    def spans_over(self, ranges: Sequence[Range]) -> list[SqlRow]:
        return self._over("SELECT t.stream, t.first, t.last" + _OVER.format(table="stream_spans"), ranges)

    def gaps_over(self, ranges: Sequence[Range]) -> list[SqlRow]:
        return self._over(
            "SELECT t.stream, t.first, t.last, t.source, t.reason" + _OVER.format(table="stream_gaps"), ranges
        )

    def _over(self, sql: str, ranges: Sequence[Range]) -> list[SqlRow]:
        return self._connection.execute(sql, [list(column) for column in zip(*ranges, strict=True)]).fetchall()

    def insert_records(self, rows: Sequence[SqlRow]) -> int:
        try:
            with self._connection.transaction(), self._connection.cursor() as cursor:
                with cursor.copy(_COPY) as copy:
                    copy.set_types(_RECORD_TYPES)
                    for row in rows:
                        copy.write_row(row)
                return len(rows)
        except pg.UniqueViolation:
            # The spans say that it is new and the key says that it is not: the key is right, and one by one will do.
            with self._connection.cursor() as cursor:
                cursor.executemany(_INSERT, rows)
                return cursor.rowcount
