"""C29: a release that fails on every twentieth device is given to two hundred over a real broker.

The devices decide with their own code about twins and trials. The bridge is killed in the middle of the failing wave.
"""

import json
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from gateway.wire.messages import ModelRef
from tests.simulators.bridge_process import BridgeProcess
from tests.simulators.mosquitto import BINARY, Mosquitto
from tests.simulators.ota_device import OtaDevice, slow
from tests.simulators.ota_fleet import OtaFleet
from tests.simulators.waiting import wait_for

pytestmark = [pytest.mark.chaos, pytest.mark.net, pytest.mark.timeout(300)]

DEVICES = 200
SITE = 40
BAD_EVERY = 20
OLD, NEW = ModelRef(name="detector", version="1.0.0"), ModelRef(name="detector", version="1.1.0")
ROOT = Path(__file__).resolve().parents[2]
SETTINGS = "rollout: {enabled: true, every_seconds: 0.3, spread_seconds: 1.0, soak_minutes: 0.02, silent_minutes: 5}\n"
QUIET_SECONDS = 4.0


@dataclass(frozen=True, slots=True)
class Site:
    """Two hundred gateways, their broker and their bridge."""

    bridge: BridgeProcess
    fleet: OtaFleet

    def ask(self, *words: str) -> Any:
        command = [sys.executable, "-m", "cloud_bridge", *words, "--config", str(self.bridge.file), "--json"]
        done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT, timeout=60)
        return json.loads(done.stdout)

    def running(self, model: ModelRef) -> list[OtaDevice]:
        return [device for device in self.fleet.devices if device.model == model]

    @property
    def bad(self) -> list[OtaDevice]:
        return [device for device in self.fleet.devices if device.trials is slow]


@contextmanager
def site(directory: Path) -> Iterator[Site]:
    if BINARY is None:
        pytest.skip("mosquitto is not installed: apt-get install mosquitto")
    devices = [OtaDevice(f"gw-{number:03}", "camera", OLD) for number in range(DEVICES)]
    for device in devices[BAD_EVERY - 1 :: BAD_EVERY]:
        device.trials = slow
    with Mosquitto(directory) as broker, OtaFleet(broker.port, devices) as fleet:
        bridge = BridgeProcess(directory, broker.url)
        bridge.file.write_text(bridge.file.read_text() + SETTINGS)
        bridge.start()
        try:
            found = Site(bridge, fleet)
            wait_for(lambda: _known(found) == DEVICES, seconds=60, what="the bridge knows all gateways")
            command = [sys.executable, "-c", _LABELS, str(bridge.database), str(SITE)]
            subprocess.run(command, check=True, cwd=ROOT, timeout=60)
            yield found
        finally:
            bridge.kill()


_LABELS = """
import sys
from cloud_bridge.config import Store
from cloud_bridge.twins.database import open_fleet
from cloud_bridge.twins.labels import set_labels
database = open_fleet(Store(url=f"sqlite:///{sys.argv[1]}"))
with database.transaction() as tx:
    for number in range(int(sys.argv[2])):
        set_labels(tx, f"gw-{number:03}", {"site": "a"})
    set_labels(tx, "gw-100", {"ring": "canary"})
database.close()
"""


def _known(found: Site) -> int:
    command = [sys.executable, "-m", "cloud_bridge", "fleet", "list", "--config", str(found.bridge.file), "--json"]
    done = subprocess.run(command, check=False, capture_output=True, text=True, cwd=ROOT, timeout=60)
    return sum(1 for line in done.stdout.splitlines() if json.loads(line)["pipelines"])


def test_a_fleet_push_with_bad_devices_halts_recovers_and_makes_no_storm(tmp_path: Path) -> None:
    with site(tmp_path) as found:
        words = ("--model", "detector@1.1.0", "--pipeline", "camera", "--waves", "1, site=a, rest", "--soak", "2s")
        made = found.ask("rollout", "create", *words)
        wait_for(lambda: len(found.running(NEW)) > 5, seconds=60, what="the second wave is on its way")
        found.bridge.kill()
        found.bridge.start()

        def report() -> dict[str, Any]:
            answer = found.ask("rollout", "status", made["id"])
            assert isinstance(answer, dict)
            return answer

        wait_for(lambda: report()["phase"] == "halted", seconds=90, what="the rollout halts")
        wait_for(lambda: report()["recovered"] == SITE, seconds=60, what="the wave runs the old release again")
        state = report()
        assert "failing-share" in state["reason"]
        assert "latency" in state["reason"]
        assert [(one["devices"], one["state"]) for one in state["waves"]] == [
            (1, "passed"), (SITE, "taken-back"), (0, "waiting")
        ]  # fmt: skip
        assert [device.name for device in found.running(NEW)] == ["gw-100"]
        assert Counter(one["kind"] for one in state["history"])["halted"] == 1

        # No storm: after that everything is quiet, and nobody has had more than a twin there, one back, and one
        # more after the bridge came back.
        received, sent = found.fleet.received, found.fleet.sent
        until = time.monotonic() + QUIET_SECONDS
        while time.monotonic() < until:
            assert (found.fleet.received, found.fleet.sent) == (received, sent)
            time.sleep(0.1)
        assert max(device.received for device in found.fleet.devices) <= 3
        assert max(len(device.fetched) for device in found.fleet.devices) <= 1
        untouched = [device for device in found.fleet.devices[SITE:] if device.name != "gw-100"]
        assert all(device.received == 0 for device in untouched)
        assert sum(device.refused for device in found.fleet.devices) == 0


def test_without_gates_the_same_push_goes_on_to_everybody(tmp_path: Path) -> None:
    """The control: the fault is there, and nothing but the gate stops it."""
    with site(tmp_path) as found:
        words = ("--model", "detector@1.1.0", "--pipeline", "camera", "--waves", "1, site=a, rest", "--soak", "1s")
        made = found.ask("rollout", "create", *words, "--no-gates")
        wait_for(lambda: found.ask("rollout", "status", made["id"])["phase"] == "done", seconds=120, what="it ends")
        assert len(found.running(NEW)) == DEVICES - len(found.bad)
        assert all(len(device.fetched) == 1 for device in found.bad)
