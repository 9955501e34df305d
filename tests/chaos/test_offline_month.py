"""Thirty simulated days without the cloud: quotas are reached, the clock is set wrongly each day, and it is told all.

The outbox, the uplink, the broker and the bridge are the real ones; only the clocks of the outbox are moved by hand.
"""

import asyncio
import random
import sqlite3
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from gateway.config import Broker, ClassQuota, Cloud
from gateway.config import Outbox as OutboxSettings
from gateway.outbox.ages import Clocks
from gateway.outbox.store import Outbox
from gateway.uplink.uplink import Uplink
from gateway.values import Entry, Receipt
from gateway.wire.messages import CLASSES, RecordClass
from hil.loopback.rig import eventually
from tests.chaos.experiment import Experiment
from tests.gateway.uplink.waiting import running, until
from tests.simulators.bridge_process import BridgeProcess
from tests.simulators.mosquitto import Mosquitto
from tests.simulators.samples import event, measure, notice
from tests.simulators.settable_clocks import DAY, SECOND, SettableClocks

DAYS = 30
HOUR_SECONDS = 3600.0
KIB = 1024
AN_HOUR: dict[RecordClass, int] = {"critical": 1, "event": 30, "measure": 60, "bulk": 4}
"""What a gateway with a few pipelines makes in an hour."""

WEEK_SECONDS = 7 * 24 * HOUR_SECONDS
QUOTAS: dict[RecordClass, ClassQuota] = {
    "critical": ClassQuota(max_bytes=64 * KIB * KIB, on_full="refuse"),
    "event": ClassQuota(max_rows=10_000),
    "measure": ClassQuota(max_age_seconds=WEEK_SECONDS),
    "bulk": ClassQuota(max_bytes=8 * KIB * KIB),
}
STEPS = (-60, 90, 3600, -3600, 7 * 3600, -86_400, 10 * 86_400, -400 * 86_400, 3650 * 86_400, -20_000 * 86_400)
"""Seconds by which somebody, or a bad battery, sets the clock: minutes to decades."""


@dataclass
class Month:
    """An outbox through restarts, and the count of what it took."""

    file: Path
    clocks: Clocks
    produced: Counter[RecordClass] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self.outbox = self._open()

    def _open(self) -> Outbox:
        settings = OutboxSettings(ballast_bytes=0, classes=QUOTAS)
        return Outbox.open(self.file, settings, clocks=self.clocks)

    def restart(self) -> None:
        """Close and open again, as a clean reboot does."""
        self.close()
        self.outbox = self._open()

    def close(self) -> None:
        """Close whichever outbox is in use."""
        self.outbox.close()

    def put(self, entries: Sequence[Entry]) -> list[Receipt]:
        """Store an hour of records."""
        self.produced.update(entry.record_class for entry in entries)
        return self.outbox.put(entries, timeout=30.0)


def an_hour(number: int, wall_ns: int) -> list[Entry]:
    """Make the records of an hour."""
    entries = [Entry("critical", "notice", notice(f"hour-{number}"), max(wall_ns, 0))]
    entries += [Entry("event", "event", event(f"{number:06}-{n:04}"), max(wall_ns, 0)) for n in range(AN_HOUR["event"])]
    entries += [Entry("measure", "measure", measure(), max(wall_ns, 0)) for _ in range(AN_HOUR["measure"])]
    entries += [Entry("bulk", "notice", notice(), max(wall_ns, 0), bytes(12 * KIB)) for _ in range(AN_HOUR["bulk"])]
    return entries


def live(month: Month, clocks: SettableClocks, chance: random.Random, days: int) -> None:
    """Let days pass, with a wrong clock each day and a restart now and then."""
    passed = 0.0
    reboots = 0
    for day in range(days):
        clocks.step_wall(chance.choice(STEPS))
        clocks.wall_ns = max(clocks.wall_ns, 0)  # no clock of Linux goes below 1970
        for hour in range(24):
            clocks.pass_seconds(HOUR_SECONDS)
            passed += HOUR_SECONDS
            month.put(an_hour(24 * day + hour, clocks.wall_ns))
        if chance.random() < 0.3:
            clocks.reboot(chance.choice((30.0, 600.0)))
            month.restart()
            reboots += 1
        is_sane(month, passed, reboots)


