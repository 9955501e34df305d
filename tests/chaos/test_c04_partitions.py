"""C4: the device and the cloud do not reach each other for a while, in several rhythms."""

import time

import pytest

from tests.chaos.experiment import Experiment
from tests.chaos.namespaces import Network, Place
from tests.chaos.netrig import NetRig
from tests.chaos.network import partition
from tests.chaos.oracle import Verdict
from tests.chaos.sitestand import SiteStand
from tests.chaos.stand import Options
from tests.chaos.timing import at_most, pause

FIRST_PROGRESS_SECONDS = 5.0
DRAIN_RATE = 1000.0  # records a second
KEEPALIVE_SECONDS = 30  # the default, and the hard case: by itself it would notice only after 45 s

CUT_SECONDS = {"device": 14.0, "bridge": 5.0}
CUT_SHARES = {"device": 1 / 2, "bridge": 1 / 30}
"""Of the minutes of the long form: half an hour of an hour, as when a mast is without power."""

# Seconds off and on, and how often.
PROFILES = {"5/5": (5.0, 5.0, 4), "15/15": (15.0, 15.0, 2), "30/30": (30.0, 30.0, 1), "5/20": (5.0, 20.0, 2)}


@pytest.mark.parametrize("profile", PROFILES)
def test_c04_a_link_that_comes_and_goes_delays_and_loses_nothing(
    experiment: Experiment, network: Network, profile: str
) -> None:
    off, on, times = PROFILES[profile]
    scale = 1.0 if experiment.long else 0.1
    firsts = []
    with NetRig(experiment, network, Options(rate=500.0, keepalive_seconds=KEEPALIVE_SECONDS)) as stand:
        stand.start()
        stand.flows()
        stand.remember()
        for _ in range(experiment.scaled(times, 10 * times)):
            with partition(network, "device"):
                pause(off * scale)
            firsts.append(stand.flows(1))
            experiment.log("healed", off_seconds=off * scale, first_progress_seconds=round(firsts[-1], 3))
            pause(on * scale)
        stand.settle(least=500)
    experiment.log("recovered", **at_most(FIRST_PROGRESS_SECONDS, firsts))


@pytest.mark.parametrize("place", ["device", "bridge"])
def test_c04_a_backlog_drains_fast_after_a_long_cut(experiment: Experiment, network: Network, place: Place) -> None:
    seconds = experiment.seconds(CUT_SECONDS[place], CUT_SHARES[place])
    options = Options(rate=100.0, burst=20_000, keepalive_seconds=KEEPALIVE_SECONDS)
    with NetRig(experiment, network, options) as stand:
        stand.start()
        stand.flows()
        stand.remember()
        with partition(network, place):
            stand.ask("burst")
            pause(seconds)
            waiting = int(stand.told()["waiting"])
            state = stand.told()["partition"]
        first = stand.flows(1)
        drained = stand.until(
            lambda: int(stand.told()["waiting"]) < 200, "the backlog is gone", 30.0 + waiting / DRAIN_RATE
        )
        experiment.log("drained", waiting=waiting, first_seconds=first, seconds=drained, partition=state)
        assert waiting >= 20_000
        assert state != "healthy", "the producer did not see that nothing is acknowledged"
        # What the broker has sent to a bridge that is cut off waits for the broker's own TCP, whose pauses double.
        assert first <= FIRST_PROGRESS_SECONDS + (seconds if place == "bridge" else 0.0)
        assert waiting / max(drained, 0.05) >= DRAIN_RATE
        stand.settle(least=20_000)


def test_c04_inference_goes_on_and_status_tells_while_the_cloud_is_away(
    experiment: Experiment, network: Network
) -> None:
    seconds = experiment.seconds(3.0, 1 / 60)
    with SiteStand(experiment, network=network) as stand:
        stand.start()
        stand.remember()
        before = rate_of_inferences(stand, seconds)
        with partition(network, "device"):
            during = rate_of_inferences(stand, seconds)
            # The metric is what a person's alarm looks at; it is refreshed every few seconds.
            stand.until(lambda: stand.metrics()["partition_state"] > 0, "the metric shows the partition", 30.0)
            partition_told = stand.told()["partition"]
        experiment.log("inferences", before=before, during=during, partition=partition_told)
        assert during >= 0.95 * before
        assert partition_told != "healthy"
        stand.flows(1)
        stand.until(lambda: stand.told()["partition"] == "healthy", "the status shows that it is over", 30.0)
        stand.check_answers()
        # The broker of the site was cut off too: what it was told last must still be told.
        stand.until(lambda: stand.told()["local"]["state"] == "connected", "the site's broker is back")
        stand.settle(least=5)


def test_c04_control_a_gateway_that_deletes_what_it_has_written_to_the_socket_is_caught(
    experiment: Experiment, network: Network
) -> None:
    options = Options(rate=500.0, keepalive_seconds=5, producer_module="tests.simulators.fire_and_forget_producer")
    with NetRig(experiment, network, options) as stand:
        stand.start()
        with partition(network, "device"):
            stand.until(lambda: stand.told()["link"] != "connected", "the producer has given the connection up")
        verdict = drained_verdict(stand)
        assert verdict.lost > 0
        with pytest.raises(AssertionError, match="lost"):
            verdict.check()


def rate_of_inferences(stand: SiteStand, seconds: float) -> float:
    """Return inferences a second over a while."""
    began, count = time.monotonic(), stand.inferences()
    pause(seconds)
    return (stand.inferences() - count) / (time.monotonic() - began)


def drained_verdict(stand: NetRig) -> Verdict:
    """Wait until a producer has nothing more to say, and judge."""
    stand.drained()
    return stand.oracle.judge(stand.database)
