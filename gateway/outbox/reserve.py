"""Blocks for the file, taken before the rows are committed to the WAL.

A committed WAL must always fit into the file. If it does not, because the disk filled up in between, it cannot be
emptied, and then not even a deletion can be written. So every commit that makes the file grow allocates first.

SQLite does not mind a file that is longer than its pages, and cuts it to size at the next full checkpoint.
"""

import errno
import os
from pathlib import Path
from typing import Final

from gateway.outbox.faults import StoreFaultError, StoreFullError
from gateway.outbox.schema import PAGE_BYTES

AHEAD_BYTES: Final = 512 * 1024
"""Allocated at once, so that not every commit has to."""

_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_UNSUPPORTED: Final = frozenset({errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS})


class Reserve:
    """Holds a descriptor of the file.

    Open it before the first connection and close it after the last: closing any descriptor of a file drops the locks
    that SQLite holds on it in this process (fcntl(2), "Record locks").
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        try:
            self._descriptor = os.open(file, os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            raise StoreFaultError(f"{file}: {error.strerror}") from error
        self._allocated = os.fstat(self._descriptor).st_size
        self._supported = True

    def grow_to(self, pages: int) -> None:
        """Make sure that the file has blocks for so many pages.

        Raises:
            StoreFullError: the disk has none left.
        """
        wanted = pages * PAGE_BYTES
        if wanted <= self._allocated or not self._supported:
            return
        for end in (wanted + AHEAD_BYTES, wanted):
            try:
                os.posix_fallocate(self._descriptor, self._allocated, end - self._allocated)
            except OSError as error:
                if error.errno in _UNSUPPORTED:
                    self._supported = False
                    return
                if error.errno not in _FULL:
                    raise StoreFaultError(f"{self._file}: {error.strerror}: check the disk") from error
            else:
                self._allocated = end
                return
        raise StoreFullError(f"{self._file}: no room for {pages} pages: free space on its file system")

    def was_cut(self) -> None:
        """Look at the size again, after a checkpoint."""
        self._allocated = os.fstat(self._descriptor).st_size

    def close(self) -> None:
        """Let the descriptor go, after all connections."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
