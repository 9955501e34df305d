"""One writer at a time: a lease in the database among hosts, and a file lock among the processes of one."""

import contextlib
import fcntl
import os
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from cloud_bridge.registry.errors import BusyError, RegistryError
from cloud_bridge.registry.ledger import Ledger

LEASE_SECONDS: Final = 120.0
_NAME: Final = "repository"
_LOOK_SECONDS: Final = 0.05


class Lock:
    """Held while the metadata is changed; that takes seconds, so a holder that is gone is waited for no longer."""

    def __init__(
        self,
        ledger: Ledger,
        file: Path,
        *,
        wait_seconds: float = LEASE_SECONDS + 10.0,
        monotonic: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
        host: str | None = None,
    ) -> None:
        """Prepare. file: on a disk of this host; host: its name, by which a lease of a dead process is recognised."""
        self._ledger = ledger
        self._file = file
        self._wait_seconds = wait_seconds
        self._monotonic = monotonic
        self._sleep = sleep
        self._host = host or f"{socket.gethostname()}:{file}"

    @contextlib.contextmanager
    def held(self) -> Iterator[Callable[[], None]]:
        """Hold the lock; the function that is given prolongs it, and raises BusyError when it was lost.

        Raises:
            BusyError: somebody else has it for too long.
            RegistryError: the file of the lock cannot be used.
        """
        deadline = self._monotonic() + self._wait_seconds
        with self._file_held(deadline):
            # Whoever had the lease on this host is gone: it held the file, too.
            holder = self._host

            def prolong() -> None:
                if not self._ledger.take_lock(_NAME, holder, LEASE_SECONDS):
                    raise BusyError("another bridge took over the repository meanwhile; try again")

            while not self._ledger.take_lock(_NAME, holder, LEASE_SECONDS):
                self._pause(deadline)
            try:
                yield prolong
            finally:
                self._ledger.drop_lock(_NAME, holder)

    @contextlib.contextmanager
    def _file_held(self, deadline: float) -> Iterator[None]:
        try:
            descriptor = os.open(self._file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise RegistryError(f"{self._file}: {error.strerror or error}") from error
        try:
            while True:
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    self._pause(deadline)
            yield
        finally:
            os.close(descriptor)

    def _pause(self, deadline: float) -> None:
        if self._monotonic() > deadline:
            raise BusyError(f"another process has been changing the repository for {self._wait_seconds:g} s; try later")
        self._sleep(_LOOK_SECONDS)
