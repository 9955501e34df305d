"""Talk to QEMU: the QEMU Machine Protocol over a UNIX socket, one command at a time."""

import json
import socket
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from hil.loopback.children import RigError
from hil.rig.patience import patient


class QmpError(RigError):
    """QEMU refused a command, or is not there any more."""


class Qmp:
    """One connection to the monitor of a running QEMU. Use as a context manager, or call `close`."""

    def __init__(self, path: Path, *, timeout_seconds: float = 30.0) -> None:
        """Connect and agree on capabilities. path: of the socket.

        Raises:
            QmpError: nobody answers there in time.
        """
        self._path = path
        self._timeout_seconds = timeout_seconds = patient(timeout_seconds)
        self._buffer = b""
        self.events: list[dict[str, Any]] = []
        deadline = time.monotonic() + timeout_seconds
        try:
            self._socket = _connected(path, deadline)
            self._read(deadline)  # the greeting
        except OSError as error:
            raise QmpError(f"no QEMU answers at {path}: {error}") from error
        self.command("qmp_capabilities")

    def command(self, name: str, /, *, seconds: float | None = None, **arguments: Any) -> Any:
        """Carry out a command, e.g. `set_link` with name="nic" and up=False; returns what QEMU answers.

        Arguments are named as in QMP, with `_` for `-`. Events that come meanwhile are kept in `events`.

        Raises:
            QmpError: it was refused, with QEMU's reason, or took longer than the timeout.
        """
        request: dict[str, Any] = {"execute": name}
        if arguments:
            request["arguments"] = {key.replace("_", "-"): value for key, value in arguments.items()}
        deadline = time.monotonic() + (self._timeout_seconds if seconds is None else patient(seconds))
        try:
            self._socket.sendall(json.dumps(request).encode() + b"\n")
            while True:
                answer = self._read(deadline)
                if "event" in answer:
                    self.events.append(answer)
                    continue
                break
        except OSError as error:
            raise QmpError(f"QEMU at {self._path} did not answer to {name}: {error}") from error
        if "error" in answer:
            raise QmpError(f"QEMU refused {name}: {answer['error'].get('desc', answer['error'])}")
        return answer.get("return")

    def monitor(self, line: str, *, seconds: float = 120.0) -> str:
        """Type a line into the human monitor, for what QMP has no command for, e.g. `savevm`; returns what it says."""
        # Arguments with a hyphen; `command` makes hyphens of underscores.
        return str(self.command("human-monitor-command", command_line=line, seconds=seconds) or "")

    def wait_for(self, event: str, *, seconds: float) -> dict[str, Any]:
        """Wait for an event, also one that has come already; it is taken out of `events`.

        Raises:
            QmpError: it does not come in time.
        """
        seconds = patient(seconds)
        deadline = time.monotonic() + seconds
        while True:
            found = next((one for one in self.events if one["event"] == event), None)
            if found is not None:
                self.events.remove(found)
                return found
            try:
                answer = self._read(deadline)
            except OSError as error:
                raise QmpError(f"QEMU told no {event} within {seconds:.0f} s: {error}") from error
            if "event" in answer:
                self.events.append(answer)

    def close(self) -> None:
        """Hang up."""
        self._socket.close()

    def _read(self, deadline: float) -> dict[str, Any]:
        while b"\n" not in self._buffer:
            self._socket.settimeout(max(0.001, deadline - time.monotonic()))
            chunk = self._socket.recv(65536)
            if not chunk:
                raise ConnectionResetError("QEMU hung up")
            self._buffer += chunk
        line, _, self._buffer = self._buffer.partition(b"\n")
        content: dict[str, Any] = json.loads(line)
        return content

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _connected(path: Path, deadline: float) -> socket.socket:
    while True:
        made = socket.socket(socket.AF_UNIX)
        made.settimeout(max(0.001, deadline - time.monotonic()))
        try:
            made.connect(str(path))
        except ConnectionRefusedError:
            made.close()
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)  # QEMU has made the socket, and listens in a moment
        except OSError:
            made.close()
            raise
        else:
            return made
