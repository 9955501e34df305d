"""What a disk could hold after a power cut: everything that was flushed, and any part of what was not.

The method of CrashMonkey (Mohan et al., OSDI 2018) and of Linux's dm-log-writes, on the log of a `FuseDisk`. Sectors
of 512 bytes are written whole or not at all, and in any order until the next flush: no disk may do more harm than
that, unless it lies about flushes, which only a real plug shows (`gateway qualify-storage`).

The first page is an exception: it is written as a whole or not at all. The superblock of ext4 is two sectors of it,
with one checksum, and is written outside the journal. Where a cut tears it nothing mounts the file system any more, and
one of this size has no copies of it (from 128 MiB on there are, and `e2fsck -y` takes one of them).
"""

import mmap
import os
import random
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from tests.chaos.storage.fusedisk import FLUSH, HEADER, MARK, WRITE, FileSystem, insist

SECTOR: Final = 512
PAGE: Final = 4096


@dataclass(frozen=True, slots=True)
class Step:
    """One entry of the log; `start` and `end` are where its bytes stand in the log file.

    Of a mark, `offset` is the monotonic time in nanoseconds.
    """

    kind: int
    offset: int
    start: int
    end: int


class Log(Protocol):
    """What happened to a disk, in order."""

    steps: list[Step]

    def payload(self, step: Step) -> bytes: ...


class DiskLog:
    """The log of a recorded disk, to be read when the recording is over."""

    def __init__(self, file: Path) -> None:
        with file.open("rb") as stream:
            self._data = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
        self.steps: list[Step] = []
        at = 0
        while at + HEADER.size <= len(self._data):
            kind, offset, length = HEADER.unpack_from(self._data, at)
            at += HEADER.size
            if at + length > len(self._data):
                break
            self.steps.append(Step(kind, offset, at, at + length))
            at += length

    def payload(self, step: Step) -> bytes:
        """Return what was written, or the text of a mark."""
        return self._data[step.start : step.end]

    def marks(self, before: int | None = None) -> Iterator[str]:
        """Return the marks that stand before a point, in order."""
        for step in self.steps[:before]:
            if step.kind == MARK:
                yield self.payload(step).decode()

    def points(self, chance: random.Random, count: int, since: int = 1) -> list[int]:
        """Choose moments for a power cut, in rising order: anywhere, and also just before and after flushes and marks.

        A point `n` is the moment after the first `n` steps.
        """
        total = len(self.steps)
        edges = [at + late for at, step in enumerate(self.steps) if step.kind != WRITE for late in (0, 1)]
        edges = [at for at in edges if at >= since]
        found: set[int] = {total}
        while len(found) < min(count, total - since + 1):
            found.add(chance.choice(edges) if edges and chance.random() < 0.5 else chance.randint(since, total))
        return sorted(found)


class PowerCut:
    """Makes one image file for each point; points must rise."""

    def __init__(self, base: Path, log: Log) -> None:
        self._log = log
        self._durable = bytearray(base.read_bytes())
        self._applied = 0  # steps whose writes are all in `_durable`

    def image(self, point: int, target: Path, chance: random.Random) -> int:
        """Write what the disk may hold when the power goes at `point`; return how many sectors were lost."""
        steps = self._log.steps
        flushed = self._applied
        for at in range(self._applied, point):
            if steps[at].kind == FLUSH:
                flushed = at + 1
        for step in steps[self._applied : flushed]:
            if step.kind == WRITE:
                self._durable[step.offset : step.offset + step.end - step.start] = self._log.payload(step)
        self._applied = flushed
        survived, lost = self._survivors(steps[flushed:point], chance)
        with target.open("wb") as stream:
            stream.truncate(len(self._durable))
            write_sparse(stream.fileno(), self._durable)
            for offset, data in survived:
                os.pwrite(stream.fileno(), data, offset)
        return lost

    def _survivors(self, pending: Sequence[Step], chance: random.Random) -> tuple[list[tuple[int, bytes]], int]:
        """Choose which sectors of the unflushed writes have reached the medium."""
        unit = chance.choice([PAGE, PAGE, SECTOR])
        share = chance.choice([0.0, 0.5, 0.5, 0.9, 1.0])
        survived: list[tuple[int, bytes]] = []
        lost = 0
        for step in pending:
            if step.kind != WRITE:
                continue
            data = self._log.payload(step)
            at = 0
            while at < len(data):
                end = at + unit if step.offset + at >= PAGE else PAGE - step.offset
                if chance.random() < share:
                    survived.append((step.offset + at, data[at:end]))
                else:
                    lost += len(data[at:end]) // SECTOR
                at = end
        return survived, lost


_ZEROS: Final = bytes(64 * 1024)


def write_sparse(descriptor: int, data: bytes | bytearray) -> None:
    """Write to an empty file, leaving out what is zero."""
    for at in range(0, len(data), len(_ZEROS)):
        piece = data[at : at + len(_ZEROS)]  # a copy: the bytes of a view are compared one by one
        if piece != _ZEROS[: len(piece)]:
            os.pwrite(descriptor, piece, at)


@contextmanager
def workplace() -> Iterator[Path]:
    """A directory in memory if there is one: crash images are made and thrown away by the hundred."""
    shared = Path("/dev/shm")
    parent = shared if shared.is_dir() and shutil.disk_usage(shared).free > 1 << 30 else None
    with tempfile.TemporaryDirectory(prefix=f"sluice-cuts-{os.getpid()}-", dir=parent) as name:
        yield Path(name)


@contextmanager
def mounted(image: Path, place: Path, file_system: FileSystem = "ext4") -> Iterator[Path]:
    """Mount an image as a machine does after the power came back: the file system replays its journal first."""
    place.mkdir(exist_ok=True)
    # Another experiment may take the free loop device between the asking and the taking.
    insist(["mount", "-t", file_system, "-o", "loop", str(image), str(place)])
    try:
        yield place
    finally:
        # A program that another thread begins just then has what was open here, until it is another program.
        insist(["umount", str(place)])
