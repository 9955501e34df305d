"""Tables of the store, their versions, and what a row costs on disk.

Both systems of an appliance share one store, and an update that is taken back leaves it to the older program as the
newer one has made it. So a migration only adds (tables, columns with defaults, indexes), and the store names the oldest
version whose program may go on with it.

One table for each class, so that the sequence of a class has no gaps and one contiguous mark can confirm it.
AUTOINCREMENT never gives a number again after the table was emptied; a plain INTEGER PRIMARY KEY does, and the
bridge would take the new rows for duplicates.
"""

import functools
import sqlite3
from typing import Final

from gateway.wire.messages import CLASSES, RecordClass

APPLICATION_ID: Final = 0x534C5542  # "SLUB": tells a store from a database of something else
PAGE_BYTES: Final = 4096

TABLES: Final[dict[RecordClass, str]] = {name: f"records_{name}" for name in CLASSES}

# The small columns come first: sums over them never touch the overflow pages of a large body or blob.
_RECORDS: Final = """
CREATE TABLE {table} (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    disk_bytes INTEGER NOT NULL,
    stored_ms INTEGER NOT NULL,
    recorded_at_ns INTEGER NOT NULL,
    kind TEXT NOT NULL,
    body BLOB NOT NULL,
    blob BLOB NOT NULL
)
"""

MIGRATIONS: Final[tuple[tuple[str, ...], ...]] = (
    (
        "CREATE TABLE meta (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID",
        "CREATE TABLE totals (class TEXT PRIMARY KEY, rows INTEGER NOT NULL, bytes INTEGER NOT NULL) WITHOUT ROWID",
        *(_RECORDS.format(table=table) for table in TABLES.values()),
        *(f"INSERT INTO totals VALUES ('{name}', 0, 0)" for name in CLASSES),  # noqa: S608  # own names only
    ),
)

READABLE_FROM: Final = 1
"""The oldest version whose program may read and write a store of the present one. A migration that raises it leaves a
system that falls back without its store: it must be installed twice before, so that both slots know the new version."""
READABLE_KEY: Final = "readable_from"
"""Where that stands in `meta`."""

COLUMNS: Final = ("seq", "disk_bytes", "stored_ms", "recorded_at_ns", "kind", "body", "blob")
_ROW_SLOTS: Final = ", ".join("?" * len(COLUMNS))


def migrate(db: sqlite3.Connection) -> None:
    """Apply the missing migrations, each with its version number in one transaction."""
    (done,) = db.execute("PRAGMA user_version").fetchone()
    for version, statements in enumerate(MIGRATIONS[done:], start=done + 1):
        db.execute("BEGIN IMMEDIATE")
        try:
            for statement in statements:
                db.execute(statement)
            db.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (READABLE_KEY, str(READABLE_FROM)))
            db.execute(f"PRAGMA user_version = {version}")
        except sqlite3.Error:
            db.rollback()
            raise
        db.execute("COMMIT")


@functools.cache
def insert_statement(record_class: RecordClass, rows: int) -> str:
    """Return the statement that inserts so many rows in one step.

    One step for many rows matters: each step of the sqlite3 module gives up the interpreter lock, and beside a busy
    thread taking it back costs up to 5 ms.
    """
    slots = ", ".join([f"({_ROW_SLOTS})"] * rows)
    return f"INSERT INTO {TABLES[record_class]} ({', '.join(COLUMNS)}) VALUES {slots}"  # noqa: S608  # own names only


# https://www.sqlite.org/fileformat2.html#b_tree_pages, for the usable size of 4096: a row longer than X is spilled,
# of which between M and X bytes stay on the leaf; an overflow page holds U - 4.
_LEAF: Final = PAGE_BYTES - 8
_X: Final = PAGE_BYTES - 35
_M: Final = (PAGE_BYTES - 12) * 32 // 255 - 23
_OVERFLOW: Final = PAGE_BYTES - 4
_ROW_OVERHEAD: Final = 40  # cell pointer, length, row id, record header, the integer columns


def row_disk_bytes(payload_bytes: int) -> int:
    """Return what a row of this payload (kind, body and blob) takes on disk, its share of unused space included."""
    row = payload_bytes + _ROW_OVERHEAD
    if row <= _X:
        return _share_of_leaf(row)
    local = _M + (row - _M) % _OVERFLOW
    if local > _X:
        local = _M
    pages = -(-(row - local) // _OVERFLOW)
    return _share_of_leaf(local) + pages * PAGE_BYTES


def _share_of_leaf(cell: int) -> int:
    return PAGE_BYTES // max(1, _LEAF // cell)
