"""Fetches one file whose length and digest are signed: resumed at the byte, verified, durable, then given its name.

What is on its way lies beside its destination as `.<name>.<digest>.part`. It never has more bytes than were signed for,
and what is taken up again after a restart counts only as far as the digest of the whole agrees.
"""

import errno
import fcntl
import hashlib
import os
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

import structlog

from gateway.ota.errors import (
    BusyError,
    MismatchError,
    RangeIgnoredError,
    StoppedError,
    StorageError,
    TooLongError,
    UnreachableError,
)
from gateway.ota.fetch_budget import ASK_BYTES, Purse, Spend
from gateway.ota.fetch_pace import Pace
from gateway.ota.trust_store import make_directory, storage_error, sync_directory
from gateway.ota.ways import CHUNK_BYTES, DirectoryWay, Way

log = structlog.get_logger()

SLICE_BYTES: Final = 4 * 1024 * 1024
"""So much is asked for, and set aside in the budget, at a time."""

SPARE_BYTES: Final = 16 * 1024 * 1024
"""So much of the disk is left to everybody else."""

RETRY_SECONDS: Final = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0)
"""Pauses between tries at a source that is away; the last one repeats until the deadline. Progress begins them anew."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """A file of the repository, as signed. `path` is where a way finds it."""

    path: str
    size_bytes: int
    sha256: str  # hexadecimal


class Stop(Protocol):
    """Tells that the gateway stops (`threading.Event`)."""

    def is_set(self) -> bool:
        """Whether it does."""
        ...

    def wait(self, timeout: float) -> bool:
        """Wait for it at most so long, in seconds."""
        ...


def part_of(to: Path, sha256: str) -> Path:
    """Return where a file lies while it is on its way."""
    return to.with_name(f".{to.name[:120]}.{sha256[:16]}.part")


class Download:
    """One file on its way. Used once."""

    def __init__(
        self,
        wanted: Wanted,
        to: Path,
        *,
        pace: Pace,
        meter: Spend,
        stop: Stop,
        progress: Callable[[int], None],
    ) -> None:
        """Prepare; nothing is touched before `run`. `progress` is told how many bytes are there, now and then."""
        self._wanted = wanted
        self._to = to
        self._part = part_of(to, wanted.sha256)
        self._pace = pace
        self._meter = meter
        self._stop = stop
        self._progress = progress
        self._digest = hashlib.sha256()
        self._have = 0
        self._whole_only = False  # the source ignores ranges

    def run(self, way: Way) -> Path:
        """Fetch what is missing, and return the destination.

        Raises:
            TrustError: what came is not what was signed; nothing of it is kept.
            FetchError: not now; what came is kept for the next time.
            StorageError: the disk refuses.
        """
        make_directory(self._to.parent)
        descriptor = self._open()
        try:
            resumed = self._take_up(descriptor)
            self._require_space()
            try:
                self._pull(way, descriptor)
                self._verify()
            except (MismatchError, TooLongError):
                self._restart(descriptor)
                if not resumed:
                    raise
                # What lay there may have been the damaged half.
                log.warning("ota_partial_discarded", file=self._wanted.path, bytes=resumed)
                self._pull(way, descriptor)
                self._verify_or_drop(descriptor)
            self._finish(descriptor)
        except OSError as error:
            raise storage_error(self._part, error) from error
        finally:
            if not self._have:  # nothing worth keeping; after `_finish` there is no part any more
                self._part.unlink(missing_ok=True)
            os.close(descriptor)
        return self._to

    # ---- the file ----------------------------------------------------------------------------------------

    def _open(self) -> int:
        """Open the part for ourselves alone."""
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        while True:
            try:
                descriptor = os.open(self._part, flags, 0o600)
            except OSError as error:
                raise storage_error(self._part, error) from error
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if os.fstat(descriptor).st_nlink:  # else another process has just finished and renamed it
                    return descriptor
            except BlockingIOError as error:
                os.close(descriptor)
                raise BusyError(f"{self._wanted.path}: another process fetches it") from error
            except OSError:
                os.close(descriptor)
                raise
            os.close(descriptor)

    def _take_up(self, descriptor: int) -> int:
        """Read what an earlier run has left; return how much it is."""
        size = os.fstat(descriptor).st_size
        if size > self._wanted.size_bytes:
            self._restart(descriptor)
            return 0
        while chunk := os.pread(descriptor, CHUNK_BYTES, self._have):
            self._digest.update(chunk)
            self._have += len(chunk)
        return self._have

    def _restart(self, descriptor: int) -> None:
        os.ftruncate(descriptor, 0)
        self._digest = hashlib.sha256()
        self._have = 0

    def _require_space(self) -> None:
        status = os.statvfs(self._to.parent)
        free, missing = status.f_bavail * status.f_frsize, self._wanted.size_bytes - self._have
        if missing and free < missing + SPARE_BYTES:
            raise StorageError(
                f"{self._wanted.path} needs {missing} bytes and {SPARE_BYTES} to spare, {self._to.parent} has {free} "
                "left; free space on the file system of the gateway's state directory"
            )

    def _verify(self) -> None:
        found = self._digest.hexdigest()
        if found != self._wanted.sha256:
            raise MismatchError(
                f"{self._wanted.path}: the digest is {found[:16]}…, signed is {self._wanted.sha256[:16]}…; it was "
                "damaged on its way or replaced at the source"
            )

    def _verify_or_drop(self, descriptor: int) -> None:
        try:
            self._verify()
        except MismatchError:
            self._restart(descriptor)
            raise

    def _finish(self, descriptor: int) -> None:
        os.fsync(descriptor)
        self._part.replace(self._to)
        sync_directory(self._to.parent)

    # ---- the source --------------------------------------------------------------------------------------

    def _pull(self, way: Way, descriptor: int) -> None:
        """Read from the source until everything is there, over as many tries as the deadline allows."""
        tries = 0
        while self._have < self._wanted.size_bytes:
            before = self._have
            try:
                self._pull_slice(way, descriptor)
                tries = 0
            except RangeIgnoredError:
                self._restart(descriptor)
                if self._whole_only:
                    raise
                self._whole_only = True
            except UnreachableError as error:
                tries = 0 if self._have > before else tries
                pause = RETRY_SECONDS[min(tries, len(RETRY_SECONDS) - 1)]
                tries += 1
                if pause >= self._pace.left_seconds:
                    raise
                log.debug("ota_fetch_retried", file=self._wanted.path, have=self._have, reason=str(error))
                if self._stop.wait(pause):
                    raise StoppedError(f"{self._wanted.path}: the gateway stops") from error

    def _pull_slice(self, way: Way, descriptor: int) -> None:
        missing = self._wanted.size_bytes - self._have
        self._pace.begin()
        purse = Purse(self._meter, counted_elsewhere=way.counted_elsewhere)
        size = missing if self._whole_only else purse.piece(min(missing, SLICE_BYTES))
        # One byte more than is signed: a file that is too long must not pass for one that is right.
        extra = 1 if size == missing else 0
        with purse, closing(way.read(self._wanted.path, self._have, size + extra)) as pieces:
            purse.take(size + ASK_BYTES, self._wanted.path)
            purse.used(ASK_BYTES, self._wanted.path)
            got = 0
            for chunk in pieces:
                got += len(chunk)
                purse.used(len(chunk), self._wanted.path)
                if got > size and extra:
                    raise TooLongError(f"{self._wanted.path}: longer than the {self._wanted.size_bytes} bytes signed")
                self._write(descriptor, chunk[: len(chunk) - max(0, got - size)])
                self._progress(self._have)
                if self._stop.is_set():
                    raise StoppedError(f"{self._wanted.path}: the gateway stops")
                self._pace.took(len(chunk))
                if got >= size and not extra:
                    return
        if got < size and isinstance(way, DirectoryWay):
            # What lies on a medium is all there is of it: trying again would only keep a person waiting.
            raise MismatchError(
                f"{self._wanted.path}: {way.directory} has only {self._have} of {self._wanted.size_bytes} bytes; "
                "copy it again"
            )
        if got < size:
            raise UnreachableError(f"{self._wanted.path}: ended after {self._have} of {self._wanted.size_bytes} bytes")

    def _write(self, descriptor: int, chunk: bytes) -> None:
        view = memoryview(chunk)
        while view:
            try:
                written = os.pwrite(descriptor, view, self._have)
            except OSError as error:
                if error.errno in (errno.ENOSPC, errno.EDQUOT):
                    # Half a file on a full disk is in everybody's way.
                    self._restart(descriptor)
                raise
            self._digest.update(view[:written])
            self._have += written
            view = view[written:]
