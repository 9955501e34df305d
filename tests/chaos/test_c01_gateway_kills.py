"""C1: the gateway is killed at random moments, again and again."""

import time
from functools import partial

import pytest

from tests.chaos.experiment import Experiment
from tests.chaos.oracle import Verdict
from tests.chaos.sitestand import SiteStand
from tests.chaos.stand import Options, Stand
from tests.chaos.timing import at_most, pause

RECOVERY_SECONDS = 3.0


def test_c01_a_gateway_killed_at_any_moment_loses_nothing_and_is_back_at_once(experiment: Experiment) -> None:
    cycles = experiment.scaled(12, 1000)
    recoveries = []
    with SiteStand(experiment) as stand:
        stand.start()
        stand.remember()
        for cycle in range(cycles):
            pause(experiment.random.uniform(0.0, 0.8))
            stand.rig.gateway.kill()
            killed_ns = time.time_ns()  # the clock that stamps records
            stand.rig.gateway.start()
            seconds = stand.until(partial(_newer, stand, killed_ns), "a new record is committed")
            recoveries.append(seconds)
            experiment.log("killed", cycle=cycle, recovery_seconds=round(seconds, 3))
        stand.until(lambda: stand.status() is not None, "the gateway answers")
        stand.check_answers()
        verdict = stand.settle(least=cycles)
    experiment.log("recovered", **at_most(RECOVERY_SECONDS, recoveries))
    assert verdict.evicted == 0


def test_c01_a_producer_killed_under_load_keeps_every_promise(experiment: Experiment) -> None:
    verdict = kill_producer(experiment, Options(rate=2000.0), experiment.scaled(12, 1000))
    verdict.check(least=1000)


def test_c01_control_a_store_that_promises_before_it_has_written_is_caught(experiment: Experiment) -> None:
    options = Options(rate=2000.0, producer_module="tests.simulators.hasty_producer")
    verdict = kill_producer(experiment, options, 4)
    assert verdict.lost + verdict.altered > 0
    with pytest.raises(AssertionError, match=r"lost|altered"):
        verdict.check()


def _newer(stand: SiteStand, than_ns: int) -> bool:
    return stand.newest_ns() > than_ns


def kill_producer(experiment: Experiment, options: Options, cycles: int) -> Verdict:
    """Kill a producer at random moments; drain the last one, and judge."""
    with Stand(experiment, options) as stand:
        stand.start()
        stand.remember()
        for _ in range(cycles):
            pause(experiment.random.uniform(0.0, 0.3))
            assert stand.producer is not None
            stand.producer.kill()
            stand.start_producer()
        stand.flows()
        stand.drained()
        verdict = stand.oracle.judge(stand.database)
        experiment.log("judged", cycles=cycles, verdict=verdict)
        stand.check_footprints()
        stand.check_logs()
    return verdict
