"""Looks into a store from outside, for a technician: of a running gateway, of one that is off, or on a USB stick.

Nothing here writes. A store of a running gateway is read beside it.
"""

import base64
import sqlite3
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import msgspec

from gateway.config import DEFAULT_QUOTAS
from gateway.errors import OutboxError
from gateway.outbox.ages import Clocks, SavedAge, resumed_age_ms
from gateway.outbox.damage import check_contents, check_header, side
from gateway.outbox.faults import translated
from gateway.outbox.quota import Quotas
from gateway.outbox.readers import connect_read_only
from gateway.outbox.schema import TABLES
from gateway.outbox.stats import ClassStats, OutboxStats
from gateway.wire.messages import CLASSES, RecordClass


class ExportedRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One line of an export: the key of the record, and the record. The blob is base64."""

    gateway: str
    epoch: str
    record_class: RecordClass = msgspec.field(name="class")
    seq: int
    kind: str
    recorded_at_ns: int
    body: msgspec.Raw
    blob: str = ""


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
    return OutboxStats(
        epoch=meta["epoch"],
        classes=classes,
        file_bytes=file.stat().st_size,
        wal_bytes=side(file, "-wal").stat().st_size if side(file, "-wal").exists() else 0,
        ballast=side(file, ".ballast").exists(),
    )


def export_ndjson(
    file: Path,
    out: BinaryIO,
    classes: Collection[RecordClass] = CLASSES,
    *,
    gateway: str = "",
    progress: Callable[[int], None] | None = None,
) -> int:
    """Write one line of JSON for each record, class by class in order; return how many.

    Every class is read in short transactions, so a running gateway is not held up; records that go meanwhile are left
    out, records that come are included.

    Raises:
        OutboxError: not a store, or it cannot be read to its end; what was written by then is whole lines.
    """
    encoder = msgspec.json.Encoder()
    written = 0
    with _opened(file) as db, translated(file):
        (epoch,) = db.execute("SELECT value FROM meta WHERE name = 'epoch'").fetchone()
        for name in CLASSES:
            if name not in classes:
                continue
            for chunk in _chunks(db, name):
                out.writelines(
                    encoder.encode(
                        ExportedRecord(
                            gateway=gateway,
                            epoch=epoch,
                            record_class=name,
                            seq=seq,
                            kind=kind,
                            recorded_at_ns=at_ns,
                            body=msgspec.Raw(body),
                            blob=base64.b64encode(blob).decode("ascii"),
                        )
                    )
                    + b"\n"
                    for seq, kind, at_ns, body, blob in chunk
                )
                written += len(chunk)
                if progress is not None:
                    progress(written)
    return written


def _chunks(db: sqlite3.Connection, record_class: RecordClass) -> Iterator[list[tuple[int, str, int, bytes, bytes]]]:
    query = (
        f"SELECT seq, kind, recorded_at_ns, body, blob FROM {TABLES[record_class]} "  # noqa: S608  # own names only
        "WHERE seq > ? ORDER BY seq LIMIT 200"
    )
    after = 0
    while chunk := db.execute(query, (after,)).fetchall():
        after = chunk[-1][0]
        yield chunk


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
        if side(file, "-wal").exists():
            raise
        return connect_read_only(file, {"immutable": "1"})
    return db


def _now_ms(meta: dict[str, str], clocks: Clocks) -> int | None:
    try:
        saved = msgspec.json.decode(meta["age"], type=SavedAge)
    except (KeyError, msgspec.DecodeError):
        return None
    return resumed_age_ms(saved, clocks.read())
