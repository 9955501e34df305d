"""C17: the time of day is 1970 at boot, jumps by years in either direction, drifts, leaps; nothing must hang on it."""

import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path

import pytest

from hil.loopback.rig import eventually
from hil.loopback.tally import outbox_counts, tally_of
from tests.chaos.appliance import Appliance, appliances
from tests.chaos.clocks import YEAR, WallClock
from tests.chaos.experiment import Experiment
from tests.chaos.secured import SecuredBroker
from tests.simulators.authority import Authority

AN_HOUR = 3600.0
QUOTA = {"max_age_seconds": AN_HOUR}
BOOT = datetime(1970, 1, 1, 0, 0, 30, tzinfo=UTC)
DST_BEGINS = datetime(2027, 3, 28, 0, 59, 58, tzinfo=UTC)
DST_ENDS = datetime(2027, 10, 31, 0, 59, 58, tzinfo=UTC)
LEAP = datetime(2016, 12, 31, 23, 59, 58, tzinfo=UTC)


def drift(clock: WallClock) -> None:
    """Gain a second a minute, a minute of it in a second."""
    for _ in range(10):
        clock.step(0.1)
        time.sleep(0.1)


def leap(clock: WallClock) -> None:
    """Tell 23:59:59 twice."""
    clock.set_to(LEAP)
    time.sleep(1.0)
    clock.step(-1.0)


STEPS: dict[str, Callable[[WallClock], None]] = {
    "to the truth": WallClock.true,
    "ten years ahead": lambda clock: clock.step(10 * YEAR),
    "ten days back": lambda clock: clock.step(-10 * 86_400),
    "drift": drift,
    "leap second": leap,
    "summer time begins": lambda clock: clock.set_to(DST_BEGINS),
    "summer time ends": lambda clock: clock.set_to(DST_ENDS),
    "1970 again": lambda clock: clock.set_to(BOOT),
}


@contextmanager
def gateway_with(
    experiment: Experiment, clock: WallClock, broker: SecuredBroker, ca_file: Path, module: tuple[str, ...]
) -> Iterator[Appliance]:
    """Run a gateway by a clock of its own, with classes that keep an hour of records."""
    settings = [{"url": broker.secure_url, "ca_file": str(ca_file), "keepalive_seconds": 5}]
    site = Appliance(experiment.directory / "site", settings, module=module)
    site.rig.gateway_settings["outbox"] = {"classes": dict.fromkeys(("event", "measure", "bulk"), QUOTA)}
    site.rig.gateway_settings["gateway"]["time_zone"] = "Europe/Berlin"
    site.rig.write()
    site.rig.gateway.command[:0] = clock.command
    with appliances(site):
        began = time.monotonic()
        site.start()
        site_is_sane(site, began)
        yield site


def site_is_sane(site: Appliance, began: float) -> None:
    """Check that no age and no eviction comes from the clock."""
    passed = time.monotonic() - began
    for name, figures in site.status()["outbox"]["classes"].items():
        age = figures["oldest_age_seconds"]
        assert age is None or 0.0 <= age <= passed + 5.0, f"{name} is {age} s old after {passed:.0f} s"
        assert figures["evicted"] == 0, f"{figures['evicted']} of class {name} were thrown away"
        forecast = figures["full_in_seconds"]
        assert forecast is None or forecast > 0


def in_order(database: Path) -> None:
    """Check that the bridge has the records of each class in the order of their numbers."""
    with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True, timeout=5.0)) as db:
        for (name,) in db.execute("SELECT DISTINCT class FROM records").fetchall():
            numbers = [n for (n,) in db.execute("SELECT seq FROM records WHERE class = ? ORDER BY id", (name,))]
            assert numbers == list(range(1, len(numbers) + 1)), f"class {name} is out of order"


def test_c17_no_clock_step_loses_ages_or_reorders_anything_and_tls_fails_closed_until_the_time_is_right(
    experiment: Experiment,
) -> None:
    clock = WallClock(experiment.directory / "clock")
    authority = Authority(experiment.directory / "ca", "site")
    with ExitStack() as stack:
        broker = stack.enter_context(SecuredBroker(experiment.directory / "broker", authority))
        clock.set_to(BOOT)
        began = time.monotonic()
        site = stack.enter_context(gateway_with(experiment, clock, broker, authority.ca_file, ("gateway",)))
        site.rig.bridge_settings["brokers"] = [{"url": broker.plain_url}]
        site.rig.write()
        site.rig.start_bridge()

        assert str(site.status()["at"]).startswith("1970"), "the control of the clock: it is believed to be 1970"
        eventually(lambda: "1970" in refusal(site), "TLS fails closed and tells the time it has")
        assert tally_of(site.rig).committed == 0
        broker.mosquitto.kill()
        with site.answering("motor"):
            for name, step in STEPS.items():
                before = site.produced()
                step(clock)
                eventually(lambda before=before: site.produced() >= before + 5, f"records go on after: {name}")  # type: ignore[misc]  # bound at once
                site_is_sane(site, began)
                experiment.log("stepped", name=name, at=site.status()["at"])
        _, produced, waiting = outbox_counts(site.rig.outbox_file)
        assert waiting == produced, "nothing was thrown away"

        clock.true()
        broker.mosquitto.start()
        eventually(lambda: site.waiting() < 20, "all is delivered once the time is right", 60.0)
        assert site.rig.gateway.stop(60.0) == 0
        eventually(lambda: tally_of(site.rig).lost == 0, "everything arrived")
        counts = tally_of(site.rig)
        assert (counts.waiting, counts.duplicates, counts.evicted) == (0, 0, 0)
        in_order(site.rig.directory / "bridge" / "bridge.db")
        site.is_quiet()


def refusal(site: Appliance) -> str:
    cloud = site.status()["cloud"]
    return str(cloud["reason"]) if cloud["state"] == "refused" else ""


def test_c17_the_control_whose_ages_follow_the_wall_clock_throws_records_away(experiment: Experiment) -> None:
    clock = WallClock(experiment.directory / "clock")
    authority = Authority(experiment.directory / "ca", "site")
    broker = SecuredBroker(experiment.directory / "broker", authority)  # never started
    module = ("tests.simulators.careless_gateway", "ages-by-wall-clock")
    began = time.monotonic()
    with gateway_with(experiment, clock, broker, authority.ca_file, module) as site:
        eventually(lambda: site.produced() >= 10, "there is something to lose")
        clock.step(10 * YEAR)
        eventually(lambda: evicted(site) > 0, "young records are thrown away")
        with pytest.raises(AssertionError, match=r"old after|thrown away"):
            site_is_sane(site, began)


def evicted(site: Appliance) -> int:
    """Return how many records were given up."""
    return sum(figures["evicted"] for figures in site.status()["outbox"]["classes"].values())
