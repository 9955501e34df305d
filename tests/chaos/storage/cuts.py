"""What a disk could hold after a power cut: everything that was flushed, and any part of what was not.

The method of CrashMonkey (Mohan et al., OSDI 2018) and of Linux's dm-log-writes, on the log of a `FuseDisk`. Sectors
of 512 bytes are written whole or not at all, and in any order until the next flush: no disk may do more harm than
that, unless it lies about flushes, which only a real plug shows (`gateway qualify-storage`).

The first page is an exception: it is written as a whole or not at all. The superblock of ext4 is two sectors of it,
with one checksum, and is written outside the journal. Where a cut tears it nothing mounts the file system any more, and
one of this size has no copies of it (from 128 MiB on there are, and `e2fsck -y` takes one of them).
"""

import hashlib
import mmap
import os
import random
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from tests.chaos.storage.fusedisk import FLUSH, HEADER, MARK, WRITE, FileSystem, insist

SECTOR: Final = 512
PAGE: Final = 4096
PIECE: Final = 64 * 1024
"""Images are written in pieces of this size, but for those of zeros."""


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


@dataclass(frozen=True, slots=True)
class Remnant:
    """What has survived a cut: everything up to the last flush, and some of the sectors that were written since."""

    flushed_writes: int
    """So many writes of the log are on the medium for sure."""
    survived: Mapping[int, bytes]
    """Sectors that differ from what was flushed, by their offset."""
    lost_sectors: int

    @property
    def key(self) -> bytes:
        """Name the bytes of the disk: within one recording disks of the same key are the same to the bit.

        Some that are the same have different keys, as before and after a flush that lost nothing.
        """
        told = hashlib.blake2b(b"%d" % self.flushed_writes, digest_size=16)
        for offset, data in sorted(self.survived.items()):
            told.update(b"@%d:" % offset + data)
        return told.digest()


class PowerCut:
    """Cuts the power at one point after the other; points must rise."""

    def __init__(self, base: Path, log: Log) -> None:
        self._log = log
        self._durable = bytearray(base.read_bytes())
        self._used = {at for at in range(0, len(self._durable), PIECE) if self._durable[at : at + PIECE].strip(b"\0")}
        self._applied = 0  # steps whose writes are all in `_durable`
        self._flushed_writes = 0

    def image(self, point: int, target: Path, chance: random.Random) -> int:
        """Write what the disk may hold when the power goes at `point`; return how many sectors were lost."""
        remnant = self.at(point, chance)
        self.write(remnant, target)
        return remnant.lost_sectors

    def at(self, point: int, chance: random.Random) -> Remnant:
        """Choose what the disk may hold when the power goes at `point`."""
        steps = self._log.steps
        flushed = self._applied
        for at in range(self._applied, point):
            if steps[at].kind == FLUSH:
                flushed = at + 1
        for step in steps[self._applied : flushed]:
            if step.kind == WRITE:
                end = step.offset + step.end - step.start
                self._durable[step.offset : end] = self._log.payload(step)
                self._used.update(range(step.offset // PIECE * PIECE, end, PIECE))
                self._flushed_writes += 1
        self._applied = flushed
        survived, lost = self._survivors(steps[flushed:point], chance)
        return Remnant(self._flushed_writes, self._changed(survived), lost)

    def write(self, remnant: Remnant, target: Path) -> None:
        """Write to a file what `at` has chosen last."""
        assert remnant.flushed_writes == self._flushed_writes, "the disk has gone on"
        with target.open("wb") as stream:
            stream.truncate(len(self._durable))
            for at in self._used:  # the rest is zeros
                os.pwrite(stream.fileno(), memoryview(self._durable)[at : at + PIECE], at)
            for offset, data in remnant.survived.items():
                os.pwrite(stream.fileno(), data, offset)

    def _changed(self, survived: Sequence[tuple[int, bytes]]) -> dict[int, bytes]:
        """Return the sectors that are not what was flushed; of several writes to one the last has survived."""
        sectors: dict[int, bytes] = {}
        for offset, data in survived:
            for at in range(0, len(data), SECTOR):
                sectors[offset + at] = data[at : at + SECTOR]
        return {at: data for at, data in sectors.items() if self._durable[at : at + len(data)] != data}

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
