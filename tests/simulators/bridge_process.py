"""The bridge as a process of its own, to be killed."""

import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

from tests.simulators.waiting import wait_for


class BridgeProcess:
    """`module` may name another program that takes the same options."""

    def __init__(
        self,
        directory: Path,
        broker: str,
        *,
        module: str = "cloud_bridge",
        store: str = "",
        client_id: str = "one",
        expiry: int = 30,
        workers: int = 1,
        options: Sequence[str] = (),
    ) -> None:
        self.database = directory / "bridge.db"
        self.store = store or f"sqlite:///{self.database}"
        self.log = directory / "bridge.log"
        self.file = directory / "bridge.yaml"
        self._module = module
        self._options = options
        self.file.write_text(
            f"brokers: [{{url: '{broker}'}}]\nstore: {{url: '{self.store}'}}\nconsole: {{enabled: false}}\n"
            f"ingest: {{client_id: '{client_id}', session_expiry_seconds: {expiry}, workers: {workers}}}\n"
        )
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, *, wait: bool = True) -> None:
        said = self._beginnings()
        root = Path(__file__).resolve().parents[2]
        command = [sys.executable, "-m", self._module, "run", "--config", str(self.file), *self._options]
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                ["setpriv", "--pdeathsig=KILL", "--", *command], stdout=log, stderr=log, cwd=root
            )
        if wait:
            wait_for(lambda: self._beginnings() > said, seconds=30, what=f"the bridge takes records, see {self.log}")

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def kill(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.wait()

    def stop(self) -> int:
        assert self._process is not None
        self._process.terminate()
        return self._process.wait(20)

    def signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        os.kill(self._process.pid, number)

    def _beginnings(self) -> int:
        return self.log.read_text().count("ingest_begun") if self.log.exists() else 0

    def keys(self) -> list[tuple[str, str, str, int]]:
        """The truth of the file, read without the program's own code."""
        with closing(sqlite3.connect(f"file:{self.database}?mode=ro", uri=True)) as db:
            return db.execute(
                "SELECT s.gateway, s.epoch, s.class, r.seq FROM stream_records r JOIN streams s ON s.id = r.stream"
            ).fetchall()
