"""Looks into a store from outside, for a technician: of a running gateway, of one that is off, or on a USB stick.

Nothing here writes. A store of a running gateway is read beside it.
"""

import sqlite3
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from gateway.config import DEFAULT_QUOTAS
from gateway.errors import OutboxError
from gateway.outbox.ages import Clocks, SavedAge, resumed_age_ms
from gateway.outbox.aside import held_aside
from gateway.outbox.damage import check_contents, check_header, side
from gateway.outbox.faults import translated
from gateway.outbox.logblocks import is_blank
from gateway.outbox.quota import Quotas
from gateway.outbox.readers import AS_WRITTEN, connect_read_only
from gateway.outbox.schema import TABLES
from gateway.outbox.stats import ClassStats, OutboxStats
from gateway.values import Stored
from gateway.wire.messages import CLASSES, RecordClass

_CHUNK_BYTES: Final = 4 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Chunk:
    """Consecutive records of one class."""

    epoch: str
    record_class: RecordClass
    rows: list[Stored]


def status(file: Path, quotas: Quotas | None = None, *, clocks: Clocks | None = None) -> OutboxStats:
    """Return the figures that stand in the file. Rates and queues are known to the running gateway alone.

    Raises:
        OutboxError: not a store, or it cannot be read.
    """
    limits = quotas or DEFAULT_QUOTAS
    with _opened(file) as db, translated(file):
        meta: dict[str, str] = dict(db.execute("SELECT name, value FROM meta"))
        totals = {name: (rows, size) for name, rows, size in db.execute("SELECT class, rows, bytes FROM totals")}
        sequences: dict[str, int] = dict(db.execute("SELECT name, seq FROM sqlite_sequence").fetchall())
        now_ms = _now_ms(meta, clocks or Clocks())
        classes: dict[RecordClass, ClassStats] = {}
        for name in CLASSES:
            table = TABLES[name]
            highest = sequences.get(table, 0)
            found = db.execute(f"SELECT seq, stored_ms FROM {table} ORDER BY seq LIMIT 1").fetchone()  # noqa: S608
            rows, size = totals[name]
            classes[name] = ClassStats(
                rows=rows,
                disk_bytes=size,
                max_rows=limits[name].max_rows,
                max_bytes=limits[name].max_bytes,
                lowest=found[0] if found else highest + 1,
                highest=highest,
                oldest_age_seconds=(now_ms - found[1]) / 1000 if found and now_ms is not None else None,
            )
    aside_files, aside_bytes = held_aside(file)
    return OutboxStats(
        epoch=meta["epoch"],
        classes=classes,
        file_bytes=file.stat().st_size,
        wal_bytes=side(file, "-wal").stat().st_size if side(file, "-wal").exists() else 0,
        ballast=side(file, ".ballast").exists(),
        aside_files=aside_files,
        aside_bytes=aside_bytes,
    )


def chunks_of(
    file: Path, classes: Collection[RecordClass] = CLASSES, *, since_ns: int | None = None
) -> Iterator[Chunk]:
    """Yield the records of a store, class by class in order; `since_ns` leaves out what was recorded before (UTC).

    Every chunk is read in a short transaction, so a running gateway is not held up; records that go meanwhile are left
    out, records that come are included.

    Raises:
        OutboxError: not a store, or it cannot be read to its end; what came by then is whole records.
    """
    with _opened(file) as db, translated(file):
        (epoch,) = db.execute("SELECT value FROM meta WHERE name = 'epoch'").fetchone()
        for name in CLASSES:
            if name in classes:
                for rows in _chunks(db, name, since_ns):
                    yield Chunk(epoch, name, rows)


def _chunks(db: sqlite3.Connection, record_class: RecordClass, since_ns: int | None) -> Iterator[list[Stored]]:
    query = (
        f"SELECT {AS_WRITTEN} FROM {TABLES[record_class]} "  # noqa: S608  # own names only
        "WHERE seq > ? AND recorded_at_ns >= ? ORDER BY seq LIMIT 200"
    )
    after, since = 0, -(2**63) if since_ns is None else since_ns
    while True:
        found: list[Stored] = []
        size = 0
        cursor = db.execute(query, (after, since))
        for seq, kind, *rest in cursor:
            found.append(Stored(seq, kind.decode("utf-8", "replace"), *rest))
            size += len(found[-1].body) + len(found[-1].blob)
            if size >= _CHUNK_BYTES:  # a few hundred pictures would be a lot of memory on a small board
                break
        cursor.close()
        if not found:
            return
        after = found[-1].seq
        yield found


@contextmanager
def _opened(file: Path) -> Iterator[sqlite3.Connection]:
    try:
        there = file.is_file()
    except PermissionError as error:
        raise OutboxError(f"{file}: belongs to another user; ask as root or as the gateway's user") from error
    if not there:
        raise OutboxError(f"{file}: no such file: name the outbox with outbox.file or gateway.state_directory")
    check_header(file)
    with translated(file):
        db = _connect(file)
    try:
        check_contents(db, file)
        yield db
    finally:
        db.close()


def _connect(file: Path) -> sqlite3.Connection:
    """Open for reading; on a read-only medium a store that was closed properly needs no WAL."""
    db = connect_read_only(file)
    try:
        db.execute("SELECT 1 FROM sqlite_schema LIMIT 1").fetchone()
    except sqlite3.OperationalError:
        db.close()
        if side(file, "-wal").exists() and not is_blank(side(file, "-wal")):
            raise
        return connect_read_only(file, {"immutable": "1"})
    return db


def _now_ms(meta: dict[str, str], clocks: Clocks) -> int | None:
    try:
        saved = msgspec.json.decode(meta["age"], type=SavedAge)
    except (KeyError, msgspec.DecodeError):
        return None
    return resumed_age_ms(saved, clocks.read())