def is_sane(month: Month, passed: float, reboots: int) -> None:
    """Check what is told of ages and of the future: a clock that lies must not show in either."""
    stats = month.outbox.stats()
    for name, figures in stats.classes.items():
        age = figures.oldest_age_seconds
        # A step while the machine was off looks like time that passed; a day at most is believed, each time.
        most = passed + reboots * DAY / SECOND
        assert age is not None, name
        assert 0.0 <= age <= most + HOUR_SECONDS, f"{name} is {age} s old after {passed} s"
        forecast = figures.full_in_seconds
        assert forecast is None or forecast >= 0.0, f"{name} is full in {forecast} s"
    assert stats.classes["critical"].evicted == 0
    assert not stats.failed


def told(file: Path) -> tuple[Counter[str], Counter[str], Counter[str]]:
    """Return what a bridge has, by class: records, numbers named as evicted, and numbers nobody explains."""
    with closing(sqlite3.connect(f"file:{file}?mode=ro", uri=True, timeout=10.0)) as db:
        rows: Counter[str] = Counter(dict(db.execute("SELECT class, count(*) FROM records GROUP BY class").fetchall()))
        gaps = {
            (name, source): total
            for name, source, total in db.execute(
                "SELECT class, source, sum(last - first + 1) FROM gaps GROUP BY class, source"
            )
        }
    evicted: Counter[str] = Counter({name: gaps.get((name, "eviction"), 0) for name in CLASSES})
    unexplained: Counter[str] = Counter({name: gaps.get((name, "base"), 0) for name in CLASSES})
    return rows, evicted, unexplained


async def deliver(month: Month, broker: Mosquitto) -> None:
    """Connect at last, until nothing is left."""
    cloud = Cloud(brokers=[Broker(url=broker.url)], ack_timeout_seconds=5.0)
    uplink = Uplink(cloud, "dock", "sluice", month.outbox)

    def is_empty() -> bool:
        return all(figures.rows == 0 for figures in month.outbox.stats().classes.values())

    async with running(uplink.run()):
        await until(is_empty, 60.0, "everything is delivered")


def test_a_month_offline_with_a_wrong_clock_each_day_is_delivered_or_named(experiment: Experiment) -> None:
    clocks = SettableClocks()
    month = Month(experiment.directory / "outbox.db", clocks.clocks())
    began = time.monotonic()
    with ExitStack() as stack:
        stack.callback(month.close)
        live(month, clocks, experiment.random, experiment.scaled(DAYS, 12 * DAYS))
        # The writer looks after ages in its own time.
        eventually(lambda: (age_of(month, "measure") or 0.0) <= WEEK_SECONDS + 1, "the old measures have gone")
        broker = stack.enter_context(Mosquitto(experiment.directory))
        bridge = BridgeProcess(experiment.directory, broker.url)
        stack.callback(bridge.kill)
        bridge.start()
        highest = {name: figures.highest for name, figures in month.outbox.stats().classes.items()}
        evicted_here = {name: figures.evicted for name, figures in month.outbox.stats().classes.items()}
        asyncio.run(deliver(month, broker))
        rows, evicted, unexplained = told(bridge.database)
    experiment.log("delivered", produced=month.produced, rows=rows, evicted=evicted, seconds=time.monotonic() - began)
    assert not +unexplained, f"gaps that nobody explains: {unexplained}"
    for name in CLASSES:
        assert rows[name] + evicted[name] == highest[name], (
            f"{name}: {rows[name]} and {evicted[name]} of {highest[name]}"
        )
    assert {name: highest[name] for name in ("event", "measure", "bulk")} == {
        name: month.produced[name] for name in ("event", "measure", "bulk")
    }
    assert rows["critical"] >= month.produced["critical"], "eviction records come on top of what was produced"
    assert evicted["critical"] == 0
    for name in ("event", "measure", "bulk"):
        assert evicted[name] > 0, f"the quota of {name} was never reached"
        assert evicted[name] >= evicted_here[name]


def age_of(month: Month, name: RecordClass) -> float | None:
    return month.outbox.stats().classes[name].oldest_age_seconds


def test_the_control_whose_ages_follow_the_wall_clock_throws_a_month_away(experiment: Experiment) -> None:
    clocks = SettableClocks()
    naive = Clocks(wall_ns=lambda: clocks.wall_ns, uptime_ns=lambda: clocks.wall_ns, boot_id=lambda: "one")
    month = Month(experiment.directory / "outbox.db", naive)
    try:
        for hour in range(24):
            clocks.pass_seconds(HOUR_SECONDS)
            month.put(an_hour(hour, clocks.wall_ns))
        clocks.step_wall(3650 * 86_400)
        eventually(lambda: month.outbox.stats().classes["measure"].evicted > 0, "young measures are thrown away")
        with pytest.raises(AssertionError, match="old after"):
            is_sane(month, 24 * HOUR_SECONDS, 0)
    finally:
        month.close()
