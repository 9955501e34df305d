"""Recording what a victim does to a disk, cutting the power at many moments of it, and judging what is left."""

import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

from tests.chaos.experiment import Experiment
from tests.chaos.storage import bridge_oracle, outbox_oracle
from tests.chaos.storage.cuts import DiskLog, PowerCut, mounted, workplace
from tests.chaos.storage.fusedisk import MARK, FuseDisk
from tests.chaos.storage.outbox_oracle import Verdict
from tests.chaos.storage.outbox_victim import SETTINGS

ROOT = Path(__file__).parents[3]

BESIDE: Final = 3
"""So many points are judged beside each other: each of them mostly waits, for mounts and for syncs."""

Judge = Callable[[Path, DiskLog, int], Verdict]


def victim_command(disk: FuseDisk, module: str, file: str, *words: str) -> list[str]:
    """Return how to run a victim on a disk."""
    return [
        sys.executable,
        "-m",
        f"tests.chaos.storage.{module}",
        str(disk.mountpoint / file),
        str(disk.control),
        *words,
    ]


def record(disk: FuseDisk, module: str, file: str, *knobs: str, seed: int, rounds: int, ends: tuple[str, ...]) -> None:
    """Let a victim live several times on the disk; each life but the last ends by SIGKILL."""
    for life, end in enumerate(ends):
        ended = subprocess.run(
            victim_command(disk, module, file, str(seed + life), str(rounds), end, *knobs),
            cwd=ROOT,
            check=False,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert ended.returncode == (-9 if end == "kill" else 0), ended.stderr[-3000:]


@dataclass(frozen=True)
class Outcome:
    """What all the cuts of one recording have shown."""

    points: int
    clean: int
    lost: int  # the most at one point
    torn_sectors: int
    slowest_open_seconds: float
    first_fault: str


def cut_everywhere(
    experiment: Experiment, disk: FuseDisk, judge: Judge, count: int, *, stop_at_loss: bool = False, after: str = ""
) -> Outcome:
    """Cut the power at many moments of a recording and judge each of them; `after` a mark, if one is named."""
    log = DiskLog(disk.log)
    points = log.points(experiment.random, count, since=position(log, after) if after else 1)
    cut = PowerCut(disk.base, log)
    verdicts: list[Verdict] = []
    torn = 0
    first_fault = ""
    with workplace() as place, ThreadPoolExecutor(BESIDE) as pool:
        for first in range(0, len(points), BESIDE):
            some = points[first : first + BESIDE]
            images = [place / f"{point}.img" for point in some]  # a loop device may hold the last a moment longer
            torn += sum(cut.image(point, image, experiment.random) for point, image in zip(some, images, strict=True))
            for point, verdict in zip(some, pool.map(partial(judged, judge, log), some, images), strict=True):
                verdicts.append(verdict)
                if verdict.faults:
                    first_fault = first_fault or f"point {point} of {len(log.steps)}: {verdict.faults[:5]}"
                    experiment.log("fault", point=point, faults=verdict.faults[:20])
            if stop_at_loss and any(verdict.lost for verdict in verdicts):
                break
    outcome = Outcome(
        points=len(verdicts),
        clean=sum(not verdict.faults for verdict in verdicts),
        lost=max(verdict.lost for verdict in verdicts),
        torn_sectors=torn,
        slowest_open_seconds=max(verdict.open_seconds for verdict in verdicts),
        first_fault=first_fault,
    )
    experiment.log("outcome", steps=len(log.steps), outcome=outcome)
    print(outcome)
    return outcome


def judged(judge: Judge, log: DiskLog, point: int, image: Path) -> Verdict:
    """Mount what a cut has left, and judge it; the image is gone afterwards."""
    with mounted(image, image.with_suffix(".mounted")) as mountpoint:
        verdict = judge(mountpoint, log, point)
    image.unlink()
    return verdict


def position(log: DiskLog, mark: str) -> int:
    """Return the point right after the first mark of this text."""
    return next(at + 1 for at, step in enumerate(log.steps) if step.kind == MARK and log.payload(step) == mark.encode())


def outbox_judge(place: Path, log: DiskLog, point: int) -> Verdict:
    return outbox_oracle.judge(place / "state/outbox.db", SETTINGS, outbox_oracle.promises_of(log.marks(point)))


def bridge_judge(place: Path, log: DiskLog, point: int) -> Verdict:
    return bridge_oracle.judge(place / "bridge/bridge.db", bridge_oracle.acknowledged_by(log.marks(point)))
