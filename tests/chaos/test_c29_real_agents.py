"""C29 with the devices' whole code for updates: agents, vaults, verified HTTPS, patches, golden inputs, trials.

A release that is slow on every twentieth gateway is given to a fleet in waves by the bridge itself. In the middle of
the failing wave the bridge, and the registry with it, is away; then the broker is. The short form has 40 gateways, the
long one 200.
"""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest

from gateway.ota import bringing, canary, fetch_file
from gateway.uplink.backoff import Backoff
from hil.loopback.children import free_port
from tests.chaos.experiment import Experiment
from tests.simulators.agent_fleet import PIPELINE, AgentFleet, CountingWay, FleetDevice, busiest_second
from tests.simulators.bridge_process import BridgeProcess
from tests.simulators.mosquitto import BINARY, Mosquitto
from tests.simulators.published_repository import bridge_settings, publish, trusting
from tests.simulators.waiting import wait_for

pytestmark = [pytest.mark.chaos, pytest.mark.net, pytest.mark.timeout(1200, method="signal")]

OLD: Final = ("1.0.0", 0.0)
NEW: Final = ("1.1.0", 0.5)
BAD_EVERY: Final = 20
ROOT = Path(__file__).resolve().parents[2]

AWAY_SECONDS: Final = 12.0
"""So long the bridge is gone in the middle of the wave, and the broker later."""
ASKED_WHILE_AWAY: Final = 6.0
"""So often a device that wants something may ask for it meanwhile, on average: pauses double from five seconds on, and
within one file from half a second on."""
SPREAD_SECONDS: Final = 4.0
"""Who loses the broker knocks at once, and again within half a second: after so long the pauses have spread them."""
CONNECTS_A_SECOND: Final = 1.0
"""So often a device may knock at a broker that is away in the busiest second from then on; on average it does half."""
QUIET_SECONDS: Final = 4.0
LONGEST_SECONDS: Final = 300.0
"""Any step may take so long on a machine that does much else."""


def be_patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give golden inputs the time of a machine that carries a whole fleet: their processes wait for each other."""
    monkeypatch.setattr(canary.prove, "__kwdefaults__", {"seconds": LONGEST_SECONDS})


@pytest.fixture(autouse=True)
def _patience(monkeypatch: pytest.MonkeyPatch) -> None:
    be_patient(monkeypatch)


@dataclass(frozen=True, slots=True)
class Site:
    """Gateways, their broker and their bridge. `wave`: so many of them are the second wave."""

    broker: Mosquitto
    bridge: BridgeProcess
    fleet: AgentFleet
    wave: int

    def ask(self, *words: str) -> Any:
        command = [sys.executable, "-m", "cloud_bridge", *words, "--config", str(self.bridge.file), "--json"]
        done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT, timeout=120)
        return json.loads(done.stdout)

    def known(self) -> int:
        command = [sys.executable, "-m", "cloud_bridge", "fleet", "list", "--config", str(self.bridge.file), "--json"]
        done = subprocess.run(command, check=False, capture_output=True, text=True, cwd=ROOT, timeout=120)
        return sum(1 for line in done.stdout.splitlines() if json.loads(line)["pipelines"])

    @property
    def bad(self) -> list[FleetDevice]:
        return [device for device in self.fleet.devices if device.slow_versions]

    @property
    def wanting(self) -> list[FleetDevice]:
        """Those that want something they do not have."""
        return [device for device in self.fleet.devices if device.slot.wanted is not None]


_LABELS = """
import sys
from cloud_bridge.config import Store
from cloud_bridge.twins.database import open_fleet
from cloud_bridge.twins.labels import set_labels
database = open_fleet(Store(url=f"sqlite:///{sys.argv[1]}"))
with database.transaction() as tx:
    for number in range(int(sys.argv[2])):
        set_labels(tx, f"gw-{number:03}", {"site": "a"})
    set_labels(tx, f"gw-{int(sys.argv[2]):03}", {"ring": "canary"})
