"""A real mosquitto on a free port of loopback, with a configuration of its own."""

import shutil
import socket
import subprocess
from pathlib import Path
from types import TracebackType
from typing import Self

from hil.loopback.children import free_port
from tests.simulators.waiting import wait_for

BINARY = shutil.which("mosquitto", path="/usr/sbin:/usr/bin:/usr/local/sbin:/usr/local/bin")


class Mosquitto:
    """Knobs: `settings` are lines of its configuration; `persistence` keeps queued messages over a clean restart."""

    def __init__(self, directory: Path, *settings: str, persistence: bool = False) -> None:
        self.port = free_port()
        self.log = directory / "mosquitto.log"
        self._file = directory / "mosquitto.conf"
        self._file.write_text(
            f"listener {self.port} 127.0.0.1\nallow_anonymous true\nmax_queued_messages 100000\n"
            f"max_inflight_messages 1000\nmax_packet_size 16777216\npersistence {str(persistence).lower()}\n"
            f"persistence_location {directory}/\nlog_type error\nlog_type warning\nuser root\n"
            + "".join(f"{line}\n" for line in settings)
        )
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"mqtt://127.0.0.1:{self.port}"

    def start(self) -> None:
        command = ["setpriv", "--pdeathsig=KILL", "--", BINARY or "mosquitto", "-c", str(self._file)]
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log)
        wait_for(self._listens, seconds=10, what="mosquitto listens")

    def stop(self) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait(10)

    def kill(self) -> None:
        """Everything queued in it is lost."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def _listens(self) -> bool:
        with socket.socket() as probe:
            probe.settimeout(1)
            return probe.connect_ex(("127.0.0.1", self.port)) == 0

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()
