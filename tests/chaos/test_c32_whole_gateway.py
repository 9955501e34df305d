"""C32 with a whole gateway: partitions, kills, a bad disk, a wrong clock, a TPM that is away, and updates cut short.

Nothing is lost, stored twice or out of order; the models go on answering; and the old or the new release runs.
"""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from hil.loopback.children import RigError
from hil.loopback.tally import outbox_counts
from tests.chaos.experiment import Experiment
from tests.chaos.schedule import Schedule, Step, carry_out, in_words, random_schedule, read, write
from tests.chaos.securedstand import SecuredStand
from tests.chaos.sitefaults import ALONE, FAMILIES, FAULTS
from tests.chaos.storage import fusedisk
from tests.chaos.storage.fusedisk import FuseDisk
from tests.simulators import swtpm

pytestmark = [
    pytest.mark.skipif(bool(swtpm.missing()), reason=swtpm.missing()),
    pytest.mark.skipif(bool(fusedisk.missing()), reason=f"no recorded disk here: {fusedisk.missing()}"),
]

DISK_MIB = 48
SHORT_SECONDS = 18.0
SHORT_LONGEST_SECONDS = 2.0
LONGEST_SECONDS = 8.0


@contextmanager
def site(experiment: Experiment, *gateway_module: str) -> Iterator[SecuredStand]:
    with (
        FuseDisk(experiment.directory / "disk", DISK_MIB) as disk,
        SecuredStand(experiment, disk, gateway_module=gateway_module or ("gateway",)) as stand,
    ):
        yield stand


def test_c32_a_whole_gateway_survives_everything_at_once(
    experiment: Experiment, request: pytest.FixtureRequest
) -> None:
    written: Path | None = request.config.getoption("schedule", None)
    longest = LONGEST_SECONDS if experiment.long else SHORT_LONGEST_SECONDS
    drawn = draw(experiment.random, experiment.seconds(SHORT_SECONDS), longest)
    schedule = read(written) if written is not None else drawn
    file = experiment.directory / "schedule.json"
    write(schedule, file)
    try:
        run(experiment, schedule)
    except (AssertionError, RigError) as error:
        again = f'make test-chaos ARGS="--schedule {file} -k test_c32_a_whole_gateway"'
        raise AssertionError(f"seed {experiment.seed} failed with\n{in_words(schedule)}\nagain: {again}") from error


def draw(chance: random.Random, seconds: float, longest_seconds: float) -> Schedule:
    return random_schedule(
        chance,
        seconds,
        FAULTS.keys(),
        families=FAMILIES,
        alone=ALONE,
        bursts=0.0,
        longest_seconds=longest_seconds,
    )


def run(experiment: Experiment, schedule: Schedule) -> None:
    """Carry a schedule out, and check all that must hold."""
    with site(experiment) as stand:
        stand.start()
        carry_out(stand, schedule, FAULTS, experiment)
        experiment.log("healed", seconds=stand.recovers())
        shares = stand.check_answers()
        verdict = stand.settle()
        print(
            f"{verdict.acknowledged} promises, {verdict.evicted} evicted by name, answered {shares}, {stand.published}"
        )


def test_c32_control_a_whole_gateway_that_believes_pubacks_loses_records(experiment: Experiment) -> None:
    with site(experiment, "tests.simulators.careless_gateway", "believes-pubacks") as stand:
        stand.start()
        stand.rig.bridge.kill()
        goal = outbox_counts(stand.rig.outbox_file)[1] + 30
        stand.until(lambda: outbox_counts(stand.rig.outbox_file)[1] >= goal, "the broker is given some")
        stand.rig.broker.kill()
        stand.start_broker()
        stand.rig.start_bridge()
        stand.recovers()
        assert stand.rig.gateway.stop(60.0) == 0
        with pytest.raises(AssertionError, match="'lost': "):
            stand.oracle.judge(stand.database).check(evictions=True)


def test_c32_control_models_that_wait_for_each_commit_stand_still_with_the_disk(experiment: Experiment) -> None:
    frozen = (Step(("frozen-disk",), 3.0, 0.5),)
    with site(experiment, "tests.simulators.careless_gateway", "waits-for-commits") as stand:
        stand.start()
        carry_out(stand, frozen, FAULTS, experiment)
        with pytest.raises(AssertionError, match="models answered for less than 95%"):
            stand.check_answers()


def test_c32_every_schedule_of_a_whole_gateway_has_a_fault_of_each_family(experiment: Experiment) -> None:
    for seed in range(experiment.scaled(50, 500)):
        schedule = draw(random.Random(seed), SHORT_SECONDS, SHORT_LONGEST_SECONDS)
        faults = {fault for step in schedule for fault in step.faults}
        assert all(faults & set(family) for family in FAMILIES)
        assert all(len(step.faults) == 1 for step in schedule if ALONE & set(step.faults))
        assert sum(step.seconds + step.calm_seconds for step in schedule) >= SHORT_SECONDS
