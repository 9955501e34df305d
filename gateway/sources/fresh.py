"""Is this picture news? Pure: the time is that of the frames."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from gateway.config import CameraSource
from gateway.values import Frame

Verdict = Literal["fresh", "repeated", "frozen", "rate_limited"]

_SAMPLED_ROWS = 48
_SAMPLED_COLUMNS = 64


@dataclass(frozen=True, slots=True)
class _Picture:
    """The last picture that was handed on."""

    image: NDArray[np.uint8]
    sample: bytes
    received_ns: int


def sample_of(image: NDArray[np.uint8]) -> bytes:
    """Return the bytes of some three thousand pixels on a grid; cheap at any resolution."""
    height, width = image.shape[:2]
    return image[:: max(1, height // _SAMPLED_ROWS), :: max(1, width // _SAMPLED_COLUMNS)].tobytes()


class FreshnessGuard:
    """Lets a picture through once, and no more often than wished.

    The noise of a sensor changes some pixel of every picture, even of a wall in the dark, so a picture that equals the
    one before it bit for bit is that one again: a camera that hangs, a stream that fills its gaps, a buffer read twice.
    Nothing is lost by not looking at it again. The grid sample decides nearly always; only if it is equal is the
    whole picture compared, so no small change is overlooked.

    Video without noise (drawn, or so strongly compressed that nothing is sent for a still scene) repeats honestly and
    is treated alike: its still stretches are `repeated`, then `frozen`, until something moves.
    """

    def __init__(self, *, frozen_after_seconds: float | None, fps: float | None = None) -> None:
        """`frozen_after_seconds`: None lets equal pictures through. `fps`: at most so many fresh pictures a second."""
        self._frozen_after_ns = None if frozen_after_seconds is None else round(frozen_after_seconds * 1e9)
        self._interval_ns = round(1e9 / fps) if fps else 0
        self._due_ns: int | None = None
        self._last: _Picture | None = None
        self.uniform = 0  # pictures of a single colour that were let through: a covered lens, a decoder's green

    def judge(self, frame: Frame) -> Verdict:
        """Decide about one frame; only a `fresh` one may be handed on."""
        now_ns = frame.received_ns
        # Half an interval of slack: cameras jitter, and the due times advance by whole intervals anyway.
        if self._due_ns is not None and now_ns < self._due_ns - self._interval_ns // 2:
            return "rate_limited"
        sample = sample_of(frame.image)
        if self._frozen_after_ns is not None and self._last is not None and _equal(frame.image, sample, self._last):
            return "frozen" if now_ns - self._last.received_ns >= self._frozen_after_ns else "repeated"
        self._last = _Picture(frame.image, sample, now_ns)
        if self._interval_ns:
            # After a pause the schedule starts anew: what was not taken is not made up for.
            on_time = self._due_ns is not None and now_ns < self._due_ns + self._interval_ns
            self._due_ns = (self._due_ns if on_time and self._due_ns else now_ns) + self._interval_ns
        if sample == sample[:3] * (len(sample) // 3):
            self.uniform += 1
        return "fresh"


def _equal(image: NDArray[np.uint8], sample: bytes, last: _Picture) -> bool:
    if image is last.image:
        return True
    return image.shape == last.image.shape and sample == last.sample and bool(np.array_equal(image, last.image))


def guard_for(settings: object) -> FreshnessGuard | None:
    """Return the guard a source needs: one for cameras; recordings and sensors repeat themselves legitimately."""
    if not isinstance(settings, CameraSource):
        return None
    live = settings.device.startswith("/dev/") or "://" in settings.device
    return FreshnessGuard(frozen_after_seconds=settings.frozen_after_seconds if live else None, fps=settings.fps)