database.close()
"""


@contextmanager
def site(
    directory: Path, devices: int, wave: int, *, bad_every: int = BAD_EVERY, backoff: Backoff | None = None
) -> Iterator[Site]:
    """Publish two releases, begin a fleet with the first of them, and wait until the bridge knows it."""
    if BINARY is None:
        pytest.skip("mosquitto is not installed: apt-get install mosquitto")
    published = directory / "published"
    publish(published, dict([OLD, NEW]))
    port = free_port()
    context = trusting(published)
    url = f"https://localhost:{port}"
    made = [
        FleetDevice(directory / f"gw-{number:03}", published, f"gw-{number:03}", CountingWay(url, context), OLD)
        for number in range(devices)
    ]
    for device in made[bad_every - 1 :: bad_every]:
        device.slow_versions = frozenset({NEW[0]})
    with Mosquitto(directory) as broker:
        bridge = BridgeProcess(directory, broker.url)
        rollout = f"{{enabled: true, every_seconds: 0.5, spread_seconds: {wave / 2}, "
        rollout += "soak_minutes: 0.02, silent_minutes: 5}"
        bridge.file.write_text(bridge.file.read_text() + bridge_settings(published, port) + f"rollout: {rollout}\n")
        bridge.start(wait=False)
        try:
            with AgentFleet(broker.port, made, backoff) as fleet:
                found = Site(broker, bridge, fleet, wave)
                wait_for(
                    lambda: found.known() == devices, seconds=LONGEST_SECONDS, what="the bridge knows all gateways"
                )
                command = [sys.executable, "-c", _LABELS, str(bridge.database), str(wave)]
                subprocess.run(command, check=True, cwd=ROOT, timeout=60)
                yield found
        finally:
            bridge.kill()


@dataclass(frozen=True, slots=True)
class Storm:
    """What was asked of a bridge and a broker that were away. `asked` is for one device that wanted something."""

    asked: float
    asked_busiest_second: int
    connects_busiest_second: int
    devices: int

    def check(self) -> None:
        """Make sure that it was none."""
        assert self.asked <= ASKED_WHILE_AWAY, f"a storm of requests: {self}"
        bound = max(20.0, CONNECTS_A_SECOND * self.devices)
        assert self.connects_busiest_second <= bound, f"a storm of connections: {self}"


def away(found: Site) -> Storm:
    """Take the bridge away in the middle of a wave, then the broker, and bring both back."""
    wait_for(lambda: len(found.wanting) >= max(1, found.wave // 5), seconds=LONGEST_SECONDS, what="some update")
    began = time.monotonic()
    found.bridge.kill()
    wanting = len(found.wanting)
    wait_for(lambda: time.monotonic() - began >= AWAY_SECONDS, seconds=AWAY_SECONDS + 10)
    asked = found.fleet.asked(began, began + AWAY_SECONDS)
    found.bridge.start(wait=False)
    cut = time.monotonic()
    found.broker.kill()
    wait_for(lambda: time.monotonic() - cut >= AWAY_SECONDS, seconds=AWAY_SECONDS + 10)
    knocks = [at for at in found.fleet.connected_at if cut + SPREAD_SECONDS <= at <= cut + AWAY_SECONDS]
    found.broker.start()
    wait_for(
        lambda: found.fleet.online == len(found.fleet.devices), seconds=LONGEST_SECONDS, what="all are connected again"
    )
    return Storm(
        asked=round(len(asked) / wanting, 2),
        asked_busiest_second=busiest_second(asked),
        connects_busiest_second=busiest_second(knocks),
        devices=len(found.fleet.devices),
    )


def give(found: Site, *more: str) -> str:
    """Begin the rollout, and wait until the second wave is on its way."""
    words = ("--model", f"probe@{NEW[0]}", "--pipeline", PIPELINE, "--waves", "1, site=a, rest", "--soak", "2s", *more)
    made = found.ask("rollout", "create", *words)
    wait_for(lambda: len(found.fleet.running(NEW[0])) > 1, seconds=LONGEST_SECONDS, what="the second wave is under way")
    return str(made["id"])


def slowly(condition: Callable[[], object], what: str) -> None:
    """Wait until a condition holds that costs a process to look at."""
    deadline = time.monotonic() + LONGEST_SECONDS
    while not condition():
        assert time.monotonic() < deadline, f"{what}: not within {LONGEST_SECONDS:g} s"
        time.sleep(1.0)


def test_c29_a_fleet_of_real_agents_halts_recovers_and_makes_no_storm(experiment: Experiment) -> None:
    devices, wave = (200, 40) if experiment.long else (40, 20)
    with site(experiment.directory, devices, wave) as found:
        halts_and_recovers(experiment, found)


def halts_and_recovers(experiment: Experiment, found: Site) -> None:
    """Give the release, take bridge and broker away meanwhile, and look at what has become of everybody."""
    devices, wave = len(found.fleet.devices), found.wave
    rollout = give(found)
    storm = away(found)
    experiment.log("away", storm=storm)

    def report() -> dict[str, Any]:
        answer = found.ask("rollout", "status", rollout)
        assert isinstance(answer, dict)
        return answer

    slowly(lambda: report()["phase"] == "halted", "the rollout halts")
    slowly(lambda: report()["recovered"] == wave, "the wave is taken back")
    state = report()
    canary = found.fleet.devices[wave]
    wait_for(lambda: found.fleet.running(NEW[0]) == [canary], seconds=60, what="only the canary keeps the release")
    assert "failing-share" in state["reason"]
    assert "latency" in state["reason"]
    assert [one["state"] for one in state["waves"]] == ["passed", "taken-back", "waiting"]
    storm.check()
    # The bad ones have taken it back by themselves, and said why; nobody else was asked to do anything.
    for device in found.bad:
        blocked = {each.model.version: each.code for each in device.slot.blocked}
        assert blocked in ({}, {NEW[0]: "latency"})
    assert any(device.slot.blocked for device in found.bad)
    untouched = found.fleet.devices[wave + 1 :]
    assert all(device.repository.fetched == [] for device in untouched)
    artefacts = [sum(path.endswith(".sealed") for path in device.repository.fetched) for device in found.fleet.devices]
    assert max(artefacts) == 1, "one fetch a device, for it goes on where it was interrupted"

    said = found.fleet.sent
    until = time.monotonic() + QUIET_SECONDS
    while time.monotonic() < until:
        assert found.fleet.sent == said, "not quiet after it has ended"
        time.sleep(0.1)
    experiment.log("ended", devices=devices, storm=storm, artefacts=sum(artefacts), twins=found.fleet.received)
    print(f"{devices} agents: {storm}, {sum(artefacts)} artefacts, {found.fleet.received} twins")


def test_c29_control_without_pauses_the_same_agents_make_a_storm(
    experiment: Experiment, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("FIRST_RETRY_SECONDS", "MAX_RETRY_SECONDS"):
        monkeypatch.setattr(bringing, name, 0.0)
    monkeypatch.setattr(fetch_file, "RETRY_SECONDS", (0.0,))
    at_once = Backoff(base_seconds=0.05, unreachable_cap_seconds=0.05)
    with site(experiment.directory, 21, 20, backoff=at_once) as found:
        give(found, "--no-gates")
        storm = away(found)
        experiment.log("away", storm=storm)
        print(f"without pauses: {storm}")
        with pytest.raises(AssertionError, match="a storm of requests"):
            storm.check()
        assert storm.connects_busiest_second > max(20.0, CONNECTS_A_SECOND * storm.devices)
