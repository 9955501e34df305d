"""Images of the system over the air, whole: registry, rollout, broker, bridge and gateway are real; RAUC is simulated.

The boot is simulated too: the gateway is stopped when it has asked for a restart, and started on the other slot.
"""

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from gateway.control import ask
from gateway.errors import ControlError
from gateway.osupdate.levers import carry_out
from gateway.osupdate.surroundings import boot_id
from hil.loopback.rig import GATEWAY_ID, Rig, eventually
from hil.loopback.updates import Updates
from tests.e2e.security.conftest import Secured
from tests.e2e.security.test_updates import site_with_updates
from tests.simulators.os_bundle import Signer, bundle
from tests.simulators.rauc import Machine

COMPATIBLE = "sluice-uefi-amd64"
ROOT = Path(__file__).parents[3]


@dataclass
class Appliance:
    """A site whose gateway looks after a machine with two slots."""

    rig: Rig
    machine: Machine
    signer: Signer
    directory: Path
    asked: threading.Event = field(default_factory=threading.Event)
    stopping: threading.Event = field(default_factory=threading.Event)

    def cloud(self, *words: str) -> Any:
        assert self.rig.site is not None
        return json.loads(self.rig.site.in_cloud(*words, "--json"))

    def publish(self, version: str, **parts: Any) -> Path:
        file = bundle(self.directory / f"{version}.raucb", parts.pop("signer", self.signer), version=version, **parts)
        self.cloud("os", "publish", str(file))
        return file

    def roll_out(self, version: str) -> str:
        words = ("--os", version, "--target", COMPATIBLE, "--waves", "rest", "--soak", "1s")
        return str(self.cloud("rollout", "create", *words)["id"])

    def rollout(self, rollout_id: str) -> Any:
        return self.cloud("rollout", "status", rollout_id)

    def status(self) -> Any:
        try:
            return ask(self.rig.state_directory / "gateway.sock", "os")
        except ControlError:
            return {}

    def be_root(self) -> None:
        """Be the path unit, until stopped."""
        mark = [sys.executable, "-c", ""]
        while not self.stopping.wait(0.05):
            if carry_out(self.rig.state_directory, rauc=self.machine.command, restart=mark) == "restart":
                self.asked.set()

    def restart(self) -> str:
        """Restart the device once the gateway has asked for it; returns the slot that runs."""
        assert self.asked.wait(90), (self.status(), self.rig.gateway.tail(20))
        self.asked.clear()
        assert self.rig.gateway.stop() == 0
        slot = self.machine.boot(self.health)
        self.machine.set(boot_id=boot_id())  # this machine was not restarted, and the gateway sees that
        self.rig.start_gateway()
        return slot

    @property
    def health(self) -> Path:
        return self.rig.state_directory / "health.json"


@contextmanager
def appliance(tmp_path: Path, secured: Secured, **settings: Any) -> Iterator[Appliance]:
    signer = Signer.make()
    machine = Machine.make(
        tmp_path / "machine",
        compatible=COMPATIBLE,
        version="1.0.0",
        floor="1.0.0",
        keyring=signer.keyring(tmp_path / "k.pem"),
    )
    updates = Updates(tmp_path / "updates")
    system = {
        "enabled": "yes",
        "rauc": [*machine.command],
        "release_file": str(machine.release_file),
        "media": "off",
        "flush_seconds": 5.0,
        **settings,
    }
    rig = site_with_updates(tmp_path, secured, updates, os=system)
    rig.start(before=updates.prepare)
    made = Appliance(rig, machine, signer, tmp_path)
    root = threading.Thread(target=made.be_root, daemon=True)
    root.start()
    try:
        eventually(lambda: made.status().get("system"), "the gateway knows its system", 30)
        yield made
    finally:
        made.stopping.set()
        root.join()


@pytest.mark.parametrize("delivery", ["download", "stream"])
def test_an_image_is_rolled_out_installed_started_and_marked_good(
    tmp_path: Path, secured: Secured, delivery: str
) -> None:
    with appliance(tmp_path, secured, delivery=delivery) as device:
        device.machine.set(stream_fails=1)
        device.publish("1.1.0", floor="1.0.0", adaptive=True)
        rollout = device.roll_out("1.1.0")
        assert device.restart() == "b"
        eventually(lambda: (device.status().get("told") or {}).get("phase") == "trial", "it is on trial", 60)
        device.machine.bless(device.health)
        eventually(lambda: device.rollout(rollout)["phase"] == "done", "the rollout is done", 60)
        report = device.rollout(rollout)
        assert report["kind"] == "os"
        assert report["devices"][0]["gateway"] == GATEWAY_ID
        assert report["devices"][0]["standing"] == "running"
        told = device.status()["history"]
        assert [each["what"] for each in told] == ["wanted", "fetched", "installed", "restarting", "started", "proven"]


def test_an_image_that_panics_ends_on_the_old_slot_and_halts_its_rollout_with_the_reason(
    tmp_path: Path, secured: Secured
) -> None:
    with appliance(tmp_path, secured) as device:
        device.publish("1.1.0")
        device.machine.fate("1.1.0", "panics")
        rollout = device.roll_out("1.1.0")
        assert device.restart() == "a"
        eventually(lambda: device.rollout(rollout)["phase"] == "halted", "the rollout is halted", 60)
        report = device.rollout(rollout)
        assert "tries to boot are used up" in report["reason"], report["reason"]
        assert device.machine.version == "1.0.0"


@pytest.mark.parametrize("fault", ["signature", "floor"])
def test_an_image_that_must_not_be_installed_is_refused_and_the_bridge_hears_why(
    tmp_path: Path, secured: Secured, fault: str
) -> None:
    with appliance(tmp_path, secured) as device:
        version = "0.9.0" if fault == "floor" else "1.1.0"
        device.publish(version, **({"signer": Signer.make("somebody")} if fault == "signature" else {}))
        rollout = device.roll_out(version)
        eventually(lambda: device.rollout(rollout)["phase"] == "halted", "the rollout is halted", 60)
        assert fault in device.rollout(rollout)["reason"]
        assert "installs" not in device.machine.state


def test_a_person_installs_from_a_stick_and_is_told_how_it_goes(tmp_path: Path, secured: Secured) -> None:
    with appliance(tmp_path, secured) as device:
        file = bundle(tmp_path / "stick.raucb", device.signer, version="1.2.0")
        words = [sys.executable, "-m", "gateway", "os", "install", str(file), "--config", str(device.rig.gateway_file)]
        done = subprocess.run(words, capture_output=True, text=True, timeout=120, cwd=ROOT, check=False)
        assert done.returncode == 0, done.stderr
        assert "installed in slot b" in done.stdout
        assert device.restart() == "b"
        forged = bundle(tmp_path / "forged.raucb", Signer.make("somebody"), version="1.3.0")
        words[5] = str(forged)
        done = subprocess.run(words, capture_output=True, text=True, timeout=120, cwd=ROOT, check=False)
        assert done.returncode == 1
        assert "signature verification failed" in done.stderr
