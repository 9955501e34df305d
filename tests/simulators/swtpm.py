"""A TPM 2.0 in software (swtpm) with the knobs that tests need: it dies, hangs, reboots, and boots something else."""

import contextlib
import importlib.util
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

from hil.loopback.children import RigError
from hil.loopback.tpm import PLACES, SoftwareTpm


def missing(*others: str) -> str:
    """Say what tests with a TPM lack on this machine, with the package; empty when nothing. others: programs."""
    for program in ("swtpm", *others):
        if shutil.which(program, path=PLACES) is None:
            return f"{program} is not installed: apt-get install swtpm swtpm-tools"
    if importlib.util.find_spec("tpm2_pytss") is None:
        return "tpm2-pytss is not installed: pip install 'sluice[tpm]'"
    return ""


class Swtpm:
    """Knobs: `kill`, `restart` (a reboot: registers are reset), `extend`, `stalled` (it hangs), `ek_certificate`.

    It has three slots for objects and no resource manager, and serves one connection at a time; the next one waits.
    """

    def __init__(self, directory: Path, *, ek_certificate: bool = False) -> None:
        self._state = directory / "swtpm"
        self._log = directory / "swtpm.log"
        self.ca_directory = directory / "swtpm-ca"
        self._tpm = SoftwareTpm(self._state, self._log)
        if ek_certificate:
            self._tpm.manufacture(self.ca_directory)

    @property
    def tcti(self) -> str:
        """How to reach it."""
        return self._tpm.tcti

    @property
    def pid(self) -> int:
        return self._tpm.child.pid

    def start(self) -> None:
        for _ in range(5):
            try:
                self._tpm.start()
            except RigError:
                self._tpm.kill()
                self._tpm = SoftwareTpm(self._state, self._log)  # somebody else was faster to take the ports
            else:
                return
        raise AssertionError(f"swtpm does not start: {self._tpm.child.tail()}")

    def kill(self) -> None:
        """Like a TPM that drops off the bus."""
        self._tpm.kill()

    def restart(self) -> None:
        """Reboot: registers start anew, what is in NV stays."""
        self.kill()
        self.start()

    def extend(self, register: int, digest: bytes) -> None:
        """Measure something into a register, bank SHA-256, as another boot would have."""
        self._tpm.measure({register: digest})

    @contextlib.contextmanager
    def stalled(self) -> Iterator[None]:
        """It takes commands and answers none."""
        os.kill(self.pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(self.pid, signal.SIGCONT)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()
