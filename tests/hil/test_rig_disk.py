"""What the rig does to a raw disk: find partitions, flip one bit, search for what should not be there."""

import struct
import uuid
from pathlib import Path

import pytest

from hil.loopback.children import RigError
from hil.rig.disk import corrupt, find, flip_bit, partitions

MIB = 1 << 20


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    """A sparse disk with two partitions, and some content in the first."""
    raw = tmp_path / "disk.raw"
    table = bytearray(128 * 128)
    for number, (name, begin, end) in enumerate((("root-a", 2048, 10239), ("data", 10240, 20479))):
        entry = uuid.uuid4().bytes + uuid.uuid4().bytes + struct.pack("<QQQ", begin, end, 0)
        table[number * 128 : number * 128 + 128] = entry + name.encode("utf-16-le").ljust(72, b"\0")
    head = struct.pack(
        "<8sIIIIQQQQ16sQIII", b"EFI PART", 0x10000, 92, 0, 0, 1, 0, 34, 20479, uuid.uuid4().bytes, 2, 128, 128, 0
    )
    with raw.open("wb") as out:
        out.truncate(12 * MIB)
        out.seek(512)
        out.write(head)
        out.seek(1024)
        out.write(table)
        out.seek(MIB)
        out.write(b"superblock" + bytes(65536) + b"the end")
    return raw


def test_partitions_are_found_by_name(disk: Path) -> None:
    found = partitions(disk)
    assert {name: (each.offset, each.size) for name, each in found.items()} == {
        "root-a": (MIB, 4 * MIB),
        "data": (5 * MIB, 5 * MIB),
    }
    (disk.parent / "empty").write_bytes(bytes(4096))
    with pytest.raises(RigError, match="no GUID partition table"):
        partitions(disk.parent / "empty")


def test_exactly_one_bit_is_flipped(disk: Path) -> None:
    before = disk.read_bytes()
    offset = corrupt(disk, "root-a", near=b"the end")
    after = disk.read_bytes()
    changed = [at for at in range(len(before)) if before[at] != after[at]]
    assert changed == [offset]
    assert bin(before[offset] ^ after[offset]).count("1") == 1
    flip_bit(disk, offset)
    assert disk.read_bytes() == before


def test_without_a_place_the_bit_is_in_what_is_written(disk: Path) -> None:
    offset = corrupt(disk, "root-a")
    assert MIB <= offset < MIB + 128 * 1024


@pytest.mark.parametrize(
    ("name", "where", "why"),
    [
        ("root-c", {}, "no partition root-c"),
        ("root-a", {"near": b"nowhere"}, "does not stand in root-a"),
        ("data", {}, "nothing is written in data"),
    ],
)
def test_what_cannot_be_corrupted_is_told(disk: Path, name: str, where: dict[str, bytes], why: str) -> None:
    with pytest.raises(RigError, match=why):
        corrupt(disk, name, near=where.get("near"))


def test_a_secret_is_found_wherever_it_stands_also_across_pieces(disk: Path) -> None:
    secret = b"canary-0123456789"
    places = [MIB + 70_000, 5 * MIB - 5, 11 * MIB]
    with disk.open("r+b") as out:
        for at in places:
            out.seek(at)
            out.write(secret)
    assert find(disk, [secret, b"never written"]) == {secret: places}
    assert find(disk, [b"never written"]) == {}
