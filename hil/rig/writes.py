"""A disk with a volatile cache: when the power goes, it may have forgotten what was not flushed, in any part.

Killing QEMU alone loses nothing that the guest has written, flushed or not. So the guest's writes go to an overlay that
is thrown away, and QEMU's `blklogwrites` writes down beside it what came and when it was flushed (the format of Linux's
dm-log-writes). After the cut, the disk below gets what was flushed, and of the rest what chance picks: each sector of
512 bytes whole or not at all, in no order. The method is that of CrashMonkey (Mohan et al., OSDI 2018).
"""

import mmap
import os
import random
import struct
import subprocess
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from hil.loopback.children import RigError
from hil.rig.flips import BACKEND
from hil.rig.machine import DISK, Machine

SECTOR: Final = 512
_PAGE: Final = 4096
_MAGIC: Final = 0x6A736677736872  # drivers/md/dm-log-writes.c
_SUPER: Final = struct.Struct("<QQQI")
_ENTRY: Final = struct.Struct("<QQQQ")  # sector, sectors, flags, bytes of data that are inline
_FLUSH, _FUA, _DISCARD = 1, 2, 4


@dataclass(frozen=True, slots=True)
class Write:
    """Bytes that reached the disk at `offset`; where they stand in the log."""

    offset: int
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Cut:
    """What a power cut came to: writes that were flushed, and sectors of later ones that are there or gone."""

    flushed: int
    kept_sectors: int
    lost_sectors: int


def read_log(data: bytes | mmap.mmap, size: int | None = None) -> Iterator[Write | None]:
    """Yield the writes of a log in order, and None for each flush. Ends where the power went: after `size` bytes of it.

    Discards are left out: a disk may keep what was discarded.

    Raises:
        RigError: this is no such log.
    """
    if len(data) < _SUPER.size or _SUPER.unpack_from(data)[:2] != (_MAGIC, 1):
        raise RigError("this is no log of blklogwrites")
    sector = _SUPER.unpack_from(data)[3]
    at, size = sector, len(data) if size is None else min(size, len(data))
    while at + sector <= size:
        first, count, flags, _ = _ENTRY.unpack_from(data, at)
        at += sector
        if not count and not flags:
            return
        if flags & (_FLUSH | _FUA):
            yield None
        if count and not flags & _DISCARD:
            end = at + count * sector
            if end > size:
                return
            yield Write(first * sector, at, end)
            at = end
            if flags & _FUA:
                yield None


def forget(raw: Path, log: Path, chance: random.Random, size: int | None = None) -> Cut:
    """Bring a raw disk to what it may hold after the power went.

    Args:
        raw: the disk as it was when the log began; changed.
        log: of blklogwrites.
        chance: picks what survives of what was not flushed.
        size: how many bytes the log had when the power went; all of it, if it is not said.
    """
    with log.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
        steps = list(read_log(data, size))
        flushed = max((number for number, step in enumerate(steps) if step is None), default=0)
        unit = chance.choice([_PAGE, _PAGE, SECTOR])
        share = chance.choice([0.0, 0.5, 0.5, 0.9])
        kept = lost = 0
        with raw.open("r+b") as disk:
            for number, step in enumerate(steps):
                if step is None:
                    continue
                if number < flushed:
                    os.pwrite(disk.fileno(), data[step.start : step.end], step.offset)
                    continue
                for at in range(step.start, step.end, unit):
                    piece = data[at : min(at + unit, step.end)]
                    if chance.random() < share:
                        os.pwrite(disk.fileno(), piece, step.offset + at - step.start)
                        kept += len(piece) // SECTOR
                    else:
                        lost += len(piece) // SECTOR
    return Cut(sum(step is not None for step in steps[:flushed]), kept, lost)


class VolatileDisk:
    """Gives a machine, which is off, a disk with such a cache. `restore` gives it back the disk it had."""

    def __init__(self, machine: Machine, chance: random.Random, *, snapshot: str | None = None) -> None:
        """Take over what is on the machine's disk: now, or as a snapshot of the machine has it."""
        self._machine = machine
        self._chance = chance
        self._before = machine.disk
        self.raw = machine.directory / "durable.raw"
        self._log = machine.directory / "writes.log"
        self._overlay = machine.directory / "volatile.qcow2"
        source = ["-l", f"snapshot.name={snapshot}"] if snapshot else []
        self.raw.unlink(missing_ok=True)
        _image("convert", "-U", "-O", "raw", "-S", "4k", *source, str(self._before), str(self.raw))

    def insert(self) -> None:
        """Put the cache below a machine that is paused, and whose disk is what was taken over."""
        self._log.write_bytes(b"")
        file = {"driver": "file", "filename": str(self._log)}
        qmp = self._machine.qmp
        qmp.command("blockdev-add", driver="blklogwrites", node_name="cache", file=DISK, log=file)
        qmp.command("qom-set", path=BACKEND, property="drive", value="cache")

    def power_on(self) -> None:
        """Switch the machine on, with this disk."""
        self._log.write_bytes(b"")
        self._renew()
        self._machine.write_log = self._log
        self._machine.power_on()

    def cut_power(self) -> Cut:
        """Take the power away, and have the disk forget."""
        self._machine.cut_power()
        return forget(self.raw, self._log, self._chance)

    @property
    def logged(self) -> int:
        """How many bytes the log has now. What the guest was told to be on the disk before is in them."""
        return self._log.stat().st_size

    def left_at(self, sizes: Iterable[int]) -> Iterator[tuple[Path, Cut]]:
        """Yield the disk that a cut may leave behind at each of these lengths of the log; it is gone with the next.

        The machine must be off.
        """
        for number, size in enumerate(sizes):
            left = self.raw.with_name(f"left-{number}.raw")
            subprocess.run(["cp", "--sparse=always", str(self.raw), str(left)], check=True)
            try:
                yield left, forget(left, self._log, self._chance, size)
            finally:
                left.unlink()

    def power_on_for_good(self) -> None:
        """Switch the machine on with what is left on this disk, which forgets nothing from here on."""
        self._renew()
        self._machine.write_log = None
        self._machine.power_on()

    def restore(self) -> None:
        """Give the machine, which is switched off for it, the disk back that it had."""
        self._machine.cut_power()
        self._machine.disk = self._before
        self._machine.write_log = None
        for file in (self.raw, self._log, self._overlay):
            file.unlink(missing_ok=True)

    def _renew(self) -> None:
        _image("create", "-q", "-f", "qcow2", "-F", "raw", "-b", str(self.raw), str(self._overlay))
        self._machine.disk = self._overlay


def written_operations(machine: Machine) -> int:
    """Return how many writes the guest has made since it was switched on."""
    (told,) = [
        each
        for each in machine.qmp.command("query-blockstats")
        if each.get("qdev", "").startswith("/machine/peripheral/blk/")
    ]
    return int(told["stats"]["wr_operations"])


def _image(*words: str) -> None:
    done = subprocess.run(["qemu-img", *words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RigError(f"qemu-img {words[0]} failed: {done.stderr.strip()}")
