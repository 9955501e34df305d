"""The partitions of PostgreSQL: one for each class and month of receipt (UTC).

They are made ahead, and in any case before the first record that needs one; retention drops them whole. Records of a
store made before there were partitions stand in one more, `stream_records_legacy`, until retention has emptied it.

A partition is made beside the table and then attached, which neither readers nor writers wait for. Dropping one
needs the table for itself for an instant; when a long query has it, the drop gives up and comes again next time.
"""

# ruff: noqa: S608  # the texts are put together from names made here; values travel as parameters only

import re
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any, Final

import psycopg
import structlog
from psycopg import errors as pg

from cloud_bridge.store.base import Limits
from gateway.wire.messages import CLASSES

log = structlog.get_logger()

Connection = psycopg.Connection[tuple[Any, ...]]
Month = int
"""Months since the year 0, UTC: year * 12 + month - 1."""

Part = tuple[int, Month]
"""The class, by its place in `CLASSES`, and the month."""

LEGACY: Final = "stream_records_legacy"
MAKE_LOCK: Final = 0x51_1C_E6
"""Key of the advisory lock under which partitions are made."""

_AHEAD: Final = 2
_DROP_WAIT: Final = "2s"
_NAME: Final = re.compile(r"stream_records_(\w+)_(\d{4,})(\d\d)")


def month_of(at_ns: int) -> Month:
    """Return the month of a time."""
    at = datetime.fromtimestamp(at_ns // 1_000_000_000, UTC)
    return at.year * 12 + at.month - 1


def starts_ns(month: Month) -> int:
    """Return when a month begins."""
    year, index = divmod(month, 12)
    return int(datetime(year, index + 1, 1, tzinfo=UTC).timestamp()) * 1_000_000_000


def month_starts_ns(at_ns: int) -> int:
    """Return when the month of a time begins."""
    return starts_ns(month_of(max(at_ns, 0)))


def name_of(part: Part) -> str:
    """Name the table of a partition, e.g. `stream_records_event_202601`."""
    year, index = divmod(part[1], 12)
    return f"stream_records_{CLASSES[part[0]]}_{year:04}{index + 1:02}"


def present(connection: Connection) -> set[Part]:
    """Return the partitions that are attached."""
    rows = connection.execute(
        "SELECT c.relname FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid"
        " JOIN pg_class p ON p.oid = i.inhparent WHERE p.relname = ANY(%s)",
        ([f"stream_records_{name}" for name in CLASSES],),
    ).fetchall()
    found = (_NAME.fullmatch(name) for (name,) in rows)
    return {
        (CLASSES.index(match[1]), int(match[2]) * 12 + int(match[3]) - 1)
        for match in found
        if match and match[1] in CLASSES
    }


def ahead(now_ns: int) -> set[Part]:
    """Return the partitions that should be there now."""
    month = month_of(now_ns)
    return {(at, month + later) for at in range(len(CLASSES)) for later in range(_AHEAD + 1)}


def make(connection: Connection, wanted: Iterable[Part]) -> None:
    """Make the partitions that are missing, inside the present transaction."""
    connection.execute("SELECT pg_advisory_xact_lock(%s)", (MAKE_LOCK,))
    for part in sorted(set(wanted) - present(connection)):
        table, parent = name_of(part), f"stream_records_{CLASSES[part[0]]}"
        for statement in (
            f"CREATE TABLE {table} (LIKE stream_records INCLUDING DEFAULTS)",
            f"CREATE UNIQUE INDEX {table}_key ON {table} (stream, seq)",
            f"CREATE UNIQUE INDEX {table}_id ON {table} (id)",
            f"CREATE INDEX {table}_line ON {table} (stream, kind, pipeline, id)",
            f"ALTER TABLE {parent} ATTACH PARTITION {table} FOR VALUES IN ({part[1]})",
        ):
            connection.execute(statement)


def due(connection: Connection, limits: Limits, through: int) -> list[Part]:
    """Return the partitions that may be dropped: wholly before their time, and rolled up."""
    found = []
    for part in sorted(present(connection)):
        before_ns = limits.before_ns.get(CLASSES[part[0]])
        if before_ns is None or starts_ns(part[1] + 1) > before_ns:
            continue
        rows = connection.execute(
            f"SELECT coalesce((SELECT id FROM {name_of(part)} ORDER BY id DESC LIMIT 1), 0)"
        ).fetchall()
        if rows[0][0] <= through:
            found.append(part)
    return found


def drop(connection: Connection, part: Part) -> int:
    """Drop a partition inside the present transaction; return how many records went, 0 if it must wait."""
    table = name_of(part)
    try:
        with connection.transaction():
            connection.execute(f"SET LOCAL lock_timeout = '{_DROP_WAIT}'")
            # Nothing is written into a month that is over; this makes sure of it while the rows are counted.
            connection.execute(f"LOCK TABLE {table} IN SHARE MODE")
            counted = connection.execute(f"SELECT stream, count(*) FROM {table} GROUP BY stream").fetchall()
            gone = [list(column) for column in zip(*counted, strict=True)] or [[], []]
            # In the order of those who write them, and only now: they wait for the rest of this transaction.
            connection.execute(
                "SELECT id FROM streams WHERE id = ANY(%s) ORDER BY gateway, epoch, class FOR UPDATE", (gone[0],)
            )
            connection.execute(
                "UPDATE streams SET deleted = deleted + n FROM unnest(%s::bigint[], %s::bigint[]) AS gone(stream, n)"
                " WHERE gone.stream = streams.id",
                gone,
            )
            connection.execute(
                f"DELETE FROM evidence e USING {table} r WHERE r.stream = e.stream AND r.seq = e.seq"
                " AND r.kind = 'evidence'"
            )
            connection.execute(f"DROP TABLE {table}")
            connection.execute("SET LOCAL lock_timeout = DEFAULT")
    except pg.LockNotAvailable as error:
        log.warning("partition_in_use", partition=table, error=str(error).strip(), consequence="dropped next time")
        return 0
    removed = sum(int(count) for _, count in counted)
    log.info("partition_dropped", partition=table, records=removed)
    return removed


def drop_legacy_if_empty(connection: Connection) -> None:
    """Let go of the partition of the older layout once nothing is in it."""
    rows = connection.execute("SELECT to_regclass(%s) IS NOT NULL", (LEGACY,)).fetchall()
    if rows[0][0] and not connection.execute(f"SELECT 1 FROM {LEGACY} LIMIT 1").fetchall():
        try:
            with connection.transaction():
                connection.execute(f"SET LOCAL lock_timeout = '{_DROP_WAIT}'")
                connection.execute(f"DROP TABLE {LEGACY}")
                connection.execute("SET LOCAL lock_timeout = DEFAULT")
        except pg.LockNotAvailable:
            log.info("partition_in_use", partition=LEGACY)
