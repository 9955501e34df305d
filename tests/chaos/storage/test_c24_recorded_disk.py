"""C24: the power goes at every flush of an update of a model: the old release or the new one, whole, never neither."""

import os
import shutil
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.chaos.experiment import Experiment
from tests.chaos.storage import ota_oracle
from tests.chaos.storage.campaign import ROOT, position
from tests.chaos.storage.conftest import MakeDisk
from tests.chaos.storage.cuts import DiskLog, PowerCut, mounted, workplace
from tests.chaos.storage.fusedisk import FLUSH, MARK, FuseDisk
from tests.chaos.storage.ota_oracle import OtaVerdict
from tests.chaos.storage.ota_victim import BIASES, OTHERS, WISHES
from tests.simulators.published_repository import publish, signed_digests

pytestmark = pytest.mark.timeout(3600, method="signal")

DISK_MIB = 64
"""The store wants room for a release and 16 MiB to spare."""

POINTS = 100
"""Of the short form, chosen at random among the moments before and after all flushes; the long form takes them all."""

CONVERGE_EVERY = 6
"""Of the states that they leave each of so many is started once more in the short form, all in the long one, and must
end with the last release."""

BESIDE = 2
"""So many disks are mounted beside each other, which is mostly waiting."""

AGAIN = 25
"""A state that was seen so many times again is judged again, and must come out as before."""

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


@dataclass
class State:
    """One state of the device's disk: what a start makes of it, and the start after that."""

    found: OtaVerdict
    converges: list[str] | None  # what did not end well; None: not asked
    seen_again: int = 0  # by disks of other bytes


class States:
    """What a device makes of the states of its disk.

    It is a function of the state, so none is judged for a second time. Every `AGAIN`th time one is judged all the same,
    and must come out as before.
    """

    def __init__(self, published: Path, converge_every: int | None) -> None:
        """converge_every: every so many states, and all with torn downloads, are started once more; None: no one."""
        self._published = published
        self._signed = signed_digests(published)
        self._converge_every = converge_every
        self._known: dict[bytes, State] = {}
        self._lock = threading.Lock()  # nothing is judged beside another
        self.judged_again = 0

    def of(self, root: Path) -> State:
        """Judge what lies in a directory, where that has not been done yet; it may be changed by that."""
        name = ota_oracle.state_of(root)
        with self._lock:
            return self._of(name, root)

    def _of(self, name: bytes, root: Path) -> State:
        known = self._known.get(name)
        if known is None:
            found = ota_oracle.look(root, self._published, self._signed)
            turn = self._converge_every is not None and not len(self._known) % self._converge_every
            asked = turn or (self._converge_every is not None and found.torn_downloads > 0)
            known = self._known[name] = State(found, self._converged(root) if asked else None)
            return known
        known.seen_again += 1
        if not known.seen_again % AGAIN:
            self.judged_again += 1
            now = State(
                ota_oracle.look(root, self._published, self._signed),
                None if known.converges is None else self._converged(root),
            )
            if (now.found, now.converges) != (known.found, known.converges):
                known.found.faults.append(f"judged again the same disk gives {now}, and gave {known}")
        return known

    def _converged(self, root: Path) -> list[str]:
        return ota_oracle.converge(root, self._published)

    def told(self) -> dict[str, object]:
        """Return the figures."""
        return {
            "states": len(self._known),
            "started_again": sum(state.converges is not None for state in self._known.values()),
            "judged_again": self.judged_again,
        }


