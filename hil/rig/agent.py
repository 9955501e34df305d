"""Commands in the guest over its virtio serial port: no network, no login, and it works before either does."""

import base64
import json
import socket
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from hil.loopback.children import RigError
from hil.rig.patience import patient

PORT: Final = "org.sluice.rig.0"
"""The name of the virtio serial port."""
PLUGS: Final = "/data/rig-plugs"
"""Scripts that plug again, after a restart of the guest, what its kernel emulates."""
_PATIENCE: Final = "[Service]\nTimeoutStartSec=20min\nTimeoutStopSec=5min\nWatchdogSec=5min\n"
"""Emulated processors on a busy machine start a gateway in minutes; systemd would begin anew each time, for ever."""
SCRIPT: Final = Path(__file__).with_name("guest_agent.py")


class AgentError(RigError):
    """The guest does not answer."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a command came to."""

    out: str
    err: str
    code: int


class Agent:
    """The host's end of the port."""

    def __init__(self, path: Path) -> None:
        """path: of the UNIX socket at which QEMU offers the port."""
        self._path = path
        self._socket: socket.socket | None = None
        self._buffer = b""
        self._last_id = time.monotonic_ns()

    def run(self, command: str, *, seconds: float = 60.0) -> Answer:
        """Run a shell command as root.

        Raises:
            AgentError: no answer in time; the connection is made anew for the next command.
        """
        seconds = patient(seconds)
        answer = self._ask({"run": command, "seconds": seconds}, seconds + 15.0)
        return Answer(out=answer["out"], err=answer["err"], code=answer["code"])

    def put(self, content: bytes, path: str, *, mode: int = 0o600) -> None:
        """Write a file in the guest, durably; its folder must be there.

        Raises:
            AgentError: it cannot be written.
        """
        answer = self._ask({"put": path, "data": base64.b64encode(content).decode(), "mode": mode}, patient(120.0))
        if answer["code"]:
            raise AgentError(f"cannot write {path} in the guest: {answer['err']}")

    def answers(self, *, seconds: float = 3.0) -> bool:
        """Tell whether the guest answers at all."""
        seconds = patient(seconds)
        try:
            return bool(self._ask({"run": "true", "seconds": seconds}, seconds)["code"] == 0)
        except AgentError:
            return False

    def close(self) -> None:
        """Hang up; the next command connects anew."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        self._buffer = b""

    def _ask(self, request: dict[str, Any], seconds: float) -> dict[str, Any]:
        self._last_id += 1
        deadline = time.monotonic() + seconds
        try:
            if self._socket is None:
                self._socket = socket.socket(socket.AF_UNIX)
                self._socket.settimeout(seconds)
                self._socket.connect(str(self._path))
            self._socket.settimeout(seconds)
            # The line break in front ends what a command before a restart may have left half written.
            self._socket.sendall(b"\n" + json.dumps({"id": self._last_id, **request}).encode() + b"\n")
            while True:
                answer = self._line(deadline)
                if answer.get("id") == self._last_id:  # an answer to something that was given up is dropped
                    return answer
        except OSError as error:
            self.close()
            raise AgentError(f"the guest did not answer within {seconds:.0f} s: {error}") from error

    def _line(self, deadline: float) -> dict[str, Any]:
        assert self._socket is not None
        while b"\n" not in self._buffer:
            self._socket.settimeout(max(0.001, deadline - time.monotonic()))
            chunk = self._socket.recv(65536)
            if not chunk:
                raise ConnectionResetError("QEMU hung up")
            self._buffer += chunk
        line, _, self._buffer = self._buffer.partition(b"\n")
        try:
            content = json.loads(line)
        except ValueError:
            return {}
        return content if isinstance(content, dict) else {}


def credentials() -> list[str]:
    """Return what the firmware tells the guest's systemd (SMBIOS type 11) so that it runs the agent from each boot on.

    See systemd.system-credentials(7): `systemd.extra-unit.…` and `systemd.unit-dropin.…`.
    """
    unit = f"""\
[Unit]
Description=Rig agent (test images only)
DefaultDependencies=no
After=systemd-udevd.service
ConditionPathExists=/usr/bin/python3
ConditionPathExists=!/etc/initrd-release
StartLimitIntervalSec=0
[Service]
Type=exec
ImportCredential=sluice.rig-agent
ExecStart=/usr/bin/python3 %d/sluice.rig-agent /dev/virtio-ports/{PORT}
Restart=always
RestartSec=1
OOMScoreAdjust=-900
"""
    plugs = f"""\
[Unit]
Description=Rig: what is plugged stays plugged over a restart (test images only)
RequiresMountsFor=/data
Before=gateway.service
[Service]
Type=oneshot
ExecStart=/bin/sh -c 'for each in {PLUGS}/*.sh; do [ ! -e "$each" ] || sh "$each"; done'
"""
    secrets = {
        "systemd.extra-unit.sluice-rig-agent.service": unit.encode(),
        "systemd.unit-dropin.sysinit.target": b"[Unit]\nWants=sluice-rig-agent.service\n",
        "systemd.extra-unit.sluice-rig-plugs.service": plugs.encode(),
        "systemd.unit-dropin.multi-user.target": b"[Unit]\nWants=sluice-rig-plugs.service\n",
        "systemd.unit-dropin.gateway.service": _PATIENCE.encode(),
        "sluice.rig-agent": SCRIPT.read_bytes(),
    }
    return [
        f"io.systemd.credential.binary:{name}={base64.b64encode(content).decode()}" for name, content in secrets.items()
    ]


def typed() -> list[str]:
    """Return the lines to type into a root shell that start the agent where credentials are not taken."""
    text = base64.b64encode(SCRIPT.read_bytes()).decode()
    pieces = [text[at : at + 700] for at in range(0, len(text), 700)]  # a terminal takes 4095 bytes a line
    lines = [": >/run/rig-agent.b64"]
    lines += [f"echo {piece} >>/run/rig-agent.b64" for piece in pieces]
    lines += [
        "base64 -d </run/rig-agent.b64 >/run/rig-agent.py",
        "systemd-run --unit=sluice-rig-agent --property=Restart=always --property=RestartSec=1 "
        f"/usr/bin/python3 /run/rig-agent.py /dev/virtio-ports/{PORT}",
    ]
    return lines
