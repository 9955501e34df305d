"""The ways in which a file is found after something went wrong, each a function of the file and of chance."""

import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Final

Damage = Callable[[Path, random.Random], object]


def cut_off(file: Path, chance: random.Random) -> None:
    """Keep a beginning of it, perhaps nothing."""
    os.truncate(file, chance.choice([0, 1, file.stat().st_size // 2, max(file.stat().st_size - 1, 0)]))


def zeros(file: Path, chance: random.Random) -> None:
    """Keep its length and nothing else, as after a power cut on some file systems."""
    file.write_bytes(bytes(file.stat().st_size or 4096))


def flipped_bits(file: Path, chance: random.Random) -> None:
    """Turn a few bits over."""
    data = bytearray(file.read_bytes() or b"\0")
    for _ in range(8):
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    file.write_bytes(data)


def garbage(file: Path, chance: random.Random) -> None:
    """Put something else in its place."""
    file.write_bytes(chance.randbytes(max(file.stat().st_size, 8192)))


def deleted(file: Path, chance: random.Random) -> None:
    file.unlink()


def forbidden(file: Path, chance: random.Random) -> None:
    """Take all rights away, as a copy made by another user does. Root does not notice."""
    file.chmod(0)


def a_directory(file: Path, chance: random.Random) -> None:
    file.unlink()
    file.mkdir()


DAMAGES: Final[dict[str, Damage]] = {
    "cut off": cut_off,
    "zeros": zeros,
    "bits": flipped_bits,
    "garbage": garbage,
    "deleted": deleted,
    "forbidden": forbidden,
    "a directory": a_directory,
}
