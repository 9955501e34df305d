"""The disk reports errors: nothing is acknowledged that it does not have, and nothing is lost when it works again."""

import contextlib
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from hil.loopback.rig import Rig, eventually
from hil.loopback.tally import tally_of
from tests.chaos.experiment import Experiment
from tests.chaos.storage.campaign import ROOT, bridge_judge, cut_everywhere, outbox_judge, position, victim_command
from tests.chaos.storage.conftest import MakeDisk
from tests.chaos.storage.cuts import DiskLog
from tests.chaos.storage.fusedisk import MARK, FuseDisk
from tests.chaos.storage.outbox_oracle import promises_of
from tests.e2e.conftest import Site
from tests.e2e.flow import arrives, logged, settle, status_of, waits
from tests.simulators.waiting import wait_for

FILE = "state/outbox.db"


@contextmanager
def producing(experiment: Experiment, disk: FuseDisk, seed: int, *knobs: str) -> Iterator[Path]:
    """Let a victim produce for as long as the block lasts; gives what it says."""
    said = experiment.directory / f"victim-{seed}.log"
    with said.open("wb") as log:
        victim = subprocess.Popen(
            victim_command(disk, "outbox_victim", FILE, str(seed), "0", "stay", *knobs),
            cwd=ROOT,
            stdout=log,
            stderr=log,
        )
        try:
            wait_for(lambda: disk.marked("r") > 20, seconds=30, what="the victim produces")
            yield said
            assert victim.poll() is None, said.read_text()[-3000:]
        finally:
            victim.kill()
            victim.wait()


def fail_and_cut(experiment: Experiment, disk: FuseDisk, seed: int, knobs: dict[str, Any], *victim: str) -> int | None:
    """One error, then a power cut while the outbox works on; None if the error met nobody, else how many were lost."""
    with producing(experiment, disk, seed, *victim):
        time.sleep(experiment.random.uniform(0.0, 0.3))  # a random moment is the point of it
        disk.mark("fault")
        disk.set(**knobs)
        try:
            wait_for(lambda: disk.marked("reopened"), seconds=3)
        except AssertionError:
            experiment.log("no_reopening", seed=seed)  # it met the journal: read-only until the next boot
        time.sleep(0.1)
    disk.close()
    if not promises_of(DiskLog(disk.log).marks()).failures:
        return None
    outcome = cut_everywhere(experiment, disk, outbox_judge, 25, after="fault")
    experiment.log("round", knobs=knobs, lost=outcome.lost, clean=outcome.clean, points=outcome.points)
    return max(outcome.lost, outcome.points - outcome.clean)


@pytest.mark.parametrize("knobs", [{"write_failures": 1}, {"fsync_failures": 1}], ids=["write", "flush"])
def test_c12_after_one_error_the_store_opens_again_and_no_later_power_cut_loses_a_record(
    experiment: Experiment, fuse_disk: MakeDisk, knobs: dict[str, Any]
) -> None:
    met, wanted = 0, experiment.scaled(2, 60)
    for at in range(5 * wanted):  # some errors meet the journal of the file system, and none of the outbox's calls
        lost = fail_and_cut(experiment, fuse_disk(), experiment.seed + at, knobs)
        assert not lost
        met += lost is not None
        if met == wanted:
            break
    assert met > 0, "no error has met the outbox"


def test_c12_control_an_outbox_that_believes_its_memory_after_an_error_loses(
    experiment: Experiment, fuse_disk: MakeDisk
) -> None:
    for at in range(20):
        if fail_and_cut(experiment, fuse_disk(), experiment.seed + at, {"write_failures": 1}, "--believing"):
            return
    pytest.fail("twenty failed writes and many power cuts lost nothing: the experiment sees nothing")


