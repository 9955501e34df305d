"""The model of a camera at 30 frames a second is updated while everything else that an update does goes on beside it.

The whole way of the device's agent: metadata verified, the file fetched, unpacked in a child, sealed, its golden inputs
answered in another child, loaded and warmed up, swapped in, tried, the old one removed. What looks is the MLPerf Tiny
model for "visual wake words" (96 x 96, int8), what it looks at is a video file at its own pace, of which a frame that
nobody takes in time is gone, as with any camera.
"""

import contextlib
import gc
import hashlib
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter

from gateway import heap
from gateway.config import ReplaySource, Trial
from gateway.sources.video import VideoFile
from gateway.values import Inference, Sample
from gateway.wire.manifest import Classification, ImageInput
from tests.bench.swap import GAP_MAX_MS
from tests.chaos.experiment import Experiment
from tests.chaos.test_swaps import SHARED_MACHINE_MAX_MS
from tests.gateway.inference.manifests import shared, write_release
from tests.gateway.ota.rig import NAME, Device
from tests.simulators.clips import write_video
from tests.simulators.published_repository import PublishedRepository, publish_releases
from tests.simulators.waiting import wait_for

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(3600, method="signal")]

MODEL: Final = "models/mlcommons-tiny/vww_96_int8.tflite"
SPEC: Final = ImageInput(height=96, width=96, scale=(255.0,))
OUTPUT: Final = Classification(labels=("no person", "person"), top=1)
FPS: Final = 30.0
HELD_SECONDS: Final = 2.0
QUIET_FRAMES: Final = 150
"""So many frames are looked at before the first update; what a busy machine loses of them stands beside the rest."""
NOISE: Final = 0.02
"""A machine that loses none without updates may lose none with them. One that does anyhow may lose this share more."""


def release_of(directory: Path, version: str, content: bytes) -> Path:
    """Write a release with a golden input that was really computed; the bytes differ, the model is the same."""
    made = content + hashlib.sha256(version.encode()).digest()
    interpreter = Interpreter(model_content=made)
    interpreter.allocate_tensors()
    (given,), (answer,) = interpreter.get_input_details(), interpreter.get_output_details()
    picture = np.random.default_rng(1).integers(-128, 127, given["shape"], dtype=np.int8)
    interpreter.set_tensor(given["index"], picture)
    interpreter.invoke()
    golden = ("cpu-int8", picture.tobytes(), interpreter.get_tensor(answer["index"]).tobytes(), 1e-3)
    return write_release(directory, {"cpu-int8": made}, SPEC, OUTPUT, version=version, golden=(golden,))  # type: ignore[arg-type]


@dataclass
class Seen:
    """What the pipeline answered: sequence number of the frame, and which release; and when, in monotonic seconds."""

    answers: list[tuple[int, str]] = field(default_factory=list)
    times: list[float] = field(default_factory=list)

    def lost(self, first: int, last: int) -> int:
        """Count the frames between two answers, by their place in the list, that got none."""
        span = self.answers[first : last + 1]
        return span[-1][0] - span[0][0] + 1 - len(span)

    def silence_ms(self, first: int, last: int) -> float:
        """Return the longest time without an answer between two of them, by their place in the list."""
        span = self.times[first : last + 1]
        return round(max(after - before for before, after in pairwise(span)) * 1e3, 1)

    def lost_at_swaps(self) -> int:
        """Count the frames without an answer between the last of one release and the first of the next."""
        return sum(after[0] - before[0] - 1 for before, after in pairwise(self.answers) if before[1] != after[1])


class CameraDevice(Device):
    """A gateway with one camera, which is a video file."""

    def __init__(self, root: Path, published: Path, video: Path) -> None:
        self.source = ReplaySource(file=video, loop=True, rate_hz=FPS)
        super().__init__(
            root, PublishedRepository(published, root / "state"), trial=Trial(seconds=1.0, min_inferences=20)
        )
        self.seen = Seen()
        self.sensor = VideoFile("camera", self.source)  # type: ignore[assignment]  # what the pipeline opens
        answered = self.record.answered

        def note(sample: Sample, inference: Inference, seconds: float, busy_seconds: float) -> None:
            self.seen.times.append(time.monotonic())
            self.seen.answers.append((inference.sequence, inference.model.version))
            answered(sample, inference, seconds, busy_seconds)

        self.record.answered = note  # type: ignore[method-assign]

    def runs(self, version: str) -> bool:
        """Whether a release answers and has proved itself."""
        return self.serving == version and self.slot.trial is None and self.slot.wanted is None


