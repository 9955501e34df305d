"""Recorded samples, played as if they were measured now."""

import time
from collections.abc import Iterator

import numpy as np

from gateway.config import ReplaySource
from gateway.errors import ConfigError
from gateway.sources.base import ClosableSource, Source, WallClock, block_size
from gateway.sources.pacing import SECOND_NS, wait_until
from gateway.sources.recordings import Recording, read_recording
from gateway.values import SampleBlock

SAMPLE_FILES = frozenset({".csv", ".tsv", ".txt", ".npz", ".npy"})
"""Endings of recorded samples; everything else is tried as video."""

_CLOCK_STEP_NS = SECOND_NS
"""The times of blocks follow a ruler laid down at the start; if the clock is off by so much, it is laid down anew."""


class SampleReplay(ClosableSource):
    """A CSV or npz file as a sensor.

    A block is handed over when its last sample is due. The schedule is counted from the start, over all repetitions,
    so it does not drift; the UTC time of a block is that of its first sample on the same ruler.
    """

    def __init__(self, name: str, settings: ReplaySource, *, wall_clock: WallClock = time.time_ns) -> None:
        super().__init__(name)
        self._settings = settings
        self._wall_clock = wall_clock

    def captures(self) -> Iterator[SampleBlock]:
        """Yield the recording in blocks; for ever if it is to loop."""
        recording = read_recording(self.name, self._settings)
        if self._settings.speed == "max":
            yield from self._at_once(recording)
            return
        sample_ns = SECOND_NS / (recording.rate_hz * self._settings.speed)
        start_ns, start_utc_ns = time.monotonic_ns(), self._wall_clock()
        done = 0  # samples whose time is over, those that were dropped included
        for block, length in self._blocks(recording):
            due_ns = start_ns + round((done + length) * sample_ns)
            if not wait_until(due_ns, self._closing):
                return
            first_utc_ns = start_utc_ns + round(done * sample_ns)
            off_ns = self._wall_clock() - first_utc_ns - round(length * sample_ns)
            if abs(off_ns) > _CLOCK_STEP_NS:
                start_utc_ns += off_ns
                first_utc_ns += off_ns
            done += length
            if len(block.samples):
                yield SampleBlock(self.name, first_utc_ns, time.monotonic_ns(), block.rate_hz, block.samples)

    def _at_once(self, recording: Recording) -> Iterator[SampleBlock]:
        # On the recording's own ruler from now on: a pipeline that takes its time must not look like a gap in the data.
        start_utc_ns, sample_ns, done = self._wall_clock(), SECOND_NS / recording.rate_hz, 0
        for block, length in self._blocks(recording):
            if self._closing.is_set():
                return
            first_utc_ns = start_utc_ns + round(done * sample_ns)
            done += length
            if len(block.samples):
                yield SampleBlock(self.name, first_utc_ns, time.monotonic_ns(), block.rate_hz, block.samples)

    def _blocks(self, recording: Recording) -> Iterator[tuple[Recording, int]]:
        """Yield pieces of the recording without gaps in the data, and how many samples each stands for."""
        size = self._settings.block_samples or recording.window_samples or block_size(recording.rate_hz, None)
        while True:
            usable = False
            for at in range(0, len(recording.samples), size):
                samples = recording.samples[at : at + size].astype(np.float32)
                length = len(samples)
                finite = np.isfinite(samples).all(axis=1)
                if not finite.all():
                    self._drops.count("not_finite", length - int(finite.sum()), detail=str(self._settings.file))
                    samples = samples[finite]
                usable = usable or len(samples) > 0
                yield Recording(samples, recording.rate_hz), length
            if not usable:
                raise ConfigError(f"source {self.name}: {self._settings.file} holds no finite sample")
            if not self._settings.loop:
                return


def open_replay(name: str, settings: ReplaySource) -> Source:
    """Make the source for a recording, by the ending of its name; what is not known as samples is tried as video."""
    if settings.file.suffix.lower() in SAMPLE_FILES:
        return SampleReplay(name, settings)
    from gateway.sources.video import VideoFile  # noqa: PLC0415 - sensors alone need no OpenCV

    return VideoFile(name, settings)
