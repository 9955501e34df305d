"""Evidence: the part of a picture, or the window, that made an event, small enough to travel."""

import io
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from gateway.config import Privacy
from gateway.preprocess.privacy import hidden, may_show
from gateway.values import Box, Frame, Sample

JPEG = "image/jpeg"
NPY = "application/x-npy"
_MARGIN = 0.15
_STEPS_OF_SPAN = 256
"""Of what a channel goes through in a window, float16 must keep at least so many steps."""
_NOTHING_HIDDEN = Privacy()


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Encoded evidence."""

    data: bytes
    content_type: str
    width: int | None = None
    height: int | None = None


def may_snapshot(sample: Sample, box: Box | None, privacy: Privacy) -> bool:
    """Tell whether the privacy filter lets evidence of a sample leave the device."""
    return may_show(box, privacy) if isinstance(sample, Frame) else privacy.send != "never"


def snapshot_of(
    sample: Sample, box: Box | None, *, max_side: int, quality: int, privacy: Privacy = _NOTHING_HIDDEN
) -> Snapshot | None:
    """Encode the evidence for one sample; None if it cannot be encoded, or may not leave the device.

    A frame becomes a JPEG of the box with a margin (or of the whole picture), its longer side at most
    `max_side` pixels. A window becomes a NumPy file, shape (samples, channels): float16 where that shows what happened
    in it, else float32.
    """
    if not may_snapshot(sample, box, privacy):
        return None
    if isinstance(sample, Frame):
        margin = 0.0 if privacy.send == "box" else _MARGIN
        return _jpeg(_cut(hidden(sample.image, privacy), box, margin), max_side, quality)
    buffer = io.BytesIO()
    np.save(buffer, _packed(sample.samples), allow_pickle=False)
    return Snapshot(buffer.getvalue(), NPY)


def _packed(samples: NDArray[np.float32]) -> NDArray[np.float16] | NDArray[np.float32]:
    """Halve a window where nothing of it is lost by that.

    float16 ends at 65504 and has steps of 2 from 2048 on: of an air pressure in Pa nothing would be left, and of one in
    hPa only a flat line.
    """
    with np.errstate(over="ignore"):
        half = samples.astype(np.float16)
    if not np.isfinite(half).all():
        return samples.astype(np.float32)
    lost = np.abs(half.astype(np.float32) - samples).max(axis=0, initial=0.0)
    span = np.ptp(samples, axis=0) if len(samples) else lost
    return half if (lost * _STEPS_OF_SPAN <= span).all() else samples.astype(np.float32)


def _cut(image: NDArray[np.uint8], box: Box | None, margin: float) -> NDArray[np.uint8]:
    if box is None:
        return image
    height, width = image.shape[:2]
    across, down = (box.right - box.left) * margin, (box.bottom - box.top) * margin
    left, right = int(max(0.0, box.left - across) * width), int(np.ceil(min(1.0, box.right + across) * width))
    top, bottom = int(max(0.0, box.top - down) * height), int(np.ceil(min(1.0, box.bottom + down) * height))
    cut = image[top:bottom, left:right]
    return cut if cut.size else image


def _jpeg(image: NDArray[np.uint8], max_side: int, quality: int) -> Snapshot | None:
    height, width = image.shape[:2]
    shrink = max_side / max(height, width)
    if shrink < 1:
        size = (max(1, round(width * shrink)), max(1, round(height * shrink)))
        image = np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), dtype=np.uint8)
    done, data = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])
    return Snapshot(data.tobytes(), JPEG, image.shape[1], image.shape[0]) if done else None
