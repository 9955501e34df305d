"""The store in a PostgreSQL database, for any number of bridge processes.

Two processes that write the same stream wait for each other at its row in `streams`; everything that decides about
duplicates happens behind that lock, and is written in tables that know no months. So a record that is sent again in
another month is a duplicate like any other, also when its month has been dropped. The database may be away when the
bridge starts, and at any time later.
"""

import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Final, TypeVar

import psycopg
import structlog
from psycopg import errors as pg
from psycopg_pool import ConnectionPool, PoolClosed, PoolTimeout

from cloud_bridge.errors import StoreError, StoreRefusedError
from cloud_bridge.store import checking, partitions, schema, sweeping, writing
from cloud_bridge.store.base import Limits, Swept
from cloud_bridge.store.folding import Folding
from cloud_bridge.store.keys import Keys
from cloud_bridge.store.lines import Rows
from cloud_bridge.store.writing import Range, SqlRow
from cloud_bridge.values import Intake, Outcome, StreamKey, Violation
from gateway.wire.messages import CLASSES

log = structlog.get_logger()

T = TypeVar("T")

_CONNECT_SECONDS: Final = 5
_MIGRATION_LOCK: Final = 0x51_1C_E5
"""Key of the advisory lock under which one process makes the tables while the others wait."""

_REFUSED: Final = (
    *(psycopg.DataError, psycopg.IntegrityError, psycopg.ProgrammingError, psycopg.NotSupportedError),
    pg.ProgramLimitExceeded,  # such as a key that is too long for an index
)
_NOT_SET_UP: Final = "42"
"""SQLSTATEs that begin so are about tables and rights: no fault of what is written."""

_WRITERS_LOCK: Final = 0x51_1C_E7
"""Key of the advisory lock that writers of records share: who has it alone knows that no id below is still to come."""

_COLUMNS: Final = "(stream, seq, kind, pipeline, recorded_at_ns, received_at_ns, body, blob, class, month)"
_COPY: Final = f"COPY stream_records {_COLUMNS} FROM STDIN (FORMAT BINARY)"
_INSERT: Final = (
    f"INSERT INTO stream_records {_COLUMNS} VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s)"  # noqa: S608  # constants
    " ON CONFLICT DO NOTHING"
)
_RECORD_TYPES: Final = ("int8", "int8", "text", "text", "int8", "int8", "bytea", "bytea", "int2", "int4")


