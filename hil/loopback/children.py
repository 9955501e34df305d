"""Child processes of the loopback rig: started, watched, stopped, killed, and never left behind."""

import os
import random
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

_PORTS_GIVEN_OUT = Path("/proc/sys/net/ipv4/ip_local_port_range")
_LOWEST_PORT = 10_000
_TRIES = 100
_chance = random.SystemRandom()  # of its own: tests set the seed of the common one


class RigError(Exception):
    """The rig cannot be brought into the state that was asked for."""


class Child:
    """One process of the rig, with its output in a file."""

    def __init__(
        self, name: str, command: Sequence[str], log: Path, environment: Mapping[str, str] | None = None
    ) -> None:
        self.name = name
        self.command = list(command)
        self.log = log
        self._environment = {**os.environ, **(environment or {})}
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """The process id while it runs."""
        if self._process is None:
            raise RigError(f"{self.name} is not running")
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether the process is there."""
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Start the process; it dies with this one, even if this one is killed."""
        if self.running:
            raise RigError(f"{self.name} is running already")
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as output:
            self._process = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", "--", *self.command],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=self._environment,
                start_new_session=True,
            )

    def stop(self, timeout_seconds: float = 30.0) -> int:
        """Ask the process to end and wait for it; returns its exit status.

        Raises:
            RigError: it did not end in time; it is killed then.
        """
        if self._process is None:
            return 0
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(timeout_seconds)
            except subprocess.TimeoutExpired as error:
                self.kill()
                message = f"{self.name} did not stop within {timeout_seconds:.0f} s\n{self.tail()}"
                raise RigError(message) from error
        return self._process.returncode

    def kill(self) -> None:
        """Kill the process without warning, as a crash would."""
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.wait()

    def signal(self, number: signal.Signals) -> None:
        """Send a signal, e.g. SIGSTOP."""
        os.kill(self.pid, number)

    def tail(self, lines: int = 30) -> str:
        """Return the last lines of its output."""
        if not self.log.exists():
            return ""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])

    def wait_until(self, condition: Callable[[], bool], what: str, timeout_seconds: float = 30.0) -> None:
        """Wait until a condition holds while the process lives.

        Raises:
            RigError: the process ended, or the time is over.
        """
        deadline = time.monotonic() + timeout_seconds
        while not condition():
            if not self.running:
                code = self._process.returncode if self._process else None
                raise RigError(f"{self.name} ended with status {code} before {what}; its output:\n{self.tail()}")
            if time.monotonic() > deadline:
                raise RigError(f"{self.name}: {what} did not happen within {timeout_seconds:.0f} s\n{self.tail()}")
            time.sleep(0.02)


def free_port() -> int:
    """Return a TCP port of the loopback address that was free a moment ago.

    It is none that the kernel gives to connections that go out: while a broker is away for half a minute, one of those
    would take its port.
    """
    first = int(_PORTS_GIVEN_OUT.read_text().split()[0])
    for _ in range(_TRIES):
        port = _chance.randrange(_LOWEST_PORT, first) if first > 2 * _LOWEST_PORT else 0
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    raise RigError(f"no free TCP port in {_TRIES} tries")


def is_listening(port: int, host: str = "127.0.0.1") -> bool:
    """Tell whether something accepts connections on a port, of the loopback address unless another one is given."""
    with socket.socket() as probe:
        probe.settimeout(0.5)
        return probe.connect_ex((host, port)) == 0
