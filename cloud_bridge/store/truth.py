"""Forgets what memory believes about a store that was not closed, so that what is read next comes from the disk.

After a write that failed, Linux takes the page for written, reports the error once, and keeps showing what the disk
does not have (fsync(2); Rebello et al., "Can Applications Recover from fsync Failures?", USENIX ATC 2020); where it was
the first write of a block, ext4 even lets it be written again with success and shows zeros after a power cut (seen with
Linux 6.18). A bridge that opened its store again on such pages would acknowledge, and lose.
"""

import errno
import os
from pathlib import Path
from typing import Final

_INDEX_HEADER_BYTES: Final = 136  # https://www.sqlite.org/walformat.html#the_wal_index_header


def forget(path: Path) -> None:
    """Drop a store file and its log from the page cache, and void the index; nothing where there is no log.

    Must run before this process opens a connection: closing a descriptor gives up the locks of SQLite.

    Raises:
        OSError: the disk still fails.
    """
    wal, shm = Path(f"{path}-wal"), Path(f"{path}-shm")
    if not wal.is_file():
        return
    for name in (wal, path):
        if name.is_file():
            _drop(name)
    if shm.is_file() and shm.stat().st_size >= _INDEX_HEADER_BYTES:
        with shm.open("r+b", buffering=0) as index:
            index.write(bytes(_INDEX_HEADER_BYTES))  # the next connection reads the log itself


def _drop(name: Path) -> None:
    descriptor = os.open(name, os.O_RDONLY | os.O_CLOEXEC)
    try:
        try:
            os.fsync(descriptor)
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            os.fsync(descriptor)  # the first may report what is over; what failed then is clean now
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)
