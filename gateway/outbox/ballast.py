"""Space kept back on the disk, given up when something else has filled it.

On a full disk even a deletion fails: it must be written to the WAL first, and a WAL that has just begun has no
blocks of its own yet. With the ballast gone there is room for it, and from then on the store lives within the pages
and the WAL it has.
"""

import os
from pathlib import Path
from typing import Final

import structlog

from gateway.outbox.damage import side

log = structlog.get_logger()

MARGIN: Final = 2
"""The ballast is made again only when the disk has this many times its size free."""


class Ballast:
    """A file of real blocks beside the store."""

    def __init__(self, file: Path, size_bytes: int) -> None:
        self._name = side(file, ".ballast")
        self._size_bytes = size_bytes

    @property
    def present(self) -> bool:
        """Whether the reserve is there, or none is wished."""
        return self._size_bytes == 0 or self._on_disk() >= self._size_bytes

    def release(self) -> bool:
        """Give the space back; True when there was some."""
        had = self._on_disk()
        try:
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
        return disk.f_bavail * disk.f_frsize >= max(self._size_bytes * MARGIN, 1 << 20)

    def restore(self) -> bool:
        """Take the space again if the disk is roomy; True when the reserve is there."""
        if self.present:
            return True
        if not self.roomy():
            return False
        try:
            descriptor = os.open(self._name, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            try:
                os.posix_fallocate(descriptor, 0, self._size_bytes)
            finally:
                os.close(descriptor)
        except OSError:
            self._name.unlink(missing_ok=True)
            return False
        return True

    def _on_disk(self) -> int:
        try:
            return self._name.stat().st_size
        except OSError:
            return 0
