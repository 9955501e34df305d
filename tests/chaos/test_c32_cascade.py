"""C32 with a producer: a random schedule of all faults of processes and links, thousands of records a second.

The whole gateway, with disks, clocks, TPM and updates as well, is in `test_c32_whole_gateway`.
"""

import random
from dataclasses import replace
from pathlib import Path

import pytest

from hil.loopback.children import RigError
from tests.chaos.experiment import Experiment
from tests.chaos.namespaces import Network
from tests.chaos.netrig import NetRig
from tests.chaos.schedule import FAULTS, Schedule, Step, carry_out, in_words, random_schedule, read, shrink, write
from tests.chaos.stand import Options

OPTIONS = Options(rate=500.0, burst=5000)
SHRINKING_RUNS = 12


def test_c32_no_schedule_of_faults_loses_a_record(
    experiment: Experiment, network: Network, request: pytest.FixtureRequest
) -> None:
    written: Path | None = request.config.getoption("schedule", None)
    seconds = experiment.seconds(35.0)
    schedule = read(written) if written is not None else random_schedule(experiment.random, seconds)
    file = experiment.directory / "schedule.json"
    write(schedule, file)
    try:
        run(experiment, network, schedule, "whole")
    except (AssertionError, RigError) as error:
        if experiment.long:
            schedule = shrink(schedule, lambda part: fails(experiment, network, part), SHRINKING_RUNS)
            write(schedule, file)
        again = f'make test-chaos ARGS="--schedule {file} -k test_c32_no_schedule"'
        raise AssertionError(f"seed {experiment.seed} failed with\n{in_words(schedule)}\nagain: {again}") from error


def test_c32_control_a_gateway_that_deletes_on_puback_does_not_survive(
    experiment: Experiment, network: Network
) -> None:
    careless = replace(OPTIONS, rate=2000.0, producer_module="tests.simulators.careless_producer")
    storm = Step(("pause-bridge",), 0.5, 0.0, burst=True), Step(("kill-bridge", "kill-broker"), 0.2, 0.5, burst=True)
    with NetRig(experiment, network, careless) as stand:
        stand.start()
        for _ in range(3):
            carry_out(stand, storm, FAULTS, experiment, lambda: burst(stand))
        stand.flows(1)
        with pytest.raises(AssertionError, match="lost"):
            stand.settle()


def test_c32_the_same_seed_makes_the_same_schedule(experiment: Experiment, tmp_path: Path) -> None:
    first, second = (random_schedule(random.Random(experiment.seed), 300.0) for _ in range(2))
    assert first == second
    write(first, tmp_path / "schedule.json")
    assert read(tmp_path / "schedule.json") == first
    assert {fault for step in first for fault in step.faults} == set(FAULTS)


def test_c32_a_failing_schedule_is_cut_down_to_the_steps_that_matter() -> None:
    steps = tuple(Step((f"fault-{number}",), 1.0, 1.0) for number in range(20))
    guilty = {steps[3], steps[11]}
    assert set(shrink(steps, lambda part: guilty <= set(part), 200)) == guilty
    assert shrink(steps, lambda _: False, 200) == steps


def run(experiment: Experiment, network: Network, schedule: Schedule, name: str) -> None:
    """Carry a schedule out on a stand of its own, and check all that must hold."""
    with NetRig(experiment, network, OPTIONS, name=name) as stand:
        stand.start()
        stand.flows()
        stand.remember()
        carry_out(stand, schedule, FAULTS, experiment, lambda: burst(stand))
        first = stand.flows(1, 60.0)
        experiment.log("healed", first_progress_seconds=first)
        stand.settle(least=500, timeout_seconds=120.0)


def burst(stand: NetRig) -> None:
    """Have the producer make many records at once, if there is one just now."""
    if stand.status() is not None:
        stand.ask("burst")


def fails(experiment: Experiment, network: Network, schedule: Schedule) -> bool:
    """Tell whether a part of a schedule fails too."""
    try:
        run(experiment, network, schedule, f"part-{len(list(experiment.directory.glob('part-*')))}")
    except (AssertionError, RigError):
        return True
    return False
