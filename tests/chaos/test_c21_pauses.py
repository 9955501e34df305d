"""C21: a process stands still for a while: a debugger, a suspended machine, a disk that hangs."""

import signal

import pytest

from tests.chaos.experiment import Experiment
from tests.chaos.stand import Options, Stand
from tests.chaos.timing import at_most, pause

RECOVERY_SECONDS = 5.0
PROCESSES = ("producer", "bridge", "broker")


@pytest.mark.parametrize("process", PROCESSES)
def test_c21_a_process_that_stands_still_for_a_while_loses_nothing(experiment: Experiment, process: str) -> None:
    recoveries: list[float] = []
    # The first one is longer than a broker or a client waits for the other: one and a half keepalives.
    lengths = [9.0, *(experiment.random.uniform(1.0, 3.0) for _ in range(experiment.scaled(0, 20)))]
    if experiment.long:
        lengths.append(60.0)
    with Stand(experiment, Options(rate=500.0)) as stand:
        stand.start()
        stand.flows()
        stand.remember()
        for length in lengths:
            child = stand.processes()[process]
            child.signal(signal.SIGSTOP)
            pause(length)
            child.signal(signal.SIGCONT)
            recoveries.append(stand.flows())
            experiment.log("stood_still", process=process, seconds=length, recovery_seconds=recoveries[-1])
        stand.settle(least=500)
        assert_one_client(stand)
    experiment.log("recovered", **at_most(RECOVERY_SECONDS, recoveries))


def test_c21_control_a_gateway_that_deletes_on_puback_loses_what_a_paused_bridge_had_waiting(
    experiment: Experiment,
) -> None:
    options = Options(
        rate=500.0,
        burst=10_000,
        producer_module="tests.simulators.careless_producer",
        broker_lines=("max_queued_messages 5", "max_inflight_messages 2"),
    )
    with Stand(experiment, options) as stand:
        stand.start()
        stand.drained()
        stand.rig.bridge.signal(signal.SIGSTOP)
        stand.ask("burst")
        stand.until(lambda: stand.told()["made"] > 10_000 and stand.told()["empty"], "the outbox is empty")
        stand.rig.bridge.signal(signal.SIGCONT)
        stand.drained()
        with pytest.raises(AssertionError, match="lost"):
            stand.settle(least=500)


def assert_one_client(stand: Stand) -> None:
    """No second connection with the same id was made while the first one still stood."""
    said = stand.logs()["broker"]
    assert "already connected, closing old connection" not in said, said[-2000:]
