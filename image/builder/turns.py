"""Keeps builds out of each other's way. A lock is held by an open folder, and goes with its process."""

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from image.builder.errors import MissingError
from image.builder.progress import Progress

_LOOK_SECONDS: Final = 0.5
_BEAT_SECONDS: Final = 20.0


@contextmanager
def only_one(output: Path) -> Iterator[None]:
    """Hold the folder that a build writes to.

    Raises:
        MissingError: another build does.
    """
    handle = os.open(output, os.O_RDONLY | os.O_DIRECTORY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise MissingError(
                f"another build writes to {output}: wait until it is done, or name another folder with --output"
            ) from None
        yield
    finally:
        os.close(handle)


@contextmanager
def in_turn(cache: Path, progress: Progress) -> Iterator[None]:
    """Hold the cache while something is put into it; wait while another build does, and say so."""
    handle = os.open(cache, os.O_RDONLY | os.O_DIRECTORY)
    try:
        began, told = time.monotonic(), 0.0
        while not _taken(handle):
            if told == 0.0 or time.monotonic() - told >= _BEAT_SECONDS:
                told = time.monotonic()
                progress.say(f"  … another build fills {cache}, waiting for it, {told - began:.0f} s so far")
            time.sleep(_LOOK_SECONDS)
        yield
    finally:
        os.close(handle)


def _taken(handle: int) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
