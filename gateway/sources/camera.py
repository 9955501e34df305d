"""Cameras: a reader thread that keeps up with the device, and checks on what it gives.

`videocapture` (V4L2, RTSP) and `mjpeg` (HTTP) know how to read; here is what they have in common.
"""

import time
from collections.abc import Iterator
from pathlib import Path
from threading import Thread
from typing import Protocol
from urllib.parse import urlsplit

import numpy as np
from numpy.typing import NDArray

from gateway.config import CameraSource, ReplaySource
from gateway.errors import ConfigError, GatewayError, SourceLostError
from gateway.sources.base import ClosableSource, Source, WallClock
from gateway.sources.slot import LatestSlot
from gateway.values import Frame

MAX_SIDE_PIXELS = 16_384
MAX_PIXELS = 64_000_000
"""More than any camera has; a header that says more is broken or hostile."""


class GarbageFrameError(GatewayError):
    """One picture cannot be used; the next may be good. The message is the reason it is counted under."""


class Grabber(Protocol):
    """Reads pictures from one device. All methods but `interrupt` are called on one thread."""

    device: str  # for people: without credentials

    def open(self) -> None:
        """Open the device; SourceLostError names it and the remedy."""

    def read(self) -> NDArray[np.uint8]:
        """Return the next picture. GarbageFrameError: this one is broken. SourceLostError: there are no more."""

    def release(self) -> None:
        """Close the device. Must not raise."""

    def interrupt(self) -> None:
        """Make a read that waits return soon, if it would not by its own time-out; called on another thread."""


def checked_size(height: int, width: int) -> None:
    """Refuse a picture of absurd size, before memory is spent on it where that is possible."""
    if height < 1 or width < 1:
        raise GarbageFrameError("zero_size")
    if height > MAX_SIDE_PIXELS or width > MAX_SIDE_PIXELS or height * width > MAX_PIXELS:
        raise GarbageFrameError("absurd_size")


def checked_picture(picture: object) -> NDArray[np.uint8]:
    """Return a picture as (height, width, 3) uint8; GarbageFrameError if it is none."""
    if not isinstance(picture, np.ndarray):
        raise GarbageFrameError("no_picture")
    if picture.ndim == 2:
        picture = picture[:, :, None]
    if picture.ndim != 3 or picture.dtype != np.uint8 or picture.shape[2] not in (1, 3):
        raise GarbageFrameError("wrong_shape")
    checked_size(picture.shape[0], picture.shape[1])
    if picture.shape[2] == 1:  # grey, as thermal and infrared cameras give it
        picture = np.repeat(picture, 3, axis=2)
    return picture


class Camera(ClosableSource):
    """A live camera.

    The reader thread takes pictures as fast as the device gives them and keeps the newest, so that a stream never
    queues up behind a slow consumer, and a read that hangs inside a driver holds up nobody: `captures` gives up on it
    in time, and the reader ends by the time-out of its own.
    """

    def __init__(
        self, name: str, grabber: Grabber, *, timeout_seconds: float, wall_clock: WallClock = time.time_ns
    ) -> None:
        """`timeout_seconds`: without a usable picture for so long the camera is lost."""
        super().__init__(name)
        self._grabber = grabber
        self._timeout_seconds = timeout_seconds
        self._wall_clock = wall_clock
        self._slot: LatestSlot[tuple[NDArray[np.uint8], int, int]] = LatestSlot()
        self._failure: SourceLostError | None = None
        self._reader = Thread(target=self._read, name=f"read-{name}", daemon=True)

    @property
    def lingers(self) -> bool:
        """Whether the reader is still in the device."""
        return self._reader.is_alive()

    @property
    def drops(self) -> dict[str, int]:
        """What was thrown away so far, by reason; `superseded`: a newer picture came before anybody took it."""
        counts = super().drops
        if self._slot.dropped:
            counts["superseded"] = self._slot.dropped
        return counts

    def close(self) -> None:
        """Make `captures` return at once."""
        super().close()
        self._slot.close()
        self._grabber.interrupt()

    def captures(self) -> Iterator[Frame]:
        """Yield the newest picture, again and again."""
        self._reader.start()
        sequence = 0
        # The time-out holds for opening, too, and a USB camera needs a moment after that.
        patience_seconds = 2 * self._timeout_seconds
        while True:
            newest = self._slot.take(patience_seconds)
            if self._closing.is_set():
                return
            if newest is None:
                raise self._failure or SourceLostError(
                    f"camera {self._grabber.device}: no usable picture for {patience_seconds:g} s "
                    f"(dropped: {self.drops}); check its power, its cable and the network"
                )
            sequence += 1
            picture, captured_at_ns, received_ns = newest
            patience_seconds = self._timeout_seconds
            yield Frame(self.name, sequence, captured_at_ns, received_ns, picture)

    def _read(self) -> None:
        try:
            self._grabber.open()
            while not self._closing.is_set():
                try:
                    picture = checked_picture(self._grabber.read())
                except GarbageFrameError as error:
                    self._drops.count(str(error))
                    continue
                self._slot.put((picture, self._wall_clock(), time.monotonic_ns()))
        except SourceLostError as error:
            self._failure = error
        finally:
            self._grabber.release()
            self._slot.close()


def password_of(name: str, settings: CameraSource) -> str:
    """Read the password file of a camera, at each opening, so that a changed password needs no restart."""
    return _secret(name, "password_file", settings.password_file)


def address_of(name: str, settings: CameraSource) -> str:
    """Return the address of a camera with the query out of its file; to be used, never to be shown."""
    query = _secret(name, "query_file", settings.query_file).removeprefix("?")
    if not query:
        return settings.device
    if not query.isascii() or not query.isprintable() or " " in query:
        raise ConfigError(
            f"source {name}: query_file {settings.query_file} holds no query; write one line as it stands in an "
            "address, e.g. token=…, with anything else than letters and digits as %XX"
        )
    address = settings.device.partition("#")[0]
    return f"{address}{'&' if '?' in address else '?'}{query}"


def _secret(name: str, key: str, file: Path | None) -> str:
    if file is None:
        return ""
    try:
        return file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"source {name}: cannot read {key} {file}: {error}; create it, readable for the user the gateway runs as"
        ) from error


def open_camera(name: str, settings: CameraSource) -> Source:
    """Make the source for a camera's address: `/dev/…`, `rtsp://…`, `http://…`, or a video file."""
    scheme = urlsplit(settings.device).scheme.lower()
    # OpenCV is imported by those who read with it, and only then.
    if scheme in ("http", "https"):
        from gateway.sources.mjpeg import MjpegGrabber  # noqa: PLC0415

        grabber: Grabber = MjpegGrabber(
            address_of(name, settings), settings.username, password_of(name, settings), settings.timeout_seconds
        )
    elif scheme in ("rtsp", "rtsps"):
        from gateway.sources.videocapture import RtspGrabber  # noqa: PLC0415

        grabber = RtspGrabber(
            address_of(name, settings), settings.username, password_of(name, settings), settings.timeout_seconds
        )
    elif settings.device.startswith("/dev/"):
        from gateway.sources.videocapture import V4l2Grabber  # noqa: PLC0415

        grabber = V4l2Grabber(settings)
    elif "://" in settings.device:
        raise ConfigError(
            f"source {name}: cannot read cameras by {scheme}://; give /dev/videoN, rtsp://…, http://… or a video file"
        )
    else:
        from gateway.sources.video import VideoFile  # noqa: PLC0415

        return VideoFile(name, ReplaySource(file=Path(settings.device)))
    return Camera(name, grabber, timeout_seconds=settings.timeout_seconds)
