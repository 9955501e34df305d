"""Look at and damage a raw disk: partitions by name, one flipped bit, and what can still be read of a secret."""

import mmap
import os
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from hil.loopback.children import RigError

SECTOR: Final = 512
_HEADER: Final = struct.Struct("<8sIIIIQQQQ16sQIII")  # UEFI 2.10 §5.3.2
_PIECE: Final = 8 << 20


@dataclass(frozen=True, slots=True)
class Partition:
    """One entry of the partition table; offset and size in bytes."""

    name: str
    offset: int
    size: int
    unique: bytes


def partitions(raw: Path) -> dict[str, Partition]:
    """Read the GUID partition table of a raw disk.

    Raises:
        RigError: there is none.
    """
    with raw.open("rb") as disk:
        disk.seek(SECTOR)
        head = _HEADER.unpack(disk.read(_HEADER.size))
        if head[0] != b"EFI PART":
            raise RigError(f"{raw} has no GUID partition table")
        first, count, size = head[10], head[11], head[12]
        disk.seek(first * SECTOR)
        table = disk.read(count * size)
    found: dict[str, Partition] = {}
    for at in range(0, len(table), size):
        entry = table[at : at + size]
        if entry[:16] == bytes(16):
            continue
        begin, end = struct.unpack_from("<QQ", entry, 32)
        name = entry[56:128].decode("utf-16-le").rstrip("\0")
        found[name] = Partition(name, begin * SECTOR, (end - begin + 1) * SECTOR, entry[16:32])
    return found


def flip_bit(raw: Path, offset: int, bit: int = 0) -> None:
    """Change one bit of a file, as worn flash or an attacker does."""
    with raw.open("r+b") as disk:
        disk.seek(offset)
        byte = disk.read(1)
        if not byte:
            raise RigError(f"{raw} ends before {offset}")
        disk.seek(offset)
        disk.write(bytes([byte[0] ^ (1 << bit)]))
        disk.flush()
        os.fsync(disk.fileno())


def written(raw: Path) -> Iterator[tuple[int, int]]:
    """Yield the parts of a sparse file that hold data: offset and length in bytes."""
    with raw.open("rb") as disk:
        end = os.fstat(disk.fileno()).st_size
        at = 0
        while at < end:
            try:
                begin = os.lseek(disk.fileno(), at, os.SEEK_DATA)
            except OSError:
                return  # nothing but a hole is left
            at = os.lseek(disk.fileno(), begin, os.SEEK_HOLE)
            yield begin, at - begin


def find(raw: Path, needles: Iterable[bytes]) -> dict[bytes, list[int]]:
    """Search a disk for byte strings; returns the offsets of each that was found, the first hundred."""
    wanted = list(needles)
    found: dict[bytes, list[int]] = {}
    overlap = max((len(needle) for needle in wanted), default=1) - 1
    with raw.open("rb") as disk, mmap.mmap(disk.fileno(), 0, prot=mmap.PROT_READ) as content:
        for begin, length in written(raw):
            for start in range(begin, begin + length, _PIECE):
                stop = min(start + _PIECE + overlap, begin + length)
                piece = content[start:stop]
                for needle in wanted:
                    at = piece.find(needle)
                    while at >= 0 and at < _PIECE:
                        spots = found.setdefault(needle, [])
                        if len(spots) < 100:
                            spots.append(start + at)
                        at = piece.find(needle, at + 1)
    return found


def middle_of(raw: Path, partition: Partition) -> int:
    """Return an offset in the middle of what is written in a partition, where a flipped bit hits something in use."""
    parts = [
        (max(begin, partition.offset), min(begin + length, partition.offset + partition.size))
        for begin, length in written(raw)
        if begin < partition.offset + partition.size and begin + length > partition.offset
    ]
    total = sum(end - begin for begin, end in parts)
    if total <= 0:
        raise RigError(f"nothing is written in {partition.name}")
    left = total // 2
    for begin, end in parts:
        if left < end - begin:
            return begin + left
        left -= end - begin
    return parts[-1][1] - 1


def corrupt(raw: Path, name: str, *, near: bytes | None = None, from_end: int | None = None) -> int:
    """Flip one bit of a partition; see `StorageProtocol.corrupt`. Returns its offset on the disk.

    Raises:
        RigError: there is no such partition, or nothing of what was asked for in it.
    """
    partition = partitions(raw).get(name)
    if partition is None:
        raise RigError(f"{raw} has no partition {name}")
    end = partition.offset + partition.size
    if near is not None:
        spots = [at for at in find(raw, [near]).get(near, []) if partition.offset <= at < end]
        if not spots:
            raise RigError(f"{near!r} does not stand in {name}")
        offset = spots[0]
    elif from_end is not None:
        last = max((min(begin + size, end) for begin, size in written(raw) if begin < end), default=0)
        offset = last - from_end
    else:
        offset = middle_of(raw, partition)
    if not partition.offset <= offset < end:
        raise RigError(f"{offset} is not inside of {name}")
    flip_bit(raw, offset)
    return offset
