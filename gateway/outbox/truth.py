"""Forgets what memory believes about a store that was not closed, so that what is read next comes from the disk.

After a write that failed, Linux takes the page for written, reports the error once, and keeps showing the data that
the disk does not have (fsync(2); Rebello et al., "Can Applications Recover from fsync Failures?", USENIX ATC 2020).
Worse, where the failed page was the first in its block, ext4 lets it be written again with success and still shows
zeros after a power cut (seen with Linux 6.18). Whoever opens such a store, this process or the next, would build on
rows that are not there: at a power cut the log comes back without them, and SQLite lays its older pages over the
newer database.

With the pages gone, the log on the disk ends where the disk ends it, at or after the last commit that was synced
without an error, and blocks are written as new ones.
"""

import errno
import os
from pathlib import Path
from typing import Final

from gateway.outbox.faults import DamagedStoreError, StoreFaultError, StoreFullError

_INDEX_HEADER_BYTES: Final = 136  # https://www.sqlite.org/walformat.html#the_wal_index_header
_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT})


def forget(file: Path) -> None:
    """Drop a store, its log and the index of that from the page cache; does nothing where there is no log.

    Must run before this process opens a connection: closing a descriptor gives up the locks of SQLite.

    Raises:
        DamagedStoreError: the log is no file.
        StoreFaultError: the disk still fails, or the log is another user's.
        StoreFullError: it is full, and even what is in memory has no room.
    """
    wal, shm = file.with_name(file.name + "-wal"), file.with_name(file.name + "-shm")
    for name in (wal, shm):
        if name.is_dir():
            raise DamagedStoreError(f"{name}: a directory stands in its place")
    if not wal.exists():
        return
    for name in (wal, file):
        _drop(name)
    _void_index(shm)


def _drop(name: Path) -> None:
    try:
        descriptor = os.open(name, os.O_RDONLY | os.O_CLOEXEC)
        try:
            _sync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)
    except IsADirectoryError as error:
        raise DamagedStoreError(f"{name}: cannot be read: {error.strerror}") from error
    except PermissionError as error:
        raise StoreFaultError(
            f"{name}: {error.strerror}: give it to the gateway's user: chown --reference={name.parent} {name}"
        ) from error
    except OSError as error:
        if error.errno in _FULL:
            raise StoreFullError(f"{name}: {error.strerror}: free space on its file system") from error
        raise StoreFaultError(f"{name}: {error.strerror}: check the disk; the store must be opened again") from error


def _sync(descriptor: int) -> None:
    """Sync twice: the first may report what happened to somebody else, and a page that failed then is clean now."""
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EIO:
            raise
        os.fsync(descriptor)


def _void_index(shm: Path) -> None:
    """Have the next connection read the log itself, also while another program has the index open."""
    try:
        descriptor = os.open(shm, os.O_WRONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    except PermissionError:
        shm.unlink()  # nothing in it outlives the programs that have it open
        return
    except OSError as error:
        raise DamagedStoreError(f"{shm}: cannot be used: {error.strerror}") from error
    try:
        if os.fstat(descriptor).st_size >= _INDEX_HEADER_BYTES:
            os.pwrite(descriptor, bytes(_INDEX_HEADER_BYTES), 0)
    finally:
        os.close(descriptor)
