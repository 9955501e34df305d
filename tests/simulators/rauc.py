#!/usr/bin/env python3
"""A device with two slots, its boot loader, and a `rauc` command over it that behaves like the real one.

As a program: `rauc.py --machine DIRECTORY status|info|install …`, with the output of RAUC 1.13. As a module: `Machine`
makes the directory, starts the device (`boot`), and has the knobs. Bundles have RAUC's layout
(`tests.simulators.os_bundle`) and are verified with openssl; their hash tree is one digest.
"""

import configparser
import hashlib
import json
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

Fate = Literal["healthy", "unhealthy", "panics", "crashes"]


@dataclass
class Machine:
    """The device. Everything lies in `directory`, so that the program sees what the test sets.

    Knobs: `set(stream_fails=2)`: so many installations over HTTP fail as RAUC 1.13 does after a boot; `install_fails`;
    `denied`: D-Bus refuses; `silent_seconds`: an installation says nothing for so long before it goes on; `busy`;
    `good_on_trial`: the boot loader calls a slot that runs good before it was marked, as back ends of others do;
    `unreadable`: so many looks at a bundle find that the medium gives nothing, `unreadable_below`: those at files below
    such a folder always do; `refused_by_handler`: an exit status; `crashes_on_damage`: the service goes down, as that
    of RAUC 1.13 where a file of the bundle cannot be read. `looks` counts looks at bundles in files.
    """

    directory: Path

    @property
    def state(self) -> dict[str, Any]:
        """What is written down."""
        return dict(json.loads((self.directory / "device.json").read_text()))

    def set(self, **changes: object) -> None:
        """Change it."""
        state = (self.state if (self.directory / "device.json").exists() else {}) | changes
        part = self.directory / "device.json.part"
        part.write_text(json.dumps(state))
        part.replace(self.directory / "device.json")

    @classmethod
    def make(cls, directory: Path, *, compatible: str, version: str, floor: str = "", keyring: Path) -> "Machine":
        """Make a device that runs a version in slot a, and has nothing in slot b."""
        directory.mkdir(parents=True, exist_ok=True)
        machine = cls(directory)
        machine.set(
            compatible=compatible,
            booted="a",
            primary="a",
            keyring=str(keyring),
            boot_id=_new_boot_id(),
            fates={},
            floors={version: floor},
            slots={
                "a": {"version": version, "good": True, "tries": 0, "recorded": False},
                "b": {"version": "", "good": True, "tries": 0, "recorded": False},
            },
        )
        machine._write_release()
        return machine

    @property
    def command(self) -> tuple[str, ...]:
        """How the program is called."""
        return (sys.executable, str(Path(__file__).resolve()), "--machine", str(self.directory))

    @property
    def release_file(self) -> Path:
        """As /usr/lib/sluice/release.json."""
        return self.directory / "release.json"

    @property
    def boot_id(self) -> str:
        """Of this boot."""
        return str(self.state["boot_id"])

    @property
    def version(self) -> str:
        """That runs."""
        state = self.state
        return str(state["slots"][state["booted"]]["version"])

    def fate(self, version: str, fate: Fate) -> None:
        """Say what becomes of a version when it is started."""
        self.set(fates=self.state["fates"] | {version: fate})

    def boot(self, health_file: Path | None = None) -> str:
        """Restart, as the boot loader, the kernel and the health check do; return the slot that runs in the end."""
        while True:
            state = self.state
            slots = state["slots"]
            slot = state["primary"] if slots[state["primary"]]["good"] else _other(state["primary"])
            trying = not slots[slot].get("blessed", slot == state["booted"])
            version = slots[slot]["version"]
            self.set(booted=slot, boot_id=_new_boot_id())
            fate = state["fates"].get(version, "healthy") if trying else "healthy"
            if fate in ("healthy", "crashes"):
                self._write_release()
                return str(slot)
            if fate == "unhealthy" and health_file is not None:
                self._write_release()
                self.report(health_file, verdict="unhealthy", reasons=["gateway.service was restarted 5 times"])
            slots[slot]["good"] = False  # its tries are used up
            self.set(slots=slots, primary=_other(slot))

    def give_up(self) -> None:
        """The running slot goes down before it was marked good, and its tries are used up."""
        state = self.state
        state["slots"][state["booted"]]["good"] = False
        self.set(slots=state["slots"], primary=_other(state["booted"]))

    def report(self, health_file: Path, *, verdict: str = "healthy", reasons: list[str] | None = None) -> None:
        """Write what the health check writes."""
        report = {
            "version": 1,
            "at": f"{time.time_ns()}",
            "boot_id": self.boot_id,
            "image": json.loads(self.release_file.read_text()),
            "verdict": verdict,
            "healthy": verdict == "healthy",
            "reasons": reasons or [],
        }
        health_file.parent.mkdir(parents=True, exist_ok=True)
        health_file.write_text(json.dumps(report))

    def bless(self, health_file: Path | None = None) -> None:
        """Do what the health unit does in the end: healthy, and marked good."""
        if health_file is not None:
            self.report(health_file)
        state = self.state
        state["slots"][state["booted"]] |= {"blessed": True, "good": True}
        self.set(slots=state["slots"])

    def _write_release(self) -> None:
        state = self.state
        version = state["slots"][state["booted"]]["version"]
        release = {
            "version": version,
            "commit": "0" * 40,
            "target": "uefi-amd64",
            "compatible": state["compatible"],
            "floor": state["floors"].get(version, ""),
        }
        self.release_file.write_text(json.dumps(release))


