"""The power of a whole machine is cut, again and again: it boots, the outbox opens, nothing acknowledged is lost."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.chaos.experiment import Experiment
from tests.chaos.storage import fusedisk, machine
from tests.chaos.storage.cuts import PowerCut, mounted
from tests.chaos.storage.fusedisk import make_file_system
from tests.chaos.storage.machine import Machine, WriteLog
from tests.chaos.storage.outbox_oracle import judge, promises_of
from tests.chaos.storage.outbox_victim import SETTINGS

BOOTS_WITHIN_SECONDS = 90.0


@pytest.fixture
def kernel_and_ram_disk() -> Iterator[tuple[Path, Path]]:
    if reason := machine.missing() or fusedisk.missing():
        pytest.skip(f"no machine here: {reason}")
    try:
        found = machine.prepared()
    except machine.NoKernelError as error:
        pytest.skip(f"no machine here: {error}")
    try:
        yield found
    finally:
        found[1].unlink(missing_ok=True)


def test_c15_a_machine_whose_power_is_cut_boots_and_has_what_it_acknowledged(
    experiment: Experiment, kernel_and_ram_disk: tuple[Path, Path]
) -> None:
    disk = experiment.directory / "disk.img"
    make_file_system(disk, 32)
    heard: list[str] = []
    for at in range(experiment.scaled(2, 40)):
        before = experiment.directory / "before.img"
        shutil.copyfile(disk, before)
        one = Machine(*kernel_and_ram_disk, disk, experiment.directory / f"boot-{at}")
        try:
            one.power_on()
            one.wait(30 + experiment.random.randrange(150), BOOTS_WITHIN_SECONDS)
        finally:
            one.cut()
        said = one.said()
        held = [line for line in said if line.startswith("held ")]
        heard += [line for line in said if not line.startswith("held ")]
        promises = promises_of(heard)
        log = WriteLog(one.log)
        cut = PowerCut(before, log)
        left = experiment.directory / "left.img"
        lost_sectors = cut.image(len(log.steps), left, experiment.random)
        # What stays is the disk with a volatile cache; it is what boots next.
        shutil.copyfile(left, disk)
        with mounted(left, experiment.directory / "mounted") as place:
            verdict = judge(place / "state" / "outbox.db", SETTINGS, promises)
        experiment.log("cut", boot=at, marks=len(said), held=held, lost_sectors=lost_sectors, present=verdict.present)
        print(f"cut {at}: {len(promises.receipts)} acknowledged, {verdict.present} there, {lost_sectors} sectors lost")
        assert verdict.faults == (), f"cut {at}"
        assert len({line for line in heard if line.startswith("epoch ")}) == 1
    assert held != ["held 0"], "the last boot began with what the ones before had stored"


def test_c15_control_a_cache_that_ignores_flushes_loses(
    experiment: Experiment, kernel_and_ram_disk: tuple[Path, Path]
) -> None:
    disk = experiment.directory / "disk.img"
    make_file_system(disk, 32)
    before = experiment.directory / "before.img"
    shutil.copyfile(disk, before)
    one = Machine(*kernel_and_ram_disk, disk, experiment.directory / "boot")
    try:
        one.power_on()
        one.wait(120, BOOTS_WITHIN_SECONDS)
    finally:
        one.cut()
    log = WriteLog(one.log)
    promises = promises_of(line for line in one.said() if not line.startswith("held "))
    left = experiment.directory / "left.img"
    kept = len(log.steps) * 9 // 10  # the last tenth was flushed, and is not there
    PowerCut(before, log).image(kept, left, experiment.random)
    with mounted(left, experiment.directory / "mounted") as place:
        verdict = judge(place / "state" / "outbox.db", SETTINGS, promises)
    assert verdict.lost > 0
