"""The blocks of the write-ahead log, which the store keeps for good: on a full disk, and while it is closed.

Every change, a deletion too, is written to the log first. SQLite makes the log when it opens a store and deletes it
when it closes one, so a log that has just begun has no blocks; and blocks that are given back to the file system go to
whoever asks first, which is the program that has filled the disk. Therefore the log is made as long as a transaction
needs when the store is opened, and stays when it is closed, with nothing in it.

SQLite takes a log without a valid header for an empty one, and stops reading at the first frame whose salt or checksum
is not right; what follows does not matter. https://www.sqlite.org/fileformat2.html#walformat
"""

import errno
import os
from contextlib import suppress
from pathlib import Path
from typing import Final

from gateway.outbox.ballast import Ballast
from gateway.outbox.damage import side, sync_directory
from gateway.outbox.faults import StoreFaultError

MOST_BYTES: Final = 4 * 1024 * 1024
"""Four transactions of the usual size: what the log comes to between two checkpoints anyway."""

_HEADER_BYTES: Final = 32


def is_blank(name: Path) -> bool:
    """Tell whether a log is there that holds nothing: one that was left by `LogBlocks.retire`, or not yet begun."""
    try:
        with name.open("rb") as stream:
            return not any(stream.read(_HEADER_BYTES))
    except OSError:
        return False


class LogBlocks:
    """Keeps the log of one store at its length. Belongs to whoever writes to the store."""

    def __init__(self, file: Path, ballast: Ballast) -> None:
        self._wal = side(file, "-wal")
        self._ballast = ballast
        self._wanted_bytes = min(ballast.size_bytes, MOST_BYTES)

    @property
    def kept(self) -> bool:
        """Whether blocks are kept at all; not where no ballast is wished."""
        return self._wanted_bytes > 0

    def claim(self) -> bool:
        """Give the log its blocks before the store is opened; True when it has them.

        On a full disk the ballast becomes the log: it changes its name, and no block is free for a moment.

        Raises:
            StoreFaultError: the disk fails.
        """
        if self.extend():
            return True
        if (is_blank(self._wal) or not self._wal.exists()) and self._ballast.become(self._wal):
            return True
        return self.extend_from_ballast()

    def extend(self) -> bool:
        """Give the log the blocks that it lacks, if the disk has them; also while the store is open.

        Raises:
            StoreFaultError: the disk fails.
        """
        held = self._on_disk()
        if held is not None and held >= self._wanted_bytes:
            return True
        if not self.kept:
            return True
        try:
            descriptor = os.open(self._wal, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                os.posix_fallocate(descriptor, held or 0, self._wanted_bytes - (held or 0))
            finally:
                os.close(descriptor)
            if held is None:
                # Without its name after a power cut, the log would take what is committed in it along.
                sync_directory(self._wal.parent)
        except OSError as error:
            if error.errno == errno.EIO:
                raise StoreFaultError(f"{self._wal}: {error.strerror}: check the disk") from error
            return False
        return True

    def extend_from_ballast(self) -> bool:
        """Give the ballast up for what the log lacks; True when it has all.

        Raises:
            StoreFaultError: the disk fails.
        """
        if self.extend():
            return True
        return self._ballast.release() and self.extend()

    def retire(self) -> None:
        """Leave a log without contents, after everything in it was moved into the file and synced.

        Otherwise it would be laid over an older copy of the file that somebody puts in its place.

        Raises:
            StoreFaultError: the disk fails.
        """
        try:
            with suppress(FileNotFoundError):
                descriptor = os.open(self._wal, os.O_WRONLY | os.O_CLOEXEC)
                try:
                    os.pwrite(descriptor, bytes(_HEADER_BYTES), 0)
                    if os.fstat(descriptor).st_size > self._wanted_bytes:
                        os.ftruncate(descriptor, self._wanted_bytes)
                    os.fsync(descriptor)
                finally:
                    os.close(descriptor)
        except OSError as error:
            raise StoreFaultError(f"{self._wal}: {error.strerror}: check the disk") from error

    def _on_disk(self) -> int | None:
        try:
            return self._wal.stat().st_size
        except OSError:
            return None
