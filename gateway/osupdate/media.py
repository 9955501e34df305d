"""Bundles on media that somebody has plugged in. Looks; decides nothing."""

import stat
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
            try:
                files = sorted(directory.glob("*/" * depth + "*.raucb"))
            except OSError:
                continue
            for file in files:
                try:
                    status = file.lstat()
                except OSError:
                    continue
                if stat.S_ISREG(status.st_mode):
                    found.append((file, status.st_size, status.st_mtime_ns))
    return found[:MAX_BUNDLES]
