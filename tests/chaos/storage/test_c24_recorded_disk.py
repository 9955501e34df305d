"""C24: the power goes at every flush of an update of a model: the old release or the new one, whole, never neither."""

import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from tests.chaos.experiment import Experiment
from tests.chaos.storage import ota_oracle
from tests.chaos.storage.campaign import ROOT, position
from tests.chaos.storage.conftest import MakeDisk
from tests.chaos.storage.cuts import DiskLog, PowerCut, mounted, workplace
from tests.chaos.storage.fusedisk import FLUSH, MARK, FuseDisk
from tests.chaos.storage.ota_oracle import OtaVerdict
from tests.chaos.storage.ota_victim import BIASES, WISHES
from tests.simulators.published_repository import publish, signed_digests

pytestmark = pytest.mark.timeout(3600, method="signal")

DISK_MIB = 64
"""The store wants room for a release and 16 MiB to spare."""

POINTS = 100
"""Of the short form, chosen at random among the moments before and after all flushes; the long form takes them all."""

CONVERGING = 12
"""So many of them are started once more in the short form, and must end with the last release."""

TORN_TRIES = 20
"""So many ways to keep a part of what was not flushed, for each flush of the long form."""


@pytest.fixture
def published(experiment: Experiment) -> Path:
    """What the registry has published: a first release, and two that follow it with patches."""
    directory = experiment.directory / "published"
    publish(directory, BIASES)
    return directory


def record(disk: FuseDisk, published: Path, *knobs: str) -> DiskLog:
    """Let a device update twice on the disk; it ends by SIGKILL."""
    place, control = str(disk.mountpoint / "device"), str(disk.control)
    command = [sys.executable, "-m", "tests.chaos.storage.ota_victim", place, str(published)]
    command += ["--control", control, *knobs]
    ended = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True, timeout=120)
    assert ended.returncode == -9, ended.stderr[-3000:]
    disk.close()
    return DiskLog(disk.log)


def flushes(log: DiskLog) -> list[int]:
    """Return the moments before and after every flush and every mark of the updates, in rising order.

    Before a flush anything that was written since the last one may be lost, kept or torn; after it, nothing is.
    """
    since = position(log, "begin")
    end = position(log, f"done {WISHES[-1]}")
    edges = {at + late for at, step in enumerate(log.steps) if step.kind in (FLUSH, MARK) for late in (0, 1)}
    return sorted(at for at in edges if since <= at <= end)


def chosen(experiment: Experiment, points: list[int]) -> list[int]:
    """Return the points of this form, in rising order."""
    if experiment.long or len(points) <= POINTS:
        return points
    return sorted(experiment.random.sample(points, POINTS))


class Cuts:
    """Cuts the power at points of a recording, and starts the device on each of them."""

    def __init__(self, experiment: Experiment, disk: FuseDisk, log: DiskLog, published: Path) -> None:
        self._experiment = experiment
        self._base = disk.base
        self._log = log
        self._published = published
        self._signed = signed_digests(published)
        self.torn_sectors = 0
        self.verdicts: list[OtaVerdict] = []

    def at(self, points: list[int], converge_every: int | None) -> None:
        """Judge each point, and have every so many of them, and all with torn downloads, converge; None: no one."""
        cut = PowerCut(self._base, self._log)
        with workplace() as place:
            for number, point in enumerate(points):
                image = place / f"{len(self.verdicts)}.img"
                self.torn_sectors += cut.image(point, image, self._experiment.random)
                turn = None if converge_every is None else number % converge_every
                with mounted(image, place / "mounted") as mountpoint:
                    verdict = self._judge(mountpoint / "device", point, turn=turn)
                image.unlink()
                self.verdicts.append(verdict)
                if verdict.faults:
                    self._experiment.log("fault", point=point, verdict=verdict)

    def _judge(self, root: Path, point: int, *, turn: int | None) -> OtaVerdict:
        """Judge a point; it must converge where its turn is 0, or a download is torn."""
        verdict = ota_oracle.judge(root, self._published, self._log.marks(point), self._signed)
        if turn == 0 or (turn is not None and verdict.torn_downloads):
            verdict.faults += ota_oracle.converge(root, self._published)
        return verdict

    def faults(self) -> list[str]:
        """Return what was wrong anywhere."""
        return [fault for verdict in self.verdicts for fault in verdict.faults]

    def told(self) -> dict[str, object]:
        """Return the figures."""
        return {
            "points": len(self.verdicts),
            "runs": dict(sorted(Counter(verdict.runs or "nothing" for verdict in self.verdicts).items())),
            "neither": sum(verdict.neither for verdict in self.verdicts),
            "faulty": sum(bool(verdict.faults) for verdict in self.verdicts),
            "torn_downloads": sum(verdict.torn_downloads for verdict in self.verdicts),
            "torn_sectors": self.torn_sectors,
        }


def test_c24_a_power_cut_at_any_flush_leaves_the_old_or_the_new_release(
    experiment: Experiment, fuse_disk: MakeDisk, published: Path
) -> None:
    disk = fuse_disk(size_mib=DISK_MIB)
    log = record(disk, published)
    everywhere = chosen(experiment, flushes(log))
    cuts = Cuts(experiment, disk, log, published)
    cuts.at(everywhere, converge_every=1 if experiment.long else POINTS // CONVERGING)
    for _ in range(experiment.scaled(0, TORN_TRIES)):
        cuts.at([point for point in everywhere if log.steps[point - 1].kind != FLUSH], converge_every=25)
    experiment.log("cut", **cuts.told())
    print(cuts.told())
    assert not cuts.faults(), cuts.faults()[:5]
    assert {verdict.runs for verdict in cuts.verdicts} == {*BIASES}
    assert len(everywhere) >= 60
    assert cuts.torn_sectors > 0


def test_c24_control_an_update_that_syncs_nothing_leaves_neither(
    experiment: Experiment, fuse_disk: MakeDisk, published: Path
) -> None:
    disk = fuse_disk(size_mib=DISK_MIB)
    log = record(disk, published, "--careless")
    cuts = Cuts(experiment, disk, log, published)
    cuts.at(chosen(experiment, flushes(log)), converge_every=None)
    experiment.log("cut", **cuts.told())
    print(cuts.told())
    assert any(verdict.neither for verdict in cuts.verdicts), "nothing was synced and nothing lost: it sees nothing"
