"""Tells a usable store from a damaged one, whatever the backlog at the same small cost."""

import errno
import os
import sqlite3
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from gateway.errors import OutboxError
from gateway.outbox.faults import DamagedStoreError, NewerStoreError, translated
from gateway.outbox.schema import APPLICATION_ID, COLUMNS, MIGRATIONS, PAGE_BYTES, READABLE_KEY, TABLES

HEADER: Final = b"SQLite format 3\0"
SIDES: Final = ("-wal", "-shm")

_PASSING: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EINTR, errno.EAGAIN})
"""Errors of the process or the machine, not of the file: a store is not put aside for these."""

_LAST_VERSION: Final = 9999
"""No program will ever make that many: a version beyond is damage."""

_WAL_MAGIC: Final = frozenset({0x377F0682, 0x377F0683})
_WAL_VERSION: Final = 3007000


def check_header(file: Path) -> None:
    """Look at the first bytes before SQLite sees the file.

    Raises:
        DamagedStoreError: empty, too short, or not SQLite.
        OutboxError: it is another user's, or this process cannot open any file now; nothing is said about this one.
    """
    try:
        with file.open("rb") as stream:
            head = stream.read(100)
    except OSError as error:
        message = f"{file}: cannot be read: {error.strerror}"
        if isinstance(error, PermissionError):
            raise OutboxError(
                f"{message}: give it to the gateway's user: chown --reference={file.parent} {file}*"
            ) from error
        if error.errno in _PASSING:
            raise OutboxError(message) from error
        raise DamagedStoreError(message) from error
    if len(head) < 100 or not head.startswith(HEADER):
        raise DamagedStoreError(f"{file}: not a SQLite database (it begins with {head[:16]!r})")
    if struct.unpack(">H", head[16:18]) != (PAGE_BYTES,):
        raise DamagedStoreError(f"{file}: the page size is not {PAGE_BYTES}")
    size = file.stat().st_size
    # A crash during a checkpoint may leave half a page, but then the WAL holds it whole.
    if size % PAGE_BYTES and wal_is_lost(file):
        raise DamagedStoreError(f"{file}: {size} bytes are no whole pages: the file was cut off")


def check_contents(db: sqlite3.Connection, file: Path) -> None:
    """Check what a store must have: identity, version, tables, books, and both ends of every class.

    Raises:
        DamagedStoreError: something of it is missing or cannot be read.
        NewerStoreError: a newer program has made it, of which this one knows too little.
    """
    with translated(file):
        (application,) = db.execute("PRAGMA application_id").fetchone()
        (version,) = db.execute("PRAGMA user_version").fetchone()
        if application != APPLICATION_ID:
            raise DamagedStoreError(f"{file}: a database, but not an outbox (application id {application:#x})")
        if not 1 <= version <= _LAST_VERSION:
            raise DamagedStoreError(f"{file}: schema version {version}; this program knows 1 to {len(MIGRATIONS)}")
        if version > len(MIGRATIONS):
            _check_readable(db, file, version)
    if version >= len(MIGRATIONS):
        check_tables(db, file)


def _check_readable(db: sqlite3.Connection, file: Path, version: int) -> None:
    """Check that the newer program which has made a store lets this one go on with it; errors as `check_contents`."""
    if db.execute("SELECT 1 FROM sqlite_schema WHERE name = 'meta'").fetchone() is None:
        raise DamagedStoreError(f"{file}: no table meta")
    found = db.execute("SELECT value FROM meta WHERE name = ?", (READABLE_KEY,)).fetchone()
    if found is None or not str(found[0]).isdecimal() or int(found[0]) > len(MIGRATIONS):
        raise NewerStoreError(
            f"{file}: made by a newer version of this program (schema {version}; this one knows 1 to "
            f"{len(MIGRATIONS)}); its records are kept: install that version again, or move the file away"
        )


def check_tables(db: sqlite3.Connection, file: Path) -> None:
    """Check tables and books of a store of the present version, or a newer one; errors as `check_contents`."""
    try:
        with translated(file):
            for name in ("meta", "totals"):
                (verdict,) = db.execute(f"PRAGMA quick_check('{name}')").fetchone()
                if verdict != "ok":
                    raise DamagedStoreError(f"{file}: table {name}: {verdict}")
            books = {name for (name,) in db.execute("SELECT class FROM totals WHERE rows >= 0 AND bytes >= 0")}
            if not books >= set(TABLES):  # a newer program may know more classes
                raise DamagedStoreError(f"{file}: the books name the classes {sorted(books)}")
            if db.execute("SELECT 1 FROM meta WHERE name = 'epoch' AND length(value) = 16").fetchone() is None:
                raise DamagedStoreError(f"{file}: no epoch")
            columns = ", ".join(COLUMNS)
            for table in TABLES.values():
                for order in ("ASC", "DESC"):
                    db.execute(f"SELECT {columns} FROM {table} ORDER BY seq {order} LIMIT 1").fetchone()  # noqa: S608
    except DamagedStoreError:
        raise
    except OutboxError as error:  # a missing table or column, or a sector that cannot be read
        raise DamagedStoreError(str(error)) from error


def deep_check(
    file: Path, begins: Callable[[sqlite3.Connection], bool], options: Mapping[str, str] | None = None
) -> str | None:
    """Read the whole store; return what is wrong with it, or None. Takes time in proportion to the backlog.

    `begins` receives the connection, so that another thread can `interrupt` it; it may answer that it is too late.
    """
    try:
        words = "&".join(f"{key}={value}" for key, value in {"mode": "ro", **(options or {})}.items())
        uri = f"{file.absolute().as_uri()}?{words}"  # a name may hold what means something in a URI
        db = sqlite3.connect(uri, uri=True, isolation_level=None, check_same_thread=False)
    except sqlite3.Error:
        return None  # gone or replaced meanwhile: whoever did that has checked what there is now
    try:
        if not begins(db):
            return None
        (verdict,) = db.execute("PRAGMA quick_check(1)").fetchone()
    except sqlite3.DatabaseError as error:
        code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF
        return str(error) if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB) else None
    finally:
        db.close()
    return None if verdict == "ok" else str(verdict)


def wal_is_lost(file: Path) -> bool:
    """Tell whether the WAL is missing or has no valid header, so that what it held is gone.

    SQLite takes such a WAL for an empty one and says nothing: committed rows vanish, and their numbers would be
    given again. https://www.sqlite.org/fileformat2.html#walformat
    """
    try:
        with side(file, "-wal").open("rb") as stream:
            head = stream.read(32)
    except OSError:
        return True
    if len(head) < 32:
        return True
    words = struct.unpack(">8I", head)
    if words[0] not in _WAL_MAGIC or words[1] != _WAL_VERSION:
        return True
    return _wal_checksum(head[:24], ">" if words[0] & 1 else "<") != words[6:8]


def _wal_checksum(data: bytes, order: str) -> tuple[int, int]:
    first = second = 0
    words = struct.unpack(f"{order}{len(data) // 4}I", data)
    for even, odd in zip(words[::2], words[1::2], strict=True):
        first = (first + even + second) & 0xFFFFFFFF
        second = (second + odd + first) & 0xFFFFFFFF
    return first, second


def side(file: Path, end: str) -> Path:
    """Return the name of a file that stands beside the store, as `outbox.db-wal`."""
    return file.with_name(file.name + end)


def sync_directory(directory: Path) -> None:
    """Make renames in a directory durable."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
