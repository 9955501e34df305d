"""Reading V4L2 and RTSP cameras with OpenCV."""

import os
from pathlib import Path
from urllib.parse import quote, urlsplit, urlunsplit

import cv2
import numpy as np
from numpy.typing import NDArray

from gateway.config import CameraSource
from gateway.errors import SourceLostError
from gateway.shown import shown
from gateway.sources.camera import checked_picture


def silence_opencv() -> None:
    """Keep OpenCV from writing to stderr, where it would show addresses with passwords; errors are ours to tell."""
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")  # AV_LOG_QUIET


class _OpenCvGrabber:
    """What reading a V4L2 device and a stream have in common."""

    device: str

    def __init__(self) -> None:
        self._capture: cv2.VideoCapture | None = None

    def read(self) -> NDArray[np.uint8]:
        """Return the next picture."""
        assert self._capture is not None
        try:
            good, picture = self._capture.read()
        except cv2.error as error:
            raise SourceLostError(f"camera {self.device}: OpenCV cannot read it: {error}") from error
        if not good:
            raise SourceLostError(f"camera {self.device} stopped sending; check its power, its cable and the network")
        return checked_picture(picture)

    def release(self) -> None:
        """Close the device."""
        if self._capture is not None:
            self._capture.release()
            self._capture = None

    def interrupt(self) -> None:
        """Do nothing: OpenCV must not be called on a second thread, and its reads end by their own time-outs."""


class RtspGrabber(_OpenCvGrabber):
    """An RTSP camera, over TCP."""

    def __init__(self, url: str, username: str | None, password: str, timeout_seconds: float) -> None:
        super().__init__()
        self.device = shown(url)
        self._url = with_credentials(url, username, password)
        self._timeout_ms = round(timeout_seconds * 1000)

    def open(self) -> None:
        """Connect, and wait for the description of the stream."""
        silence_opencv()
        # FFmpeg takes this from the environment alone. UDP loses packets, which shows as torn pictures.
        os.environ.setdefault("OPENCV_FFMPEG_CAPTURE_OPTIONS", "rtsp_transport;tcp")
        options = [
            *(cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, self._timeout_ms),
            *(cv2.CAP_PROP_READ_TIMEOUT_MSEC, self._timeout_ms),
            # More decoder threads would hold back as many pictures, and one keeps up with 1080p at 90 a second.
            *(cv2.CAP_PROP_N_THREADS, 1),
        ]
        self._capture = cv2.VideoCapture(self._url, cv2.CAP_FFMPEG, options)
        if not self._capture.isOpened():
            raise SourceLostError(
                f"camera {self.device} does not answer, refuses the user name or password, or has no such stream; "
                "check the address with `ffplay`, and `username` and `password_file` in the configuration"
            )


class V4l2Grabber(_OpenCvGrabber):
    """A camera of the kernel's: USB, CSI, HDMI grabber."""

    def __init__(self, settings: CameraSource) -> None:
        super().__init__()
        self.device = settings.device
        self._settings = settings

    def open(self) -> None:
        """Open the device, and ask for a size and a rate; it gives the nearest that it has."""
        silence_opencv()
        path = Path(self.device)
        if not path.exists():
            raise SourceLostError(
                f"camera {self.device} is not there; `ls /dev/video*` shows those that are; check the cable"
            )
        if not os.access(path, os.R_OK | os.W_OK):
            raise SourceLostError(
                f"camera {self.device} may not be opened by this user; add it to the group video: "
                "`usermod -aG video USER`"
            )
        if not path.is_char_device():
            raise SourceLostError(f"camera {self.device} is no device; `ls /dev/video*` shows the cameras")
        settings = self._settings
        wishes = [
            (cv2.CAP_PROP_FRAME_WIDTH, settings.width),
            (cv2.CAP_PROP_FRAME_HEIGHT, settings.height),
            (cv2.CAP_PROP_FPS, settings.fps),
        ]
        self._capture = cv2.VideoCapture(self.device, cv2.CAP_V4L2)
        if not self._capture.isOpened():
            raise SourceLostError(
                f"camera {self.device} cannot be opened; another program may use it (`fuser -v {self.device}`), "
                "or it is the metadata device of a camera (`v4l2-ctl --list-devices`)"
            )
        for wish, value in wishes:
            if value is not None:
                self._capture.set(wish, value)
        # The driver's queue is the only place where pictures could grow old before the reader sees them.
        self._capture.set(cv2.CAP_PROP_BUFFERSIZE, 2)


def with_credentials(url: str, username: str | None, password: str) -> str:
    """Return a URL with the credentials in it, in place of any it had; to be used, never to be shown."""
    if username is None:
        return url
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    return urlunsplit(parts._replace(netloc=f"{quote(username, safe='')}:{quote(password, safe='')}@{host}"))
