"""The device as tests see it: commands over whatever the rig has for that, and what the appliance says of itself."""

import base64
import json
import shlex
import time
from typing import Any, Final

from hil.loopback.children import RigError
from hil.rig.patience import patient, pause

GATEWAY: Final = "/opt/sluice/bin/gateway"
_PIECE_BYTES: Final = 16_000
_STATUS: Final = """\
import socket
with socket.socket(socket.AF_UNIX) as client:
    client.settimeout(20)
    client.connect("/run/sluice/gateway.sock")
    client.sendall(b'{"request": "status"}\\n')
    print(client.makefile().readline())
"""
"""What `gateway status --json` does, without the half minute that an emulated processor needs to start it."""


class Device:
    """An appliance that has booted."""

    def __init__(self, shell: Any) -> None:
        """shell: a driver with labgrid's CommandProtocol that is active: the guest agent, or SSH as root."""
        self._shell = shell

    def run(self, command: str, *, seconds: float = 60.0) -> str:
        """Run a shell command as root; returns its output.

        Raises:
            RigError: its exit status is not 0, or the device does not answer.
        """
        out, err, code = self.attempt(command, seconds=seconds)
        if code:
            raise RigError(f"`{command}` on the device: exit status {code}\n{err.strip() or out.strip()}")
        return out

    def attempt(self, command: str, *, seconds: float = 60.0) -> tuple[str, str, int]:
        """Run a shell command as root; returns output, errors and exit status."""
        out, err, code = self._shell.run(command, timeout=seconds)
        return "\n".join(out), "\n".join(err), int(code)

    def put(self, content: bytes, path: str, *, mode: str = "600") -> None:
        """Write a small file."""
        quoted = shlex.quote(path)
        self.run(f"mkdir -p $(dirname {quoted})")
        text = content.hex()
        for at in range(0, max(len(text), 1), 60_000):
            sign = ">" if at == 0 else ">>"
            piece = text[at : at + 60_000]
            script = f"import sys;sys.stdout.buffer.write(bytes.fromhex('{piece}'))"
            self.run(f'/usr/bin/python3 -c "{script}" {sign}{quoted}')
        self.run(f"chmod {mode} {quoted}")

    def get(self, path: str) -> bytes:
        """Read a file, in pieces: a serial line is no place for long answers.

        Raises:
            RigError: it is not there.
        """
        quoted = shlex.quote(path)
        pieces = -(-int(self.run(f"stat -Lc %s {quoted}")) // _PIECE_BYTES)
        read = f"dd if={quoted} bs={_PIECE_BYTES} count=1 status=none"
        return b"".join(base64.b64decode(self.run(f"{read} skip={at} | base64 -w 0")) for at in range(pieces))

    def eventually(self, command: str, what: str, *, seconds: float) -> str:
        """Run a command until it succeeds; returns its output.

        Raises:
            RigError: it does not in time; what it said last is told.
        """
        seconds = patient(seconds)
        deadline = time.monotonic() + seconds
        while True:
            began = time.monotonic()
            try:
                out, err, code = self.attempt(command)
            except RigError as error:
                out, err, code = "", str(error), 255
            if code == 0:
                return out
            now = time.monotonic()
            if now > deadline:
                raise RigError(f"{what} did not happen within {seconds:.0f} s: {err.strip() or out.strip()}")
            time.sleep(pause(now - began))

    # ---- what runs ---------------------------------------------------------------------------------

    def booted_slot(self) -> str:
        """Return `a` or `b`, as the kernel was told."""
        words = self.run("cat /proc/cmdline").split()
        return next((word.removeprefix("rauc.slot=") for word in words if word.startswith("rauc.slot=")), "")

    def release(self) -> dict[str, Any]:
        """Return which image runs."""
        content: dict[str, Any] = json.loads(self.run("cat /usr/lib/sluice/release.json"))
        return content

    def boot_id(self) -> str:
        """Return what is different after each boot."""
        return self.run("cat /proc/sys/kernel/random/boot_id").strip()

    def gateway(self, *words: str, seconds: float = 60.0) -> dict[str, Any]:
        """Ask a command of `gateway` for JSON."""
        text = self.run(shlex.join([GATEWAY, *words, "--json"]), seconds=seconds)
        content: dict[str, Any] = json.loads(text)
        return content

    def pipelines(self) -> dict[str, dict[str, Any]]:
        """Return the status of each pipeline; empty while the gateway does not answer."""
        return {each["pipeline"]: each for each in self.status().get("pipelines", [])}

    def status(self) -> dict[str, Any]:
        """Return what `gateway status --json` says; empty while the gateway does not answer."""
        out, _, code = self.attempt(f"/usr/bin/python3 -I -S -c {shlex.quote(_STATUS)}")
        if code or not out.strip():
            return {}  # it is not there, or was just about to go
        told: dict[str, Any] = json.loads(out).get("result") or {}
        return told

    def slots(self) -> dict[str, dict[str, Any]]:
        """Return what RAUC says of each slot of the root file system, by `a` and `b`."""
        told = json.loads(self.run("rauc status --detailed --output-format=json"))
        found: dict[str, dict[str, Any]] = {}
        for entry in told["slots"]:
            for slot in entry.values():
                if slot.get("bootname"):
                    found[slot["bootname"].lower().removeprefix("sluice-")] = slot
        return found

    # ---- what went wrong ---------------------------------------------------------------------------

    def failed_units(self) -> list[str]:
        """Return the units that have failed, without those of the login that images for rigs have on the serial line.

        On a starved emulator it takes longer than a login may.
        """
        out = self.run("systemctl list-units --failed --plain --no-legend --no-pager")
        names = (line.split()[0] for line in out.splitlines() if line.strip())
        return [name for name in names if not name.startswith(("session-", "user@"))]

    def journal(self, *words: str, lines: int = 60) -> str:
        """Return the end of the journal, of a unit or of all."""
        return self.attempt(f"journalctl --no-pager -o short-monotonic -n {lines} {shlex.join(words)}")[0]
