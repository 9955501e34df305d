"""Space kept back on the disk, for when something else has filled it.

What is given back to the file system goes to whoever asks first, and that may be the program that has filled it. So
wherever the log needs blocks, the ballast becomes the log; it is given back, a piece at a time, only where the file
itself must grow: when a store is made, and for rows that nothing else may make room for.
"""

import os
import stat
from contextlib import suppress
from pathlib import Path
from typing import Final

import structlog

from gateway.outbox.damage import side, sync_directory

log = structlog.get_logger()

MARGIN: Final = 2
"""The ballast is made again only when the disk has this many times its size free."""

PIECES: Final = 4
"""In so many pieces it is given back: after each of them there is something to try."""


class Ballast:
    """A file of real blocks beside the store."""

    def __init__(self, file: Path, size_bytes: int) -> None:
        self._name = side(file, ".ballast")
        self.size_bytes = size_bytes

    @property
    def present(self) -> bool:
        """Whether the reserve is there, or none is wished."""
        return self.size_bytes == 0 or self._on_disk() >= self.size_bytes

    def release(self) -> bool:
        """Give the space back; True when there was some."""
        return self._cut_to(0)

    def give(self) -> bool:
        """Give a piece of the space back, to be used at once; True when there was some."""
        return self._cut_to(max(0, self._on_disk() - max(self.size_bytes // PIECES, 1)))

    def become(self, target: Path) -> bool:
        """Let another file have the blocks, which read as zeros: nobody else can come between. False: there are none.

        The new name is durable when this returns.
        """
        try:
            if not self.present or not self.size_bytes or any(_head_of(self._name)):
                return False
            self._name.rename(target)
            sync_directory(target.parent)
        except OSError as error:
            log.error("ballast_stuck", file=str(self._name), reason=error.strerror)
            return False
        return True

    def _cut_to(self, size_bytes: int) -> bool:
        had = self._on_disk()
        try:
            if size_bytes:
                os.truncate(self._name, size_bytes)
            else:
                self._name.unlink(missing_ok=True)
        except OSError as error:
            log.error("ballast_stuck", file=str(self._name), reason=error.strerror)
            return False
        return had > 0

    def roomy(self) -> bool:
        """Tell whether the disk has room for the ballast and more beside."""
        try:
            disk = os.statvfs(self._name.parent)
        except OSError:
            return False
        return disk.f_bavail * disk.f_frsize >= max(self.size_bytes * MARGIN, 1 << 20)

    def restore(self) -> bool:
        """Take the space again if the disk is roomy; True when the reserve is there."""
        if self.present:
            return True
        if not self.roomy():
            return False
        try:
            descriptor = os.open(self._name, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            try:
                os.posix_fallocate(descriptor, 0, self.size_bytes)
            finally:
                os.close(descriptor)
        except OSError:
            with suppress(OSError):  # a directory in its place is for a person to remove
                self._name.unlink(missing_ok=True)
            return False
        return True

    def _on_disk(self) -> int:
        try:
            found = self._name.stat()
        except OSError:
            return 0
        return found.st_size if stat.S_ISREG(found.st_mode) else 0


def _head_of(name: Path) -> bytes:
    with name.open("rb") as stream:
        return stream.read(64)