def _new_boot_id() -> str:
    return Path("/proc/sys/kernel/random/uuid").read_text().strip()


def _other(slot: str) -> str:
    return "b" if slot == "a" else "a"


# ---- the program -----------------------------------------------------------------------------------------


class _FailedError(Exception):
    """It ends with status 1 and these words."""


def _status(machine: Machine) -> dict[str, Any]:
    state = machine.state
    slots = []
    for number, (name, slot) in enumerate(state["slots"].items()):
        on_trial = name == state["booted"] and not slot.get("blessed", True) and not state.get("good_on_trial")
        status: dict[str, Any] = {}
        if slot["recorded"]:
            status = {
                "bundle": {"compatible": state["compatible"], "version": slot["version"]},
                "checksum": {"sha256": "0" * 64, "size": 1},
                "installed": {"timestamp": "2026-01-01T00:00:00Z", "count": 1},
                "status": slot.get("status", "ok"),
            }
        slots.append(
            {
                f"rootfs.{number}": {
                    "class": "rootfs",
                    "device": f"/dev/disk/by-partlabel/root-{name}",
                    "type": "raw",
                    "bootname": name,
                    "state": "booted" if name == state["booted"] else "inactive",
                    "parent": None,
                    "mountpoint": "/" if name == state["booted"] else None,
                    "boot_status": "good" if slot["good"] and not on_trial else "bad",
                    "slot_status": status,
                }
            }
        )
    names = {name: f"rootfs.{number}" for number, name in enumerate(state["slots"])}
    return {
        "compatible": state["compatible"],
        "variant": None,
        "booted": state["booted"],
        "boot_primary": names[state["primary"]],
        "slots": slots,
    }


def _read(source: str, machine: Machine, *, whole: bool) -> bytes:
    if not source.startswith(("http://", "https://")):
        try:
            return Path(source).read_bytes()
        except OSError as error:
            raise _FailedError(f"No such file: {source}") from error
    try:
        size = _part(source, "0-3")[1]
        tail = _part(source, f"{size - 8}-{size - 1}")[0]
        begin = size - 8 - int.from_bytes(tail, "big")
        signature = _part(source, f"{begin}-{size - 1}")[0]
        if not whole:
            return bytes(begin) + signature
        step = 64 * 1024
        parts = [_part(source, f"{at}-{min(at + step, begin) - 1}")[0] for at in range(0, begin, step)]
    except OSError as error:
        raise _FailedError(f"failed to configure streaming: {error}") from error
    return b"".join(parts) + signature


def _part(url: str, span: str) -> tuple[bytes, int]:
    import http.client  # noqa: PLC0415 - takes longer than most commands

    host, _, path = url.removeprefix("http://").partition("/")
    connection = http.client.HTTPConnection(host, timeout=30)
    try:
        connection.request("GET", f"/{path}", headers={"range": f"bytes={span}"})
        answer = connection.getresponse()
        if answer.status != http.client.PARTIAL_CONTENT:
            raise _FailedError(f"failed to configure streaming: HTTP error {answer.status}")
        try:
            return answer.read(), int(str(answer.headers["content-range"]).rpartition("/")[2])
        except http.client.HTTPException as error:
            raise _FailedError(f"failed to read over the network: {error!r}") from error
    finally:
        connection.close()


def _opened(source: str, machine: Machine, *, whole: bool) -> tuple[configparser.ConfigParser, bytes]:
    state = machine.state
    if not source.startswith("http"):
        machine.set(looks=state.get("looks", 0) + 1)
    below = state.get("unreadable_below")
    if (left := state.get("unreadable", 0)) > 0 or (below and source.startswith(below)):
        machine.set(unreadable=max(0, left - 1))
        raise _FailedError(
            "Invalid bundle format: Failed to read signature size from bundle: Error reading from file: "
            "Input/output error"
        )
    content = _read(source, machine, whole=whole)
    size = int.from_bytes(content[-8:], "big")
    if len(content) < 8 or not 0 < size < len(content) - 8:
        raise _FailedError(f"Signature size ({size}) exceeds bundle size")
    command = ["openssl", "cms", "-verify", "-binary", "-inform", "DER"]
    command += ["-CAfile", machine.state["keyring"], "-purpose", "any"]
    done = subprocess.run(command, input=content[-8 - size : -8], capture_output=True, check=False)
    if done.returncode != 0:
        words = done.stderr.decode().strip().splitlines()
        raise _FailedError(f"signature verification failed: Verify error: {words[-1] if words else 'unknown'}")
    manifest = configparser.ConfigParser(interpolation=None)
    manifest.read_string(done.stdout.decode())
    return manifest, content[: -8 - size]


