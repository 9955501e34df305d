"""Moving pictures: a noisy scene with something moving through it, as frames and as a video file."""

from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray


def picture(number: int, *, width: int = 320, height: int = 240) -> NDArray[np.uint8]:
    """Draw frame `number`: each differs from every other, as those of a real sensor do."""
    noise = np.random.default_rng(number)
    image = noise.integers(90, 110, (height, width, 3), dtype=np.uint8)
    at = (7 * number) % max(1, width - 40)
    image[height // 3 : height // 3 + 60, at : at + 30] = (40, 60, 200)
    return image


def write_video(path: Path, *, frames: int = 30, fps: float = 25.0, width: int = 320, height: int = 240) -> Path:
    """Write a video of `frames` pictures."""
    codec = "MJPG" if path.suffix == ".avi" else "mp4v"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*codec), fps, (width, height))
    assert writer.isOpened()
    for number in range(frames):
        writer.write(picture(number, width=width, height=height))
    writer.release()
    return path


def jpeg(image: NDArray[np.uint8], *, quality: int = 80) -> bytes:
    """Encode a picture."""
    good, data = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])
    assert good
    return data.tobytes()
