"""What is in an encrypted partition, read from outside with its key."""

import struct
import uuid
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from hil.loopback.children import RigError
from hil.rig.luks import Volume, decrypt

SECTOR = 512
BEGIN, HEADER, SIZE = 2048 * SECTOR, 16 * SECTOR, 4096 * SECTOR
KEY = bytes(range(64))
OUTBOX = Volume("outbox", KEY, HEADER)


def encrypted(number: int, plain: bytes) -> bytes:
    """Return a sector as dm-crypt writes it with aes-xts-plain64: the tweak is its number, low byte first."""
    made = Cipher(algorithms.AES(KEY), modes.XTS(struct.pack("<QQ", number, 0))).encryptor()
    return made.update(plain) + made.finalize()


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """A sparse disk with one partition, of whose content two places were written."""
    file = tmp_path / "disk.raw"
    entry = uuid.uuid4().bytes + uuid.uuid4().bytes
    entry += struct.pack("<QQQ", BEGIN // SECTOR, (BEGIN + SIZE) // SECTOR - 1, 0) + "outbox".encode("utf-16-le")
    head = struct.pack(
        "<8sIIIIQQQQ16sQIII", b"EFI PART", 0x10000, 92, 0, 0, 1, 0, 34, 9999, uuid.uuid4().bytes, 2, 128, 128, 0
    )
    with file.open("wb") as out:
        out.truncate(BEGIN + SIZE)
        out.seek(SECTOR)
        out.write(head)
        out.seek(2 * SECTOR)
        out.write(entry.ljust(128, b"\0"))
        for number, plain in ((0, b"first".ljust(SECTOR)), (2000, b"later".ljust(SECTOR))):
            out.seek(BEGIN + HEADER + number * SECTOR)
            out.write(encrypted(number, plain))
    return file


def test_what_was_written_is_read_and_what_was_not_is_a_hole(raw: Path, tmp_path: Path) -> None:
    plain = decrypt(raw, OUTBOX, tmp_path / "plain.img")
    content = plain.read_bytes()
    assert len(content) == SIZE - HEADER
    assert content[:SECTOR] == b"first".ljust(SECTOR)
    assert content[2000 * SECTOR : 2001 * SECTOR] == b"later".ljust(SECTOR)
    assert plain.stat().st_blocks * SECTOR < SIZE


def test_with_another_key_it_is_noise(raw: Path, tmp_path: Path) -> None:
    other = Volume("outbox", KEY[::-1], HEADER)
    assert b"first" not in decrypt(raw, other, tmp_path / "plain.img").read_bytes()


def test_a_partition_that_is_not_there_is_told(raw: Path, tmp_path: Path) -> None:
    with pytest.raises(RigError, match="no partition data"):
        decrypt(raw, Volume("data", KEY, 0), tmp_path / "plain.img")