def _info(source: str, machine: Machine) -> dict[str, Any]:
    manifest, _ = _opened(source, machine, whole=False)
    image = manifest["image.rootfs"]
    adaptive = image.get("adaptive", "").split(";") if image.get("adaptive") else []
    return {
        "update": {"compatible": manifest["update"]["compatible"], "version": manifest["update"]["version"]},
        "bundle": {"format": "verity"},
        "hooks": {},
        "images": [{"slot-class": "rootfs", "filename": image["filename"], "adaptive": adaptive}],
        "meta": {"sluice": dict(manifest["meta.sluice"])} if manifest.has_section("meta.sluice") else {},
    }


def _install(source: str, machine: Machine) -> None:
    print("installing")
    print("  0% Installing")
    state = machine.state
    if state.get("denied"):
        raise _FailedError("Failed to contact rauc service: GDBus.Error:org.freedesktop.DBus.Error.AccessDenied")
    if state.get("busy"):
        raise _FailedError("Failed to contact rauc service: Already processing a different method")
    time.sleep(state.get("silent_seconds", 0))
    print(" 20% Determining slot states", flush=True)
    if source.startswith("http") and state.get("stream_fails", 0) > 0:
        machine.set(stream_fails=state["stream_fails"] - 1)
        raise _FailedError(
            "LastError: Failed mounting bundle: Failed to load dm table: verity: Hash device is too small"
        )
    if state.get("install_fails", 0) > 0:
        machine.set(install_fails=state["install_fails"] - 1)
        raise _FailedError("LastError: Installation error: Failed updating slot rootfs.1: Input/output error")
    manifest, payload = _opened(source, machine, whole=True)
    print(" 40% Checking bundle", flush=True)
    if manifest["update"]["compatible"] != state["compatible"]:
        wrong = manifest["update"]["compatible"]
        raise _FailedError(
            f"LastError: Compatible mismatch: Expected '{state['compatible']}' but bundle manifest has '{wrong}'"
        )
    if state.get("refused_by_handler"):
        raise _FailedError(
            f"LastError: Pre-install handler error: Child process exited with code {state['refused_by_handler']}"
        )
    other = _other(state["booted"])
    slots = state["slots"]
    slots[other] |= {"recorded": True, "status": "pending", "good": False, "version": ""}
    machine.set(slots=slots, installs=state.get("installs", 0) + 1)
    time.sleep(state.get("write_seconds", 0))
    if hashlib.sha256(payload).hexdigest() != manifest["bundle"]["verity-hash"]:
        if state.get("crashes_on_damage"):
            raise _FailedError(f"RAUC service disappeared\nD-Bus error while installing `{source}`")
        raise _FailedError(
            "LastError: Installation error: Failed updating slot rootfs.1: Input/output error (dm-verity)"
        )
    version = manifest["update"]["version"]
    print(" 99% Checking slot rootfs.1 done.")
    slots[other] |= {"status": "ok", "good": True, "version": version, "blessed": False}
    floors = machine.state["floors"] | {version: manifest.get("meta.sluice", "floor", fallback="")}
    machine.set(slots=slots, primary=other, floors=floors)
    print("100% Installing done.")
    print(f"Installing `{source}` succeeded")


def _mark(verb: str, which: str, machine: Machine) -> None:
    state = machine.state
    slot = state["booted"] if which == "booted" else _other(state["booted"])
    if verb == "mark-active":
        state["slots"][slot]["good"] = True
        machine.set(primary=slot, slots=state["slots"])
    else:
        state["slots"][slot] |= {"good": verb == "mark-good", "blessed": verb == "mark-good"}
        machine.set(slots=state["slots"])
    print(f"rauc status: marked slot(s) {slot} as {verb.removeprefix('mark-')}")


def main(arguments: list[str]) -> int:
    """Run a command."""
    machine = Machine(Path(arguments[1]))
    verb, *rest = arguments[2:]
    plain = [each for each in rest if not each.startswith("--")]
    try:
        if machine.state.get("gone"):
            raise _FailedError("Error creating proxy: Could not connect: No such file or directory")
        match verb, plain:
            case "status", []:
                print(json.dumps(_status(machine)))
            case "status", [mark]:
                _mark(mark, "booted", machine)
            case "status", [mark, which]:
                _mark(mark, which, machine)
            case "info", [source]:
                print(json.dumps(_info(source, machine)))
            case "install", [source]:
                _install(source, machine)
            case _:
                raise _FailedError(f"Invalid command {verb!r}")
    except _FailedError as error:
        print(error, file=sys.stderr)
        if verb == "install":
            print(f"Installing `{plain[0]}` failed", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
