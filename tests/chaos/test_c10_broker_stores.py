"""C10: the broker's queue is too short, its disk is full, its file is nothing but NULs."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.chaos.experiment import Experiment
from tests.chaos.oracle import Verdict
from tests.chaos.stand import Options, Stand

SHORT_QUEUE = ("max_queued_messages 5", "max_inflight_messages 2")


def test_c10_a_queue_that_drops_silently_loses_nothing(experiment: Experiment) -> None:
    verdict = overflow(experiment, Options(rate=1000.0, burst=10_000, broker_lines=SHORT_QUEUE))
    verdict.check(least=10_000)


def test_c10_control_a_gateway_that_deletes_on_puback_loses_what_the_queue_drops(experiment: Experiment) -> None:
    options = Options(
        rate=1000.0, burst=10_000, broker_lines=SHORT_QUEUE, producer_module="tests.simulators.careless_producer"
    )
    verdict = overflow(experiment, options)
    assert verdict.lost > 0
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


def overflow(experiment: Experiment, options: Options) -> Verdict:
    """Send more than the broker keeps while the bridge is away."""
    with Stand(experiment, options) as stand:
        stand.start()
        stand.remember()
        stand.fill_broker()
        stand.rig.start_bridge()
        stand.flows()
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