class PostgresStore(Folding):
    """Reads and writes a store in PostgreSQL."""

    def __init__(
        self,
        url: str,
        password: str | None = None,
        connections: int = 8,
        *,
        whole_months: bool = True,
        wall_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        """Prepare; nothing is connected before the first call.

        With `whole_months` retention drops a month once all of it is due; else it removes rows on the day.

        Raises:
            StoreError: the address cannot be read.
        """
        try:
            self._where = psycopg.conninfo.conninfo_to_dict(url)
        except psycopg.ProgrammingError as error:
            raise StoreError(f"the address of the store cannot be read: {error}") from error
        self._whole_months = whole_months
        self._wall_ns = wall_ns
        self._parts: set[partitions.Part] = set()
        self._ready = False
        self._ready_lock = threading.Lock()
        extra = {"password": password} if password is not None else {}
        self._pool: ConnectionPool[psycopg.Connection[SqlRow]] = ConnectionPool(
            url,
            min_size=1,
            max_size=connections,
            open=False,
            timeout=_CONNECT_SECONDS,
            kwargs={
                "connect_timeout": _CONNECT_SECONDS,
                "application_name": "cloud-bridge",
                "client_encoding": "utf8",  # whatever PGCLIENTENCODING says
                **extra,
            },
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

    def _horizon(self) -> int:
        def wait_for_writers(connection: psycopg.Connection[SqlRow]) -> int:
            connection.execute("SET LOCAL lock_timeout = '5s'")
            connection.execute("SELECT pg_advisory_xact_lock(%s)", (_WRITERS_LOCK,))
            rows = connection.execute(
                "SELECT CASE WHEN is_called THEN last_value ELSE 0 END FROM record_ids"
            ).fetchall()
            return int(rows[0][0])

        return self._with(wait_for_writers)

    @contextmanager
    def _snapshot(self) -> Iterator[Rows]:
        def rows(sql: str, parameters: Sequence[Any] = ()) -> list[SqlRow]:
            return connection.execute(_marked(sql), parameters).fetchall()

        self.open()
        with self._translated(), self._pool.connection() as connection:
            connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
            yield rows

    def check(self, *, hours_from_s: int = 0) -> list[Violation]:
        """See Reader."""
        with self._snapshot() as rows:
            return checking.check(rows, self._keys, hours_from_s=hours_from_s)

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

    def forget(self, gateway: str) -> bool:
        """See Store."""
        return self._write(lambda tx: writing.forget(tx, gateway))

    def sweep(self, limits: Limits, limit: int) -> Swept:
        """See Store. Of whole months one is dropped at a time; what is left of an older layout goes row by row."""
        if not self._whole_months:
            return self._write(lambda tx: sweeping.sweep(tx, limits, limit))
        floored = {name: partitions.month_starts_ns(before_ns) for name, before_ns in limits.before_ns.items()}
        limits = replace(limits, before_ns=floored)

        def work(tx: "_PostgresTransaction") -> Swept:
            through = sweeping.rolled_through(tx, limits)
            swept = Swept()
            for part in partitions.due(tx.connection, limits, through)[:1]:
                swept += Swept(records=partitions.drop(tx.connection, part))
                self._parts.discard(part)
            if tx.rows("SELECT to_regclass(?) IS NOT NULL", (partitions.LEGACY,))[0][0]:
                swept += Swept(records=sweeping.sweep_records(tx, limits, limit, partitions.LEGACY))
            return swept + sweeping.sweep_others(tx, limits, limit)

        return self._write(work)

    def tidy(self) -> None:
        """See Store. Freed pages are left to autovacuum; the partitions of the next months are made."""

        def work(connection: psycopg.Connection[SqlRow]) -> None:
            wanted = partitions.ahead(self._wall_ns())
            if wanted - partitions.present(connection):
                partitions.make(connection, wanted)
            partitions.drop_legacy_if_empty(connection)

        self._with(work)

    def close(self) -> None:
        """See Store."""
        self._pool.close()

    def _write(self, work: "Callable[[_PostgresTransaction], T]") -> T:
        def transact(connection: psycopg.Connection[SqlRow]) -> T:
            result = work(_PostgresTransaction(connection, self._parts))
            connection.execute("SELECT nextval('changes')")
            return result

        return self._with(transact)

    def _with(self, work: Callable[[psycopg.Connection[SqlRow]], T]) -> T:
        """Run work in one transaction on a connection of the pool."""
        with self._translated():
            if not self._ready:
                self._prepare()
            with self._pool.connection() as connection:
                return work(connection)

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except _REFUSED as error:
            if (error.sqlstate or "").startswith(_NOT_SET_UP):
                raise StoreError(f"{self._name}: {error}") from error
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
                _check_encoding(connection)
                _migrate(connection)
                partitions.make(connection, partitions.ahead(self._wall_ns()))
                self._parts.update(partitions.present(connection))
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


def _check_encoding(connection: psycopg.Connection[SqlRow]) -> None:
    """Refuse a database that cannot hold every name and label: it would turn good records into dead letters."""
    ((encoding,),) = connection.execute("SHOW server_encoding").fetchall()
    if isinstance(encoding, bytes):
        encoding = encoding.decode("ascii", "replace")  # what psycopg gives of a database in SQL_ASCII
    if encoding != "UTF8":
        raise StoreError(
            f"the database has the encoding {encoding}, and a store needs UTF8: make another one with"
            " `createdb --encoding=UTF8 --template=template0 NAME`, and name it in store.url"
        )


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
    **dict.fromkeys(("kind",), "text"),
    **dict.fromkeys(("status", "body", "payload"), "bytea"),
    **dict.fromkeys((name for name in schema.ROLLUP_SUMS if name.endswith("_sum")), "float8"),
    **dict.fromkeys((*schema.ROLLUP_LOWEST, *schema.ROLLUP_HIGHEST), "float8"),
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

    keys = Keys()

    def __init__(self, connection: psycopg.Connection[SqlRow], parts: set[partitions.Part]) -> None:
        self.connection = self._connection = connection
        self._parts = parts  # that are there, as far as this process knows
        self._classes: dict[int, int] = {}

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
        self._classes.update({row[3]: CLASSES.index(row[2]) for row in found})
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
        self._connection.execute("SELECT pg_advisory_xact_lock_shared(%s)", (_WRITERS_LOCK,))
        months = {at_ns: partitions.month_of(at_ns) for at_ns in {row[5] for row in rows}}
        placed = [(*row, self._classes[row[0]], months[row[5]]) for row in rows]
        wanted = {(row[8], row[9]) for row in placed}
        if not wanted <= self._parts:
            self._make(wanted)
        try:
            return self._copy(placed)
        except pg.CheckViolation:
            # Another process has dropped a month that this one's clock believes to be the present one.
            self._make(wanted)
            return self._copy(placed)

    def _make(self, wanted: set[partitions.Part]) -> None:
        partitions.make(self._connection, wanted)
        self._parts.clear()
        self._parts.update(partitions.present(self._connection))

    def _copy(self, rows: Sequence[SqlRow]) -> int:
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
