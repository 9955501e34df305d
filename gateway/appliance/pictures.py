"""Reads QR codes from what cameras see."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import cv2
import numpy as np
from numpy.typing import NDArray

_FRAMES: Final = 4
"""Of each look: the first ones of most cameras are dark until the exposure has settled."""
_MAX_SIDE: Final = 1600
LOOK_SECONDS: Final = 10.0
"""Of each camera. Who plugs in a stick waits meanwhile, and a slow processor takes minutes over a busy picture."""

Picture = NDArray[np.uint8]


def codes_in(picture: Picture, enough: Callable[[], bool] = lambda: False) -> list[str]:
    """Return the texts of the QR codes in a picture, grey or BGR; a camera's is tried in several ways.

    Blur, uneven light and small codes defeat the detector on the picture as it is; a sharper, an evenly lit or an
    enlarged one is often read. Once `enough` says so no further way is tried.
    """
    grey = picture if picture.ndim == 2 else cv2.cvtColor(picture, cv2.COLOR_BGR2GRAY)
    detector = cv2.QRCodeDetector()
    for each in _ways(np.asarray(grey, np.uint8)):
        try:
            found, texts, _, _ = detector.detectAndDecodeMulti(each)
        except cv2.error:  # on some pictures of noise it computes a homography of nothing
            continue
        texts = [text for text in texts if text] if found else []
        if texts:
            return texts
        if enough():
            break
    return []


def _ways(grey: Picture) -> Iterator[Picture]:
    yield grey
    enlarged: Any = grey
    if max(grey.shape) * 2 <= _MAX_SIDE:
        enlarged = cv2.resize(grey, None, fx=2, fy=2, interpolation=cv2.INTER_CUBIC)
        yield enlarged
    yield np.asarray(cv2.createCLAHE(3.0, (8, 8)).apply(enlarged), np.uint8)
    soft = cv2.GaussianBlur(enlarged, (0, 0), 3)
    yield np.asarray(cv2.addWeighted(enlarged, 2.5, soft, -1.5, 0), np.uint8)
    yield np.asarray(
        cv2.adaptiveThreshold(enlarged, 255, cv2.ADAPTIVE_THRESH_GAUSSIAN_C, cv2.THRESH_BINARY, 51, 5), np.uint8
    )


def seen_codes(
    devices: Path, *, clock: Callable[[], float] = time.monotonic, seconds: float = LOOK_SECONDS
) -> Iterator[tuple[str, str]]:
    """Look through every V4L2 camera once; gives the device and the text of each code that it sees.

    Args:
        devices: the folder of their nodes.
        clock: monotonic seconds.
        seconds: after which no further picture of a camera is looked at.
    """
    for device in sorted(devices.glob("video*")):
        camera = cv2.VideoCapture(str(device), cv2.CAP_V4L2)
        try:
            for text in _texts(camera, _passed(clock, clock() + seconds)):
                yield str(device), text
        finally:
            camera.release()


def _passed(clock: Callable[[], float], deadline: float) -> Callable[[], bool]:
    return lambda: clock() >= deadline


def _texts(camera: cv2.VideoCapture, enough: Callable[[], bool]) -> list[str]:
    if not camera.isOpened():
        return []
    for _ in range(_FRAMES):
        ok, picture = camera.read()
        if ok and (texts := codes_in(np.asarray(picture, np.uint8), enough)):
            return texts
        if enough():
            break
    return []
