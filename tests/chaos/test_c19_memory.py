"""C19: a neighbour eats the memory of the machine; the gateway survives, or is back at once, and has lost nothing."""

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest

from hil.loopback.rig import eventually
from tests.chaos.appliance import Appliance, appliances
from tests.chaos.experiment import Experiment
from tests.chaos.memory import MemoryGroup, doom, leak, memory_group
from tests.chaos.oracle import Oracle, Verdict
from tests.simulators.mosquitto import Mosquitto

RESTART_SECONDS = 5.0
ROOM_BYTES = 48 * 1024 * 1024
"""What is left for a leak beside a gateway that is up."""


@contextmanager
def crowded(experiment: Experiment, *module: str) -> Iterator[tuple[Appliance, MemoryGroup, Oracle]]:
    """Run a gateway in a group of its own, with a witness of all that it tells on the site."""
    with ExitStack() as stack:
        group = stack.enter_context(memory_group())
        broker = stack.enter_context(Mosquitto(experiment.directory))
        oracle = stack.enter_context(Oracle(experiment.directory / "oracle", broker=broker.url))
        site = Appliance(experiment.directory / "site", [{"url": broker.url}], module=module or ("gateway",))
        site.rig.gateway_settings["local"]["broker"] = {"url": broker.url}
        site.rig.bridge_settings["brokers"] = [{"url": broker.url}]
        site.rig.write()
        site.rig.gateway.command[:0] = group.prefix
        stack.enter_context(appliances(site))
        site.rig.start_bridge()
        site.start()
        eventually(lambda: site.produced() >= 5, "the gateway works")
        yield site, group, oracle


def squeeze(experiment: Experiment, site: Appliance, group: MemoryGroup, *, doomed: bool) -> bool:
    """Let a neighbour leak until the kernel kills; restart the gateway if it was the one. Returns whether it was."""
    kills = group.kills()
    group.limit(site.footprint().rss_bytes + ROOM_BYTES)
    if doomed:
        doom(site.rig.gateway.pid)
    with leak(group) as neighbour:
        eventually(lambda: not site.rig.gateway.running or neighbour.poll() is not None, "memory is short", 60.0)
        died = time.monotonic()
        hit = not site.rig.gateway.running
    group.limit(1 << 34)
    assert group.kills() > kills, "the kernel killed, nothing else"
    if hit:
        site.start()
        took = time.monotonic() - died
        experiment.log("restarted", seconds=round(took, 2))
        assert took <= RESTART_SECONDS, f"back after {took:.1f} s"
    goal = site.produced() + 5
    eventually(lambda: site.produced() >= goal, "it goes on")
    return hit


def verdict(site: Appliance, oracle: Oracle) -> Verdict:
    """Stop, and compare what was told with what the cloud has."""
    site.rig.gateway.stop(60.0)
    oracle.wait_until_quiet()
    return oracle.judge(site.rig.directory / "bridge" / "bridge.db", site.rig.outbox_file)


def test_c19_a_leaking_neighbour_costs_at_most_a_restart_and_no_record(experiment: Experiment) -> None:
    with crowded(experiment) as (site, group, oracle):
        rounds = [True, *(experiment.random.random() < 0.5 for _ in range(experiment.scaled(1, 60)))]
        hits = [squeeze(experiment, site, group, doomed=doomed) for doomed in rounds]
        assert hits[0], "the doomed gateway is what is killed"
        verdict(site, oracle).check(least=10)
        site.is_quiet()


def test_c19_the_control_that_tells_before_the_commit_loses_what_it_told(experiment: Experiment) -> None:
    with crowded(experiment, "tests.simulators.careless_gateway", "tells-before-the-commit") as (site, group, oracle):
        assert squeeze(experiment, site, group, doomed=True)
        with pytest.raises(AssertionError, match="lost"):
            verdict(site, oracle).check()