class Cuts:
    """Cuts the power at points of a recording, and starts the device on each disk that this leaves.

    A disk of the same bytes as one before is not mounted again; `States` does the same for what is found on it, once
    its file system has replayed its journal. Whether that may run is asked for each cut: it depends on what the device
    had told by then.
    """

    def __init__(self, experiment: Experiment, disk: FuseDisk, log: DiskLog, states: States) -> None:
        self._experiment = experiment
        self._base = disk.base
        self._log = log
        self._states = states
        self._disks: dict[bytes, State] = {}
        self.torn_sectors = 0
        self.verdicts: list[OtaVerdict] = []

    def at(self, points: list[int]) -> Iterator[OtaVerdict]:
        """Judge each point, in rising order."""
        cut = PowerCut(self._base, self._log)
        with workplace() as place, ThreadPoolExecutor(BESIDE) as pool:
            for first in range(0, len(points), BESIDE):
                keys: list[bytes] = []
                images: dict[bytes, Path] = {}
                for point in points[first : first + BESIDE]:
                    remnant = cut.at(point, self._experiment.random)
                    self.torn_sectors += remnant.lost_sectors
                    keys.append(remnant.key)
                    if remnant.key not in self._disks and remnant.key not in images:
                        image = place / f"{point}.img"  # a loop device may hold the last a moment longer
                        cut.write(remnant, image)
                        images[remnant.key] = image
                self._disks |= zip(images, pool.map(self._mounted, images.values()), strict=True)
                for point, key in zip(points[first:], keys, strict=False):
                    yield self._verdict(point, self._disks[key])

    def _mounted(self, image: Path) -> State:
        with mounted(image, image.with_suffix(".mounted")) as mountpoint:
            state = self._states.of(mountpoint / "device")
        image.unlink()
        return state

    def _verdict(self, point: int, state: State) -> OtaVerdict:
        verdict = state.found.held_to(self._log.marks(point))
        verdict.faults += state.converges or []
        self.verdicts.append(verdict)
        if verdict.faults:
            self._experiment.log("fault", point=point, verdict=verdict)
        return verdict

    def everywhere(self, points: list[int]) -> None:
        """Judge all points."""
        for _ in self.at(points):
            pass

    def faults(self) -> list[str]:
        """Return what was wrong anywhere."""
        return [fault for verdict in self.verdicts for fault in verdict.faults]

    def told(self) -> dict[str, object]:
        """Return the figures."""
        return {
            "points": len(self.verdicts),
            "disks": len(self._disks),
            **self._states.told(),
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
    cuts = Cuts(experiment, disk, log, States(published, 1 if experiment.long else CONVERGE_EVERY))
    cuts.everywhere(everywhere)
    for _ in range(experiment.scaled(0, TORN_TRIES)):
        cuts.everywhere([point for point in everywhere if log.steps[point - 1].kind != FLUSH])
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
    cuts = Cuts(experiment, disk, log, States(published, None))
    found = any(verdict.neither for verdict in cuts.at(chosen(experiment, flushes(log))))
    experiment.log("cut", **cuts.told())
    print(cuts.told())
    assert found, "nothing was synced and nothing lost: it sees nothing"


def test_c24_control_no_two_states_of_a_disk_pass_for_one(
    experiment: Experiment, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = experiment.directory / "device"
    file = root / "state/file"

    def fresh() -> bytes:
        shutil.rmtree(root, ignore_errors=True)
        file.parent.mkdir(parents=True)
        for each in (file, file.with_name("second"), root / OTHERS):
            each.write_bytes(b"content")
        for each in (file, file.with_name("second"), file.parent):
            os.utime(each, (1, 1))
        return ota_oracle.state_of(root)

    monkeypatch.setattr(os, "statvfs", lambda _: SimpleNamespace(f_bavail=1, f_favail=1))  # others write there, too

    def renamed() -> None:
        file.rename(file.with_name("third"))
        os.utime(file.parent, (1, 1))

    def rewritten() -> None:
        file.write_bytes(b"cONTENT")
        os.utime(file, (1, 1))

    changes: list[Callable[[], object]] = [
        renamed,
        rewritten,
        file.unlink,
        lambda: file.chmod(0o600),
        lambda: os.utime(file, (2, 2)),
        lambda: os.utime(file.parent, (2, 2)),
        lambda: os.truncate(file, 6),
        (root / "empty").mkdir,
        lambda: (root / "link").symlink_to("one"),
        lambda: (root / "link").symlink_to("other"),
        lambda: (root / "link").hardlink_to(file),
        lambda: monkeypatch.setattr(os, "statvfs", lambda _: SimpleNamespace(f_bavail=0, f_favail=1)),
    ]
    states = [fresh()]
    for change in changes:
        assert fresh() == states[0]
        change()
        states.append(ota_oracle.state_of(root))
    assert len({*states}) == len(states)
    fresh()
    (root / OTHERS).write_bytes(b"other")
    assert ota_oracle.state_of(root) == states[-1]


def test_c24_control_a_state_that_comes_out_differently_is_a_fault(
    experiment: Experiment, published: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = experiment.directory / "device"
    directory.mkdir()
    monkeypatch.setattr(os, "statvfs", lambda _: SimpleNamespace(f_bavail=1, f_favail=1))
    looked: list[OtaVerdict] = []

    def look(*_: object) -> OtaVerdict:
        looked.append(OtaVerdict(runs=str(len(looked))))
        return looked[-1]

    monkeypatch.setattr(ota_oracle, "look", look)
    states = States(published, None)
    for _ in range(AGAIN):
        assert not states.of(directory).found.faults
    assert len(looked) == 1, "the same state was judged twice"
    assert "judged again" in states.of(directory).found.faults[0]
