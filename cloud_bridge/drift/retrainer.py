"""Trains a release again in a process of its own, at low priority: `cloud-bridge training retrain`."""

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Final

import msgspec
import structlog

from cloud_bridge.config import Config
from cloud_bridge.drift import book
from cloud_bridge.drift.book import Proposal
from cloud_bridge.identity.database import Database

log = structlog.get_logger()

LIMIT_SECONDS: Final = 4 * 3600.0
_LOOK_SECONDS: Final = 0.5
_NICE: Final = 10
_LAST_BYTES: Final = 4096


class Retrainer:
    """Does what proposals say, one after the other, each on one bridge; what a killed one leaves is taken up later."""

    def __init__(
        self,
        config: Config,
        database: Database,
        *,
        command: Sequence[str] = (sys.executable, "-m", "cloud_bridge"),
        limit_seconds: float = LIMIT_SECONDS,
        wall_ns: Callable[[], int] = time.time_ns,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """Take the configuration, which the child gets as it is; `command` is the bridge's own."""
        self._config = config
        self._database = database
        self._command = tuple(command)
        self._limit_seconds = limit_seconds
        self._wall_ns = wall_ns
        self._monotonic = monotonic

    def retrain(self, proposal: Proposal, stopping: threading.Event) -> None:
        """Train, publish a candidate and begin its canary; what comes of it is written down with the proposal.

        When `stopping` is set the child is ended, and the proposal stays open.

        Raises:
            StoreError: the database cannot be used now.
        """
        with self._database.transaction() as tx:
            now_ns = self._wall_ns()
            stale_ns = now_ns - int(2 * self._limit_seconds * 1e9)
            if not book.claim(tx, proposal.id, now_ns, stale_ns):
                return
        log.info("retraining_started", model=proposal.model, version=proposal.version, proposal=proposal.id)
        with tempfile.TemporaryDirectory(prefix="sluice-retrain-") as directory:
            file = Path(directory) / "bridge.yaml"  # JSON is YAML
            file.touch(mode=0o600)
            file.write_bytes(msgspec.json.encode(self._config, enc_hook=str))
            # Names and versions come from devices; none may pass for an option.
            words = ["training", "retrain", "--config", str(file), "--canary", f"--from={proposal.version}", "--"]
            with tempfile.TemporaryFile() as said:
                status = self._run([*self._command, *words, proposal.model], said, stopping)
                last = _end_of(said)
        if status is None and stopping.is_set():
            self._settle(proposal, "open", "")
            return
        if status == 0:
            self._settle(proposal, "done", last)
            log.info("retraining_done", model=proposal.model, version=proposal.version, proposal=proposal.id)
            return
        why = last if status is not None else f"took longer than {self._limit_seconds:g} s"
        self._settle(proposal, "failed", why)
        log.warning("retraining_failed", model=proposal.model, version=proposal.version, error=why)

    def _run(self, words: Sequence[str], said: IO[bytes], stopping: threading.Event) -> int | None:
        """Run a child to its end; None if it had to be ended."""
        child = subprocess.Popen(
            ["nice", "-n", str(_NICE), *words],
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=said,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            start_new_session=True,
        )
        deadline = self._monotonic() + self._limit_seconds
        try:
            while child.poll() is None and self._monotonic() < deadline and not stopping.wait(_LOOK_SECONDS):
                pass
            return child.poll()
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)  # its whole group, also when it has ended itself
            child.wait()

    def _settle(self, proposal: Proposal, state: str, detail: str) -> None:
        with self._database.transaction() as tx:
            book.settle(tx, proposal.id, state, detail, self._wall_ns())


def _end_of(file: IO[bytes]) -> str:
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - _LAST_BYTES))
    lines = file.read().decode("utf-8", "replace").strip().splitlines()
    return lines[-1][:500] if lines else "it said nothing"
