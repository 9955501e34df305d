"""Notices that a person has put a model, or its missing file, where it belongs."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Final

_DEPTHS: Final = ("*", "*/*", "*/*/*")

Fingerprint = frozenset[tuple[str, int, int]]


def fingerprint(directories: Sequence[Path]) -> Fingerprint:
    """Return what tells a change of the releases in some directories: every path with its time and size.

    Nothing is read but the directories, so it may be asked every second while a pipeline waits for its model.
    """
    return frozenset(
        (str(path), status.st_mtime_ns, status.st_size)
        for directory in directories
        for depth in _DEPTHS
        for path in directory.glob(depth)
        if (status := _status(path)) is not None
    )


def _status(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except OSError:
        return None