def fail_bridge_and_cut(experiment: Experiment, disk: FuseDisk, seed: int, *knobs: str) -> int | None:
    """The same for the store of the bridge, whose worker tries again until it works."""
    command = victim_command(disk, "bridge_victim", "bridge/bridge.db", str(seed), "1000000", "kill", *knobs)
    victim = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_for(lambda: disk.marked("i") > 20, seconds=30, what="the bridge commits")
        time.sleep(experiment.random.uniform(0.0, 0.3))  # a random moment is the point of it
        disk.mark("fault")
        disk.set(write_failures=1)
        before = disk.marked("i")
        with contextlib.suppress(AssertionError):  # it may have met the journal: read-only until the next boot
            wait_for(lambda: disk.marked("i") > before + 30, seconds=3)
    finally:
        victim.kill()
        victim.wait()
    disk.close()
    outcome = cut_everywhere(experiment, disk, bridge_judge, 25, after="fault")
    return max(outcome.lost, outcome.points - outcome.clean)


def test_c12_after_one_error_the_store_of_the_bridge_loses_nothing_it_has_acknowledged(
    experiment: Experiment, fuse_disk: MakeDisk
) -> None:
    for at in range(experiment.scaled(2, 60)):
        assert not fail_bridge_and_cut(experiment, fuse_disk(size_mib=48), experiment.seed + at)


def test_c12_control_a_bridge_that_believes_its_memory_after_an_error_loses(
    experiment: Experiment, fuse_disk: MakeDisk
) -> None:
    for at in range(30):
        if fail_bridge_and_cut(experiment, fuse_disk(size_mib=48), experiment.seed + at, "--believing"):
            return
    pytest.fail("thirty failed writes and many power cuts lost nothing: the experiment sees nothing")


def test_c12_a_disk_that_fails_for_good_ends_the_acknowledgements_within_a_second(
    experiment: Experiment, fuse_disk: MakeDisk
) -> None:
    disk = fuse_disk()
    with producing(experiment, disk, experiment.seed) as said:
        disk.mark("fault")
        disk.set(fsync_failures=-1, write_failures=-1)
        wait_for(lambda: disk.marked("failed"), seconds=5, what="the outbox has failed")
        wait_for(lambda: said.read_text().count("not reopened") > 3, seconds=10, what="it has tried again")
    disk.close()
    log = DiskLog(disk.log)
    began = log.steps[position(log, "fault") - 1].offset
    receipts = [step.offset for step in log.steps if step.kind == MARK and log.payload(step).startswith(b"r ")]
    assert max(receipts) - began < 1_000_000_000
    outcome = cut_everywhere(experiment, disk, outbox_judge, 40, after="fault")
    assert outcome.clean == outcome.points, outcome.first_fault


def test_c12_a_gateway_on_a_disk_that_turns_read_only_says_so_and_recovers_after_a_boot(
    experiment: Experiment, fuse_disk: MakeDisk, site: Site
) -> None:
    disk = fuse_disk(size_mib=48)
    state = disk.mountpoint / "state"
    rig = site(gateway={"gateway": {"state_directory": str(state)}, "outbox": {"ballast_bytes": 2 << 20}})
    rig.use_state(state)
    rig.start_broker()
    rig.start_gateway()
    waits(rig, 20)
    disk.set(fsync_failures=-1, write_failures=-1)
    eventually(lambda: status_of(rig)["outbox"]["state"] == "failed", "the outbox has failed", 10)
    eventually(lambda: metric(rig, "outbox_failed") == 1.0, "the metric says so", 10)
    assert len(logged(rig, "outbox_failed")) == 1
    status = status_of(rig)
    assert "check the disk" in status["outbox"]["reason"]
    told = metric(rig, "outbox_enqueued_total")
    assert told > 0
    rig.gateway.kill()
    disk.set(fsync_failures=0, write_failures=0)
    disk.unmount()
    disk.mount()
    rig.start_bridge()
    rig.start_gateway()
    assert tally_of(rig).enqueued >= told
    arrives(rig)
    settle(rig)


def metric(rig: Rig, name: str) -> float:
    """Read one metric of the gateway, summed over its labels."""
    with urllib.request.urlopen(f"http://127.0.0.1:{rig.ports.metrics}/metrics", timeout=5) as answer:
        lines = answer.read().decode().splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.split()[0].partition("{")[0] == name)
