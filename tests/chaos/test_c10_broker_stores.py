"""C10: the broker's queue is too short, its disk is full, its file is nothing but NULs."""

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from gateway.config import Cloud
from tests.chaos.experiment import Experiment
from tests.chaos.oracle import Verdict
from tests.chaos.stand import Options, Stand

SHORT_QUEUE = ("max_queued_messages 5", "max_inflight_messages 2")
BURST = 10_000
CARELESS = "tests.simulators.careless_producer"
"""A gateway that deletes a record when the broker has it."""
MOST_KEPT = (5 + 2) * Cloud().batch_records
"""Records that such a queue can hold at most: what is sent beyond that it has dropped."""


def test_c10_a_queue_that_drops_silently_loses_nothing(experiment: Experiment) -> None:
    verdict = overflow(experiment, Options(rate=1000.0, burst=BURST, broker_lines=SHORT_QUEUE), Stand.fill_broker)
    verdict.check(least=BURST)


def test_c10_control_a_gateway_that_deletes_on_puback_loses_what_the_queue_drops(experiment: Experiment) -> None:
    options = Options(rate=1000.0, burst=BURST, broker_lines=SHORT_QUEUE, producer_module=CARELESS)
    verdict = overflow(experiment, options, send_everything)
    assert verdict.lost >= BURST - MOST_KEPT
    with pytest.raises(AssertionError, match="lost"):
        verdict.check()


def test_c10_a_broker_whose_disk_is_full_loses_nothing(experiment: Experiment) -> None:
    options = Options(rate=1000.0, burst=5000, persistence=True, broker_lines=("autosave_interval 1",))
    with Stand(experiment, options) as stand, small_disk(stand.rig.directory / "broker") as disk:
        stand.start()
        fill(disk)
        stand.fill_broker()
        # Its log is written when it ends; until then only the file that it could not finish tells.
        stand.until((disk / "mosquitto.db.new").exists, "the broker has tried to save")
        stand.rig.broker.stop()
        experiment.log("files", broker={file.name: file.stat().st_size for file in disk.iterdir()})
        stand.start_broker()
        stand.rig.start_bridge()
        stand.flows()
        stand.settle(least=5000)


def test_c10_a_broker_file_of_nuls_is_put_aside_and_nothing_is_lost(experiment: Experiment) -> None:
    with Stand(experiment, Options(rate=1000.0, burst=5000, persistence=True)) as stand:
        stand.start()
        stand.fill_broker()
        stand.rig.broker.stop()
        file = stand.rig.directory / "broker" / "mosquitto.db"
        size = file.stat().st_size
        file.write_bytes(bytes(size))
        stand.start_broker()
        stand.rig.start_bridge()
        assert list(file.parent.glob("mosquitto.db.damaged-*")), "the broker started on a file of NULs"
        stand.flows()
        stand.settle(least=5000)


@pytest.mark.parametrize("fault", ["its disk is full", "its file is nothing but NULs"])
def test_c10_control_a_gateway_that_deletes_on_puback_loses_what_the_broker_has_lost(
    experiment: Experiment, fault: str
) -> None:
    is_full = fault == "its disk is full"
    lines = ("autosave_interval 1",) if is_full else ()
    options = Options(rate=1000.0, burst=5000, persistence=True, broker_lines=lines, producer_module=CARELESS)
    with Stand(experiment, options) as stand, ExitStack() as mounts:
        folder = stand.rig.directory / "broker"
        if is_full:
            mounts.enter_context(small_disk(folder))
        stand.start()
        if is_full:
            fill(folder)
        experiment.log("sent", records=send_everything(stand, 5000))
        stand.rig.broker.stop()
        if not is_full:
            file = folder / "mosquitto.db"
            file.write_bytes(bytes(file.stat().st_size))
        stand.start_broker()
        stand.rig.start_bridge()
        stand.ask("resume")  # of the burst there may be nothing that could come
        stand.flows(records=1)
        stand.drained()
        verdict = stand.oracle.judge(stand.database)
        experiment.log("judged", verdict=verdict)
    assert verdict.lost > 0
    with pytest.raises(AssertionError, match="lost"):
        verdict.check()


def send_everything(stand: Stand, burst: int = BURST) -> int:
    """As `fill_broker`, but until the whole burst is sent and deleted: then most of it is nowhere any more."""
    stand.drained()
    stand.rig.bridge.kill()
    before = int(stand.told()["sent_records"])
    stand.ask("burst")
    stand.until(lambda: int(stand.told()["sent_records"]) - before >= burst, "all of the burst is sent", 60.0)
    stand.until(lambda: bool(stand.told()["empty"]), "all of the burst is deleted", 60.0)
    return int(stand.told()["sent_records"]) - before


def overflow(experiment: Experiment, options: Options, fill: Callable[[Stand], int]) -> Verdict:
    """Send more than the broker keeps while the bridge is away; `fill` does that and ends the bridge."""
    with Stand(experiment, options) as stand:
        stand.start()
        stand.remember()
        experiment.log("overflowed", records=fill(stand))
        stand.rig.start_bridge()
        stand.flows(records=1)
        stand.drained()
        verdict = stand.oracle.judge(stand.database)
        experiment.log("judged", verdict=verdict)
        stand.check_footprints()
        stand.check_logs()
    return verdict


@contextmanager
def small_disk(folder: Path) -> Iterator[Path]:
    """Mount a file system of 1 MiB."""
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", f"sluice-{os.getpid()}", str(folder)]
    if shutil.which("mount") is None or os.geteuid() != 0 or subprocess.run(mount, check=False).returncode != 0:
        pytest.skip("needs the right to mount a tmpfs (root)")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=False)


def fill(disk: Path) -> None:
    """Leave no room for another page."""
    with (disk / "filler").open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            return
