"""A gateway that runs, and a serial sensor that is plugged in, pulled out and plugged in at another node."""

import json
import os
import pty
import subprocess
import sys
import threading
import tty
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gateway.control import SOCKET_NAME, ask
from gateway.errors import ControlError
from tests.simulators.waiting import wait_for

REPOSITORY = Path(__file__).parents[2]
FLAGS = ["--net"] if os.geteuid() == 0 else ["--user", "--map-root-user", "--net"]
NAMESPACES = subprocess.run(["unshare", *FLAGS, "true"], capture_output=True, check=False).returncode == 0

CONFIG = """
gateway: {{id: plugged, state_directory: "{state}"}}
vault: {{level: software}}
metrics: {{enabled: false}}
sources:
  line: {{type: serial, device: "{device}", rate_hz: 100, silent_after_seconds: 600}}
pipelines:
  values: {{source: line, model: process-anomaly}}
"""


class Sensor:
    """A serial adapter behind a lasting name."""

    def __init__(self, link: Path) -> None:
        self.link = link
        self._stopping = threading.Event()
        self._masters: list[int] = []

    def plug(self) -> str:
        """Appear under another node than before; returns it."""
        master, slave = pty.openpty()
        tty.setraw(slave)
        node = os.ttyname(slave)
        os.close(slave)
        self._masters.append(master)
        self.link.symlink_to(node)
        threading.Thread(target=self._speak, args=(master,), daemon=True).start()
        return node

    def unplug(self) -> None:
        """Vanish, and say no more: a driver without a cable may be as silent."""
        self.link.unlink()
        self._stopping.set()
        self._stopping = threading.Event()

    def close(self) -> None:
        self._stopping.set()
        for master in self._masters:
            os.close(master)

    def _speak(self, master: int) -> None:
        stopping, at = self._stopping, 0
        while not stopping.wait(0.01):
            at += 1
            os.write(master, f"{20 + at % 7}\n".encode())


class Gateway:
    """The program, in a network namespace where only this test plays udev."""

    def __init__(self, directory: Path, device: Path) -> None:
        self.state = directory / "state"
        config = directory / "gateway.yaml"
        config.write_text(CONFIG.format(state=self.state, device=device))
        self._log = directory / "log"
        program = [sys.executable, "-m", "gateway", "run", "--config", str(config)]
        with self._log.open("w") as log:
            self._process = subprocess.Popen(
                ["unshare", *FLAGS, sys.executable, "-m", "tests.udev.uevent_mouth", *program],
                stdin=subprocess.PIPE, stdout=log, stderr=log, text=True, cwd=REPOSITORY,
            )  # fmt: skip

    def hears(self, action: str, node: str, link: Path) -> None:
        """Have udev say that a device came or went."""
        assert self._process.stdin is not None
        words = {"ACTION": action, "SUBSYSTEM": "tty", "DEVNAME": node, "DEVLINKS": str(link)}
        self._process.stdin.write(json.dumps(words) + "\n")
        self._process.stdin.flush()

    def pipeline(self) -> dict[str, Any]:
        """Return what it says of its pipeline; empty while it does not answer."""
        try:
            (pipeline,) = ask(self.state / SOCKET_NAME, "status")["pipelines"]
        except ControlError:
            return {}
        return dict(pipeline)

    def events(self) -> list[dict[str, Any]]:
        """Return its log."""
        return [json.loads(line) for line in self._log.read_text().splitlines() if line.startswith("{")]

    def close(self) -> str:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(40)
        return self._log.read_text()


@pytest.fixture
def sensor(tmp_path: Path) -> Iterator[Sensor]:
    made = Sensor(tmp_path / "serial-pci-0000:00:14.0-usb-0:4:1.0")
    try:
        yield made
    finally:
        made.close()


@pytest.mark.skipif(not NAMESPACES, reason="needs a network namespace, so that nobody else hears who plays udev")
def test_a_sensor_is_read_as_soon_as_it_is_plugged_in_and_not_looked_for_in_vain(
    tmp_path: Path, sensor: Sensor
) -> None:
    gateway = Gateway(tmp_path, sensor.link)
    try:
        wait_for(lambda: gateway.pipeline().get("waits_for") == "device", seconds=60, what="the gateway to be up")
        node = sensor.plug()
        gateway.hears("add", node, sensor.link)
        wait_for(lambda: gateway.pipeline().get("source_state") == "streaming", seconds=10)
        wait_for(lambda: gateway.pipeline()["inferences"], seconds=10)

        sensor.unplug()
        gateway.hears("remove", node, sensor.link)
        # The line is only silent, and may be for ten minutes: it is udev's word that tells.
        wait_for(lambda: gateway.pipeline().get("waits_for") == "device", seconds=10)
        assert "unplugged" in gateway.pipeline()["last_error"]
        answered = gateway.pipeline()["inferences"]

        other = sensor.plug()
        assert other != node
        gateway.hears("add", other, sensor.link)
        wait_for(lambda: gateway.pipeline().get("inferences", 0) > answered, seconds=10)
        assert gateway.pipeline()["waits_for"] == ""
        events = [entry["event"] for entry in gateway.events()]
    finally:
        log = gateway.close()
    assert [event for event in events if event.startswith("device_")] == [
        "device_came",
        "device_left",
        "device_came",
    ], log
    assert events.count("source_lost") == 2, log
    assert "hotplug_by_looking_only" not in log
