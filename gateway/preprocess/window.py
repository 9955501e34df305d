"""Sliding windows over a stream of sample blocks."""

from collections import Counter

import numpy as np
from numpy.typing import NDArray

from gateway.errors import ConfigError
from gateway.values import SampleBlock, Window

_SECOND_NS = 1_000_000_000
_MISSING_SAMPLES = 2.5
_RATE_TOLERANCE = 0.001


class Windower:
    """Cuts blocks into windows of `samples` samples, one every `hop` samples. One thread owns it.

    A window never spans a gap or a change of rate: what was gathered is thrown away then and counted. A block is late
    only if both its UTC time and its monotonic time say so, so a step of the clock is no gap.
    """

    def __init__(self, samples: int, hop: int, channels: int, *, gap_seconds: float = 0.5) -> None:
        """Take the geometry.

        Args:
            samples: length of a window.
            hop: samples between the starts of two windows; more than `samples` skips some.
            channels: columns of every block.
            gap_seconds: a block that comes later than this (or 2.5 samples, if that is more) follows a gap.
        """
        self._samples = samples
        self._hop = hop
        self._channels = channels
        self._gap_seconds = gap_seconds
        self._ring: NDArray[np.float32] = np.empty((samples, channels), dtype=np.float32)
        self._write = 0  # where the next sample goes
        self._since_reset = 0  # samples since the last reset
        self._due = samples  # `_since_reset` at which the next window is complete
        self._previous: SampleBlock | None = None
        self._sequence = 0
        self._counts: Counter[str] = Counter()

    @property
    def counts(self) -> dict[str, int]:
        """What happened so far: `windows`, `gaps`, `rate_changes`, and `samples_discarded` by them."""
        return dict(self._counts)

    @property
    def needed(self) -> int:
        """How many of the newest samples will be part of windows to come."""
        return max(0, self._since_reset - max(0, self._due - self._samples))

    def push(self, block: SampleBlock) -> list[Window]:
        """Take a block, samples (n, channels); return the windows it completes, oldest first, each with its own memory.

        Raises:
            ConfigError: the block has another number of channels than the model wants.
        """
        if block.samples.ndim != 2 or block.samples.shape[1] != self._channels:
            raise ConfigError(
                f"source {block.source}: gives samples of shape {block.samples.shape}, but the model of its pipeline "
                f"wants {self._channels} channels; change the channels of the source or choose another model"
            )
        self._watch(block)
        windows: list[Window] = []
        done = 0
        while done < len(block.samples):
            take = min(len(block.samples) - done, self._due - self._since_reset)
            self._store(block.samples[done : done + take])
            done += take
            self._since_reset += take
            if self._since_reset == self._due:
                self._due += self._hop
                windows.append(self._window(block, done))
        self._counts["windows"] += len(windows)
        return windows

    def reset(self) -> None:
        """Forget what was gathered; the next window starts with the next sample."""
        self._counts["samples_discarded"] += self.needed
        self._write = self._since_reset = 0
        self._due = self._samples
        self._previous = None

    def _watch(self, block: SampleBlock) -> None:
        previous, self._previous = self._previous, block
        if previous is None:
            return
        if abs(block.rate_hz - previous.rate_hz) > _RATE_TOLERANCE * previous.rate_hz:
            self._counts["rate_changes"] += 1
        elif self._late_seconds(previous, block) > max(self._gap_seconds, _MISSING_SAMPLES / block.rate_hz):
            self._counts["gaps"] += 1
        else:
            return
        self.reset()
        self._previous = block

    @staticmethod
    def _late_seconds(previous: SampleBlock, block: SampleBlock) -> float:
        by_clock = (block.captured_at_ns - previous.captured_at_ns) / _SECOND_NS - len(previous.samples) / block.rate_hz
        by_monotonic = (block.received_ns - previous.received_ns) / _SECOND_NS - len(block.samples) / block.rate_hz
        return min(by_clock, by_monotonic)

    def _store(self, samples: NDArray[np.float32]) -> None:
        """Write into the ring; of more than fits, only the newest matter."""
        skipped = max(0, len(samples) - self._samples)
        samples = samples[skipped:]
        at = (self._write + skipped) % self._samples
        first = min(len(samples), self._samples - at)
        self._ring[at : at + first] = samples[:first]
        self._ring[: len(samples) - first] = samples[first:]
        self._write = (at + len(samples)) % self._samples

    def _window(self, block: SampleBlock, done: int) -> Window:
        self._sequence += 1
        last_ns = block.captured_at_ns + round((done - 1) * _SECOND_NS / block.rate_hz)
        samples = np.concatenate((self._ring[self._write :], self._ring[: self._write]))
        return Window(block.source, self._sequence, last_ns, block.received_ns, block.rate_hz, samples)