def figures_of(device: CameraDevice, updates: int, quiet: int) -> dict[str, Any]:
    """Sum up; the first `quiet` answers came before any update."""
    seen, last = device.seen, len(device.seen.answers) - 1
    gaps = [round(gap * 1e3, 2) for gap in device.record.gaps]
    return {
        "updates": updates,
        "frames": seen.answers[-1][0] - seen.answers[0][0] + 1,
        "lost_before": seen.lost(0, quiet - 1) / quiet,
        "lost": seen.lost(quiet - 1, last) / (last - quiet + 2),
        "lost_at_swaps": seen.lost_at_swaps(),
        "gaps_ms": gaps,
        "silence_before_ms": seen.silence_ms(0, quiet - 1),
        "silence_ms": seen.silence_ms(quiet - 1, last),
    }


def check(figures: dict[str, Any], longest_ms: float) -> None:
    """Hold a run against the bounds."""
    assert figures["gaps_ms"], "nothing was swapped"
    assert max(figures["gaps_ms"]) <= longest_ms, f"one gap is too long: {figures}"
    longest_silence = max(1e3 / FPS + longest_ms, 2 * figures["silence_before_ms"])
    assert figures["silence_ms"] <= longest_silence, f"the time without an answer is too long: {figures}"
    if figures["lost_before"] == 0:
        assert figures["lost"] == 0, f"frames were lost: {figures}"
    else:
        assert figures["lost"] <= 2 * figures["lost_before"] + NOISE, f"more frames were lost than without: {figures}"


@contextlib.contextmanager
def camera(experiment: Experiment, updates: int) -> Iterator[CameraDevice]:
    """Publish releases, and run a device with the first of them until enough frames have been looked at."""
    content = shared(MODEL).read_bytes()
    versions = [f"1.{number}.0" for number in range(updates + 1)]
    folders = [release_of(experiment.directory / "made", version, content) for version in versions]
    publish_releases(experiment.directory / "published", folders)
    video = write_video(experiment.directory / "clip.avi", frames=90, fps=FPS)
    device = CameraDevice(experiment.directory / "device", experiment.directory / "published", video)
    release_of(device.releases, versions[0], content)
    device.repository.grant(device.vault)
    heap.settle()  # as a gateway does at its start
    device.start()
    try:
        wait_for(lambda: len(device.seen.answers) >= QUIET_FRAMES, seconds=120, what="frames were looked at")
        yield device
    finally:
        device.stop()
        gc.unfreeze()


def test_swaps_of_a_camera_at_30_frames_a_second_lose_no_frame(experiment: Experiment) -> None:
    updates = experiment.scaled(4, 60)
    with camera(experiment, updates) as device:
        for number in range(1, updates + 1):
            device.desire(f"1.{number}.0", token=number, number=number)
            wait_for(lambda version=f"1.{number}.0": device.runs(version), seconds=180, what=f"release {number}")  # type: ignore[misc]
        figures = figures_of(device, updates, QUIET_FRAMES)
        assert len(device.repository.fetched) >= updates
    experiment.log("updated", **figures)
    print(f"{NAME}, {figures}")  # pytest shows it with -rP
    assert figures["lost_at_swaps"] == 0 or figures["lost_before"] > 0, figures
    check(figures, GAP_MAX_MS if experiment.long else SHARED_MACHINE_MAX_MS)


def test_swaps_control_a_camera_whose_pipeline_is_held_up_loses_frames(experiment: Experiment) -> None:
    """As long as loading and warming up take at least, on the thread that answers."""
    with camera(experiment, 1) as device:
        noted = device.record.answered

        def held_up(sample: Sample, inference: Inference, seconds: float, busy_seconds: float) -> None:
            device.record.answered = noted  # type: ignore[method-assign]
            time.sleep(HELD_SECONDS)
            noted(sample, inference, seconds, busy_seconds)

        device.record.answered = held_up  # type: ignore[method-assign]
        device.desire("1.1.0", token=1)
        wait_for(lambda: device.runs("1.1.0"), seconds=60, what="the release")
        figures = figures_of(device, 1, QUIET_FRAMES)
    experiment.log("updated", **figures)
    with pytest.raises(AssertionError, match=r"lost|too long"):
        check(figures, SHARED_MACHINE_MAX_MS)
