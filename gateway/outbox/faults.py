"""What can go wrong with the store, told apart by who must act on it."""

import errno
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from gateway.errors import OutboxError

_UNREADABLE: Final = frozenset(
    {sqlite3.SQLITE_IOERR_READ, sqlite3.SQLITE_IOERR_SHORT_READ, sqlite3.SQLITE_IOERR_CORRUPTFS}
)
_NO_INDEX: Final = frozenset(
    {
        sqlite3.SQLITE_IOERR_SHMSIZE,
        sqlite3.SQLITE_IOERR_SHMOPEN,
        sqlite3.SQLITE_IOERR_SHMMAP,
        sqlite3.SQLITE_CANTOPEN,
    }
)
_PASSING: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EACCES, errno.EPERM})
_CORRUPT: Final = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_FORMAT})


class StoreFullError(OutboxError):
    """The disk or the page quota has no room for this transaction; making room may help."""


class DamagedStoreError(OutboxError):
    """The file is not a store any more; only a new one helps."""


class NewerStoreError(OutboxError):
    """The file is whole, and of a version that this program must not write to; a newer program goes on with it."""


class StoreFaultError(OutboxError):
    """The disk failed. What was being committed is uncertain; nothing more may be acknowledged on this connection."""


class StoreClosedError(StoreFaultError):
    """The store was closed or replaced meanwhile."""


@contextmanager
def translated(file: Path) -> Iterator[None]:
    """Turn errors of sqlite3 into errors of the outbox.

    Raises:
        StoreFullError: SQLITE_FULL.
        DamagedStoreError: malformed, encrypted or not a database.
        StoreFaultError: everything else, SQLITE_IOERR above all.
    """
    try:
        yield
    except sqlite3.Error as error:
        raise fault_of(error, file) from error


def fault_of(error: sqlite3.Error, file: Path) -> OutboxError:
    """Choose the error of the outbox that an error of sqlite3 stands for."""
    code: int = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR)
    name: str = getattr(error, "sqlite_errorname", type(error).__name__)
    match code & 0xFF:
        case sqlite3.SQLITE_FULL:
            return StoreFullError(f"{file}: no room ({name}): free space on its file system or raise the quotas")
        case primary if primary in _CORRUPT:
            return DamagedStoreError(f"{file}: {error} ({name})")
        case sqlite3.SQLITE_BUSY | sqlite3.SQLITE_LOCKED:
            return StoreFaultError(f"{file}: another program has locked it ({name}): close that program")
        case _:
            return StoreFaultError(f"{file}: {error} ({name}): check the disk; the store must be opened again")


def unreadable(error: OutboxError) -> bool:
    """Tell whether an error means sectors that cannot be read: at start-up as good as damage."""
    return getattr(error.__cause__, "sqlite_errorcode", 0) in _UNREADABLE


def lacks_index(error: OutboxError) -> bool:
    """Tell whether an error means that the index of the log could not be made beside the file."""
    return getattr(error.__cause__, "sqlite_errorcode", 0) in _NO_INDEX


def may_pass(error: OutboxError) -> bool:
    """Tell whether a store may be opened later, when the disk, its room, its owner or the program is another."""
    cause = error.__cause__
    return isinstance(error, StoreFullError | StoreFaultError | NewerStoreError) or (
        isinstance(cause, OSError) and cause.errno in _PASSING
    )
