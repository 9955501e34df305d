"""C3: the broker is killed with thousands of records in it that nobody else has taken yet."""

import pytest

from tests.chaos.experiment import Experiment
from tests.chaos.oracle import Verdict
from tests.chaos.stand import Options, Stand
from tests.chaos.timing import pause

LONGEST_BACKOFF_SECONDS = 30.0
IN_THE_BROKER = 1000


def test_c03_a_killed_broker_loses_nothing_of_what_it_had_acknowledged(experiment: Experiment) -> None:
    recoveries: list[float] = []
    verdict = kill_broker(experiment, Options(rate=1000.0, burst=10_000), experiment.scaled(2, 50), recoveries)
    verdict.check(least=2 * IN_THE_BROKER)
    # A broker that goes away again and again is left alone for longer and longer, so that a fleet does not kill it.
    assert max(recoveries) <= LONGEST_BACKOFF_SECONDS, recoveries


def test_c03_control_a_gateway_that_deletes_on_puback_is_caught(experiment: Experiment) -> None:
    options = Options(rate=1000.0, burst=10_000, producer_module="tests.simulators.careless_producer")
    verdict = kill_broker(experiment, options, 1, [])
    assert verdict.lost >= IN_THE_BROKER
    with pytest.raises(AssertionError, match="lost"):
        verdict.check()


def kill_broker(experiment: Experiment, options: Options, cycles: int, recoveries: list[float]) -> Verdict:
    """Let records gather in the broker while the bridge stands still, kill it, and go on."""
    with Stand(experiment, options) as stand:
        stand.start()
        stand.flows()
        stand.remember()
        for cycle in range(cycles):
            assert stand.fill_broker() >= IN_THE_BROKER
            stand.ask("resume")
            pause(experiment.random.uniform(0.0, 0.3))
            stand.rig.broker.kill()
            stand.rig.start_bridge()
            pause(experiment.random.uniform(0.0, 0.5))
            stand.start_broker()
            recoveries.append(stand.flows())
            experiment.log("killed", cycle=cycle, recovery_seconds=round(recoveries[-1], 3), status=stand.status())
        stand.drained()
        verdict = stand.oracle.judge(stand.database)
        experiment.log("judged", verdict=verdict)
        assert stand.logged("producer", "mqtt_not_connected"), "the producer says nothing of the lost connection"
        stand.check_footprints()
        stand.check_logs()
    return verdict
