"""Bundles on media that somebody has plugged in. Looks; decides nothing."""

from collections.abc import Iterable
from pathlib import Path

MAX_BUNDLES = 16
_DEPTH = 3  # /run/media/<user>/<label>/


def bundles_on(directories: Iterable[Path]) -> list[tuple[Path, int, int]]:
    """Return `*.raucb` in the top folder of each medium, with size and time of change; what cannot be read is left out.

    A directory is where media are mounted, such as /media; a bundle that lies in it directly counts as well.
    """
    found: list[tuple[Path, int, int]] = []
    for directory in directories:
        for depth in range(_DEPTH):
            pattern = "*/" * depth + "*.raucb"
            try:
                for file in sorted(directory.glob(pattern)):
                    status = file.stat()
                    if file.is_file() and not file.is_symlink():
                        found.append((file, status.st_size, status.st_mtime_ns))
            except OSError:
                continue
    return found[:MAX_BUNDLES]
