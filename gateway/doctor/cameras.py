"""Tries cameras on the network and video files: opens each as the gateway would, and waits for a picture."""

import time
from collections.abc import Iterator

from gateway.config import CameraSource, Config
from gateway.doctor.diagnosis import Diagnosis
from gateway.errors import GatewayError
from gateway.shown import shown
from gateway.sources.base import open_source
from gateway.values import Frame


def try_cameras(config: Config) -> Iterator[Diagnosis]:
    """Look through every camera that is no device of this machine: those belong to the gateway that may be running."""
    for name, source in config.sources.items():
        if isinstance(source, CameraSource) and not source.device.startswith("/dev/"):
            yield _tried(name, source)


def _tried(name: str, settings: CameraSource) -> Diagnosis:
    check = f"camera {name}"
    began = time.monotonic()
    try:
        source = open_source(name, settings)
        try:
            # Ends by itself: a camera gives up after twice its time-out.
            frame = next(iter(source.captures()), None)
        finally:
            source.close()
    except GatewayError as error:
        remedy = "see what `ffplay` or a browser shows at that address, from this machine"
        return Diagnosis(check, "failed", str(error), remedy)
    if not isinstance(frame, Frame):
        return Diagnosis(check, "failed", f"{shown(settings.device)} holds no picture", "choose another file")
    height, width = frame.image.shape[:2]
    took = time.monotonic() - began
    return Diagnosis(check, "ok", f"a picture of {width} x {height} after {took:.1f} s")
