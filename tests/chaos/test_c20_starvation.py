"""C20: the processor belongs to others: busy neighbours, and a quota that throttles the gateway."""

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.chaos.cgroup import cpu_quota, missing
from tests.chaos.experiment import Experiment
from tests.chaos.sitestand import SiteStand
from tests.chaos.stand import Options
from tests.chaos.timing import pause

QUOTA_PERCENT = 20.0
HOGS = 4
SUCCESS = 0.95


def test_c20_a_starved_gateway_keeps_up_and_keeps_its_connections(experiment: Experiment) -> None:
    if reason := missing():
        pytest.skip(reason)
    with SiteStand(experiment, Options(keepalive_seconds=5)) as stand:
        before, during = starve(experiment, stand, QUOTA_PERCENT)
        assert during >= SUCCESS * before
        assert not stand.logged("gateway", "mqtt_not_connected"), "a connection was lost: no time to send a ping"
        stand.settle()


def test_c20_control_a_quota_that_is_too_small_is_seen(experiment: Experiment) -> None:
    if reason := missing():
        pytest.skip(reason)
    with SiteStand(experiment, Options(keepalive_seconds=5)) as stand:
        before, during = starve(experiment, stand, 2.0)
        assert during < SUCCESS * before
        stand.settle(least=1)  # how much got through is what is seen to suffer


def starve(experiment: Experiment, stand: SiteStand, percent: float) -> tuple[float, float]:
    """Return inferences a second before, and with busy neighbours and a quota."""
    seconds = experiment.seconds(3.0, 1 / 30)
    stand.start()
    stand.flows(1)
    stand.remember()
    before = rate(stand, seconds)
    with hogs(HOGS), cpu_quota(stand.pid(), percent):
        pause(1.0)
        during = rate(stand, seconds)
    experiment.log("starved", percent=percent, inferences_before=before, inferences_during=during)
    return before, during


def rate(stand: SiteStand, seconds: float) -> float:
    """Return inferences a second, by the gateway's own count at the moments it answers."""
    began, count = time.monotonic(), patient(stand)
    pause(seconds)
    after = patient(stand)
    return (after - count) / (time.monotonic() - began)


def patient(stand: SiteStand) -> int:
    """Ask until there is an answer: a starved gateway may need longer than a client waits."""
    stand.until(lambda: stand.status() is not None, "the gateway answers", 60.0)
    return stand.inferences()


@contextmanager
def hogs(count: int) -> Iterator[None]:
    """Run processes that do nothing but compute."""
    command = ["setpriv", "--pdeathsig", "KILL", "--", sys.executable, "-c", "while True: pass"]
    running = [subprocess.Popen(command) for _ in range(count)]
    try:
        yield
    finally:
        for process in running:
            process.kill()
            process.wait()
