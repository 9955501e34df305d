"""A fleet with its bridge on one stage: twins go to devices, reports come back, time passes when it is told to."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import msgspec
from prometheus_client import CollectorRegistry

from cloud_bridge.config import Rollout as Defaults
from cloud_bridge.identity.database import Database
from cloud_bridge.rollout.campaign import Campaign
from cloud_bridge.rollout.metrics import RolloutMetrics
from cloud_bridge.rollout.plan import Arm, Plan
from cloud_bridge.rollout.records import Rollout, find_rollout
from cloud_bridge.rollout.releases import Release, Releases, ReleaseState, release_of
from cloud_bridge.rollout.service import RolloutDesk, plan_from, thresholds_from
from cloud_bridge.rollout.waves import waves_of
from cloud_bridge.twins.desired import find_desired
from cloud_bridge.twins.reported import put_report
from gateway.wire.messages import ModelRef, Twin, decode, encode
from tests.simulators.fleet_store import SECOND_NS, FleetStore
from tests.simulators.ota_device import OtaDevice

OLD = Release("detector", "1.0.0")
NEW = Release("detector", "1.1.0")
START_NS = 1_790_000_000 * SECOND_NS
MINUTE_NS = 60 * SECOND_NS


@dataclass(slots=True)
class Registered:
    """Releases and what they are."""

    states: dict[Release, ReleaseState] = field(default_factory=dict)

    def state_of(self, release: Release) -> ReleaseState:
        return self.states.get(release, "unknown")

    def before(self, release: Release) -> Release | None:
        found = [one for one, state in self.states.items() if state == "approved" and one < release]
        return max(found, default=None)


class Stage:
    """Everything but the network. `delivers` says which devices can be reached."""

    def __init__(self, database: Database, releases: Releases | None = None) -> None:
        self.database = database
        self.store = FleetStore()
        self.now_ns = START_NS
        self.devices: dict[str, OtaDevice] = {}
        self.delivers: Callable[[str], bool] = lambda name: True
        self.told: dict[str, int] = {}
        self.registry = CollectorRegistry()
        self.releases = releases
        self.revoked: set[str] = set()
        self.desk = RolloutDesk(database, self.store, lambda: self.now_ns, releases, lambda: self.revoked)
        self.campaign = self.restarted()

    def restarted(self) -> Campaign:
        """A bridge that has just started: nothing is in its memory."""
        self.registry = CollectorRegistry()
        self.campaign = Campaign(
            self.database,
            self.store,
            RolloutMetrics(self.registry),
            past_hours=24.0,
            releases=self.releases,
            revoked=lambda: self.revoked,
            wall_ns=lambda: self.now_ns,
        )
        return self.campaign

    def add(self, count: int, *, prefix: str = "gw") -> list[OtaDevice]:
        made = []
        for number in range(count):
            name = f"{prefix}-{number:03}"
            made.append(OtaDevice(name, "camera", OLD.ref))
            self.devices[name] = made[-1]
            self.store.add(name, OLD.ref, seen_ns=self.now_ns)
        return made

    def plan(
        self,
        waves: str = "1, rest",
        *,
        soak_seconds: float = 600,
        gates: bool = True,
        arms: Sequence[Arm] = (),
        release: str | None = str(NEW),
        on_halt: Literal["wave", "all"] = "wave",
        baseline: Release | None = None,
        **settings: float,
    ) -> Plan:
        defaults = msgspec.structs.replace(Defaults(spread_seconds=0.0), **settings)
        return plan_from(
            defaults,
            pipeline="camera",
            release=None if release is None else release_of(release),
            waves=waves_of(waves),
            arms=arms,
            soak_seconds=soak_seconds,
            on_halt=on_halt,
            baseline=baseline,
            thresholds=msgspec.structs.replace(thresholds_from(defaults), enabled=gates),
        )

    def turn(self, minutes: float = 1.0) -> None:
        """Let time pass, the bridge look once, twins arrive, and devices answer."""
        self.now_ns += int(minutes * MINUTE_NS)
        self.campaign.tick()
        self.deliver()

    def deliver(self) -> None:
        with self.database.transaction() as tx:
            for name, desired in find_desired(tx).items():
                if self.told.get(name) == desired.token or not self.delivers(name) or desired.due_ns > self.now_ns:
                    continue
                self.told[name] = desired.token
                for payload in self.devices[name].take(encode(desired.message)):
                    put_report(tx, name, payload, decode(payload, Twin), self.now_ns)
                self.store.models[name] = self.devices[name].model
                self.store.see(name, state="online", seen_ns=self.now_ns)

    def play(self, minutes: int, *, scores: Callable[[OtaDevice], float] | None = None, every: int = 10) -> None:
        """Let devices measure, and speak of events with these scores, a minute at a time."""
        chance = random.Random(1)
        draw = scores or (lambda device: chance.betavariate(8, 2))
        for _ in range(minutes):
            for device in self.devices.values():
                for number in range(every):
                    self.store.add_event(device.name, device.model, draw(device), self.now_ns + number)
                self.store.add_measure(device.name, device.model, self.now_ns, self.now_ns + MINUTE_NS)
            self.turn()

    def rollout(self, rollout_id: str) -> Rollout:
        with self.database.transaction() as tx:
            return find_rollout(tx, rollout_id)

    def running(self, release: Release) -> list[str]:
        return [name for name, device in self.devices.items() if device.model == release.ref]


def ref(text: str) -> ModelRef:
    return release_of(text).ref
