"""Removable media: a USB stick with files on it, made without mounting anything (mtools)."""

import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from hil.loopback.children import RigError

LABEL: Final = "SLUICE"


def fat_stick(image: Path, files: Mapping[str, bytes | Path], *, label: str = LABEL, mib: int = 64) -> Path:
    """Make a FAT stick with files in its top folder; returns the image.

    Raises:
        RigError: mtools or dosfstools are not installed, or the files do not fit.
    """
    image.unlink(missing_ok=True)
    with image.open("wb") as out:
        out.truncate(mib << 20)
    _run("mkfs.vfat", "-n", label, str(image), package="dosfstools")
    for name, content in files.items():
        source = image.with_suffix(".part") if isinstance(content, bytes) else content
        if isinstance(content, bytes):
            source.write_bytes(content)
        _run("mcopy", "-i", str(image), str(source), f"::{name}", package="mtools")
        if isinstance(content, bytes):
            source.unlink()
    return image


def read_stick(image: Path, name: str) -> bytes | None:
    """Return a file of a stick; None if it is not there."""
    done = subprocess.run(["mtype", "-i", str(image), f"::{name}"], capture_output=True, check=False)
    return done.stdout if done.returncode == 0 else None


def _run(*words: str, package: str) -> None:
    try:
        done = subprocess.run(words, capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        raise RigError(f"{words[0]} is not installed: apt-get install {package}") from error
    if done.returncode:
        raise RigError(f"{words[0]} failed: {done.stderr.strip()}")
