"""A real mosquitto on a free port, with its own configuration in a temporary directory."""

import os
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

import pytest

from hil.loopback.children import free_port

BINARY = shutil.which("mosquitto") or shutil.which("mosquitto", path="/usr/sbin:/usr/local/sbin")
LIMIT_SECONDS = 10.0


def require() -> None:
    """Skip where there is no broker to test against."""
    if BINARY is None:
        pytest.skip("mosquitto is not installed: apt-get install mosquitto")


class Mosquitto:
    """One broker; `start` and `kill` as often as wanted, always on the same port."""

    def __init__(self, directory: Path, *lines: str) -> None:
        require()
        self.port = free_port()
        self._config = directory / f"mosquitto-{self.port}.conf"
        self._config.write_text(
            "\n".join([f"listener {self.port} 127.0.0.1", "allow_anonymous true", "persistence false", *lines, ""])
        )
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"mqtt://127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        assert BINARY is not None
        command = [BINARY, "-c", str(self._config)]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        until = time.monotonic() + LIMIT_SECONDS
        while time.monotonic() < until:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            assert self._process.poll() is None, "mosquitto ended at once"
            time.sleep(0.02)
        raise AssertionError("mosquitto does not listen")

    def kill(self) -> None:
        """As a power cut would: nothing is written, nobody is told."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        self._end(signal.SIGTERM)

    def pause(self) -> None:
        os.kill(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    def _end(self, number: signal.Signals) -> None:
        if self._process is not None:
            self._process.send_signal(number)
            self._process.wait(LIMIT_SECONDS)
            self._process = None
