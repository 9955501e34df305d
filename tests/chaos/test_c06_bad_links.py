"""C6: links that lose, that are slow, that are far away."""

from collections.abc import Callable
from contextlib import AbstractContextManager

import pytest

from tests.chaos.experiment import Experiment
from tests.chaos.namespaces import Network
from tests.chaos.netrig import NetRig
from tests.chaos.network import CELLULAR, SATELLITE, emulated, loss, rate
from tests.chaos.stand import Options
from tests.chaos.timing import pause

Link = Callable[[Network, Experiment], AbstractContextManager[object]]

LINKS: dict[str, Link] = {
    "loss-20": lambda network, _: loss(network, "device", 20),
    "satellite": lambda network, made: emulated(network, "device", SATELLITE, made.directory / "satellite.log"),
    "cellular": lambda network, made: emulated(network, "device", CELLULAR, made.directory / "cellular.log"),
    "64-kbit": lambda network, _: rate(network, "device", 64),
}
RATE = 20.0
"""Records a second, which even the slowest of these links carries."""
BACKLOG_SECONDS = 10.0
"""No more than what is made in so many seconds may wait."""


@pytest.mark.parametrize("link", LINKS)
def test_c06_a_bad_link_carries_what_it_can_and_the_backlog_stays_small(
    experiment: Experiment, network: Network, link: str
) -> None:
    seconds = experiment.seconds(5.0, 1 / 30)
    with NetRig(experiment, network, Options(rate=RATE, ack_timeout_seconds=5.0, keepalive_seconds=10)) as stand:
        stand.start()
        stand.remember()
        with LINKS[link](network, experiment):
            stand.flows(1)
            pause(seconds)
            status = stand.told()
            committed = stand.flows(10)
            experiment.log("link", name=link, status=status, ten_more_after=committed)
            assert int(status["waiting"]) <= RATE * BACKLOG_SECONDS
            assert int(status["connects"]) == 1, "the connection was given up on a link that works"
        stand.settle(least=int(RATE * seconds / 2))


def test_c06_control_more_than_the_link_carries_is_seen_in_the_backlog(
    experiment: Experiment, network: Network
) -> None:
    with NetRig(experiment, network, Options(rate=3000.0, keepalive_seconds=10)) as stand:
        stand.start()
        with rate(network, "device", 64):
            pause(2.5)
            waiting = int(stand.told()["waiting"])
        experiment.log("overloaded", waiting=waiting)
        assert waiting > RATE * BACKLOG_SECONDS
        stand.settle(least=5000)
