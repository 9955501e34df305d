"""Memory for plaintext: a file without a name, in RAM for good, that nobody can write to once it is filled.

Each block is locked against swap as soon as it is written, where this process may lock memory (LimitMEMLOCK in
systemd), and left out of core dumps. What the runtime makes of the weights is its own: an appliance has no swap.
"""

import fcntl
import mmap
import os
from typing import Final

import structlog

from gateway.vault.errors import VaultError

log = structlog.get_logger()

_MAP_LOCKED: Final = 0x2000  # <asm-generic/mman.h>; Python 3.11 does not name it
_SEALS: Final = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE


class PlaintextMemory:
    """A memfd (memfd_create(2)): `append` until it is full, then `seal`."""

    def __init__(self, name: str, size_bytes: int) -> None:
        """Take no memory yet.

        Raises:
            VaultError: there is no such amount.
        """
        self.name = name
        self.size_bytes = size_bytes
        self.locked = True  # every block so far is kept out of swap
        self._filled = 0
        self._locks: list[mmap.mmap] = []
        self._writable = os.memfd_create(f"sluice-{name}"[:200], os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        self.fd = -1
        try:
            os.ftruncate(self._writable, size_bytes)
            # Mappings of a read-only descriptor do not stand in the way of F_SEAL_WRITE.
            self.fd = os.open(f"/proc/self/fd/{self._writable}", os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            self.close()
            raise self._no_room(error) from error

    def reserve(self) -> None:
        """Take all of the memory now, so that what is written later has only to be copied.

        It is not locked yet: that would fill it with zeros first, which costs more than it saves.

        Raises:
            VaultError: there is not so much.
        """
        try:
            if self.size_bytes:
                os.posix_fallocate(self._writable, 0, self.size_bytes)
        except OSError as error:
            raise self._no_room(error) from error

    def append(self, plain: memoryview) -> None:
        """Write the next bytes.

        Raises:
            VaultError: the memory is full.
        """
        start = self._filled
        try:
            while len(plain):
                written = os.pwrite(self._writable, plain, self._filled)
                self._filled += written
                plain = plain[written:]
        except OSError as error:
            raise self._no_room(error) from error
        if self._filled > start:
            self._lock(start - start % mmap.ALLOCATIONGRANULARITY)

    def seal(self) -> None:
        """Take the right to write away from everybody, this process too."""
        fcntl.fcntl(self._writable, fcntl.F_ADD_SEALS, _SEALS)
        os.close(self._writable)
        self._writable = -1

    def map(self) -> mmap.mmap:
        """Map all of it, read-only; it must not be empty."""
        mapping = mmap.mmap(self.fd, self.size_bytes, mmap.MAP_SHARED, mmap.PROT_READ)
        mapping.madvise(mmap.MADV_DONTDUMP)
        return mapping

    def close(self) -> None:
        """Give it back; may be called twice."""
        for lock in self._locks:
            lock.close()
        self._locks.clear()
        for fd in (self._writable, self.fd):
            if fd >= 0:
                os.close(fd)
        self._writable = self.fd = -1

    def _no_room(self, error: OSError) -> VaultError:
        return VaultError(f"no memory for the {self.size_bytes} bytes of {self.name}: {error.strerror or error}")

    def _lock(self, start: int) -> None:
        if not self.locked:
            return
        size = self._filled - start
        try:
            lock = mmap.mmap(self.fd, size, mmap.MAP_SHARED | _MAP_LOCKED, mmap.PROT_READ, offset=start)
        except OSError as error:
            self.locked = False
            # Common without LimitMEMLOCK=; harmless on an appliance, which has no swap.
            remedy = "raise LimitMEMLOCK, or run without swap"
            log.info("weights_not_locked", file=self.name, reason=error.strerror, remedy=remedy)
            return
        lock.madvise(mmap.MADV_DONTDUMP)
        self._locks.append(lock)


def scratch(size_bytes: int) -> mmap.mmap:
    """Return anonymous memory for a block of plaintext on its way, guarded like the rest."""
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    try:
        memory = mmap.mmap(-1, size_bytes, flags | _MAP_LOCKED)
    except OSError:
        memory = mmap.mmap(-1, size_bytes, flags)
    memory.madvise(mmap.MADV_DONTDUMP)
    return memory
