"""Finds out whether a medium keeps what it says it has written: numbered blocks, synced, told elsewhere, looked for.

Only a pulled plug can show a medium that lies. A write is numbered and goes to the next of a ring of slots, which are
overwritten again and again as the write-ahead log of the outbox is; when the sync returns, the number is told to a
witness that the plug does not touch. After the power is back, every number that the witness has must be there.
"""

import hashlib
import os
import secrets
import struct
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from gateway.errors import OutboxError

FILE_NAME: Final = "sluice-qualify.dat"
BLOCK_BYTES: Final = 4096
SLOTS: Final = 4096  # 16 MiB: more than the caches of cards and cheap drives
RUN_DIGITS: Final = 16
_HEAD: Final = struct.Struct(">8s8sQ")
_MAGIC: Final = b"SLUICEQ1"

Tell = Callable[[str, int], None]
"""Receives the run and a number whose sync has returned."""


@dataclass(frozen=True, slots=True)
class Timing:
    """How long syncs took, in seconds."""

    count: int
    median: float
    p99: float
    longest: float


@dataclass(frozen=True, slots=True)
class Finding:
    """What is left of a run. `missing` are acknowledged numbers that are older, damaged or not there."""

    run: str
    acknowledged: int
    checked: int
    missing: tuple[int, ...]


def write(directory: Path, seconds: float, tell: Tell, monotonic: Callable[[], float] = time.monotonic) -> Timing:
    """Write and sync numbered blocks for a time, telling each number once its sync has returned.

    Raises:
        OutboxError: the directory or the medium does not allow it.
    """
    run = secrets.token_bytes(8)
    file = directory / FILE_NAME
    took: list[float] = []
    try:
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.posix_fallocate(descriptor, 0, SLOTS * BLOCK_BYTES)
            os.fsync(descriptor)
            _sync_directory(directory)
            end = monotonic() + seconds
            while (began := monotonic()) < end:
                number = len(took) + 1
                os.pwrite(descriptor, block(run, number), number % SLOTS * BLOCK_BYTES)
                os.fdatasync(descriptor)
                took.append(monotonic() - began)
                tell(run.hex(), number)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise OutboxError(
            f"{file}: {error.strerror or error}: name a directory on the medium, with 16 MiB free"
        ) from error
    took.sort()
    return Timing(len(took), took[len(took) // 2], took[len(took) * 99 // 100], took[-1])


def block(run: bytes, number: int) -> bytes:
    """Make a block: who and what number, filling that depends on both, and a digest over all of it."""
    head = _HEAD.pack(_MAGIC, run, number)
    filling = hashlib.shake_128(head).digest(BLOCK_BYTES - len(head) - 32)
    return head + filling + hashlib.sha256(head + filling).digest()


def verify(directory: Path, run: str, acknowledged: int) -> Finding:
    """Look for every number up to the last acknowledged one that no later number has overwritten.

    Raises:
        OutboxError: the file cannot be read.
    """
    file = directory / FILE_NAME
    first = max(1, acknowledged - SLOTS + 1)
    try:
        with file.open("rb") as stream:
            missing = tuple(
                number
                for number in range(first, acknowledged + 1)
                if not _kept(stream.fileno(), run, number, acknowledged)
            )
    except OSError as error:
        raise OutboxError(f"{file}: {error.strerror or error}: name the directory that was written to") from error
    return Finding(run, acknowledged, acknowledged - first + 1, missing)


def _kept(descriptor: int, run: str, number: int, acknowledged: int) -> bool:
    data = os.pread(descriptor, BLOCK_BYTES, number % SLOTS * BLOCK_BYTES)
    if number + SLOTS == acknowledged + 1:
        return True  # the slot that was being overwritten when the power went
    if len(data) < BLOCK_BYTES:
        return False
    _, found_run, found = _HEAD.unpack_from(data)
    # A later number of the same slot may be there: its sync had returned, and the word of it was lost on its way.
    return found_run.hex() == run and found in (number, number + SLOTS) and data == block(found_run, found)


def acknowledgements(lines: Iterable[str]) -> tuple[str, int] | None:
    """Return the last run that a witness has heard of and its highest number; None if it has heard nothing."""
    last: tuple[str, int] | None = None
    for line in lines:
        words = line.split()
        # The witness may have been cut off in the middle of a line, too.
        if len(words) != 2 or len(words[0]) != RUN_DIGITS or not line.endswith("\n") or not words[1].isdigit():
            continue
        run, number = words[0], int(words[1])
        last = (run, max(number, last[1]) if last is not None and last[0] == run else number)
    return last


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
