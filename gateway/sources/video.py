"""Recorded video, at its own rate, faster, or as fast as it can be decoded."""

import time
from collections.abc import Iterator
from pathlib import Path

import cv2

from gateway.config import ReplaySource
from gateway.errors import ConfigError, SourceLostError
from gateway.sources.base import ClosableSource, WallClock
from gateway.sources.camera import GarbageFrameError, checked_picture
from gateway.sources.pacing import SECOND_NS, wait_until
from gateway.sources.videocapture import silence_opencv
from gateway.values import Frame

DEFAULT_FPS = 25.0


class VideoFile(ClosableSource):
    """A video file. A frame is stamped when it is handed over, as if it had been taken then."""

    def __init__(self, name: str, settings: ReplaySource, *, wall_clock: WallClock = time.time_ns) -> None:
        super().__init__(name)
        self._settings = settings
        self._wall_clock = wall_clock

    def captures(self) -> Iterator[Frame]:
        """Yield the frames in turn; for ever if it is to loop."""
        silence_opencv()
        path = self._settings.file
        start_ns = time.monotonic_ns()
        frames = 0
        while not self._closing.is_set():
            if not path.is_file():
                raise SourceLostError(f"source {self.name}: video file {path} is not there; check the path, the mount")
            video = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG)
            try:
                if not video.isOpened():
                    raise ConfigError(f"source {self.name}: {path} is no video that can be decoded; convert it to MP4")
                interval_ns = self._interval_ns(video)
                before = frames
                for frame in self._frames(video, frames):
                    if not wait_until(start_ns + frames * interval_ns, self._closing):
                        return
                    frames += 1
                    yield self._stamped(frame)
            finally:
                video.release()
            if frames == before:
                raise ConfigError(f"source {self.name}: {path} holds no frame that can be decoded; convert it to MP4")
            if not self._settings.loop:
                return

    def _frames(self, video: cv2.VideoCapture, sequence: int) -> Iterator[Frame]:
        """Decode to the end of the file, one frame ahead of its time."""
        while True:
            try:
                good, picture = video.read()
            except cv2.error as error:
                raise ConfigError(f"source {self.name}: OpenCV cannot decode {self._settings.file}: {error}") from error
            if not good:
                return
            try:
                image = checked_picture(picture)
            except GarbageFrameError as error:
                self._drops.count(str(error))
                continue
            sequence += 1
            yield Frame(self.name, sequence, 0, 0, image)

    def _stamped(self, frame: Frame) -> Frame:
        return Frame(frame.source, frame.sequence, self._wall_clock(), time.monotonic_ns(), frame.image)

    def _interval_ns(self, video: cv2.VideoCapture) -> int:
        """Return the time between two frames; 0 for as fast as possible."""
        if self._settings.speed == "max":
            return 0
        fps = self._settings.rate_hz or _told_fps(video)
        return round(SECOND_NS / (fps * self._settings.speed))


def fps_of(path: Path) -> float:
    """Return how many pictures a second a video says it has; 25 where it does not say."""
    silence_opencv()
    video = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG)
    try:
        return _told_fps(video)
    finally:
        video.release()


def _told_fps(video: cv2.VideoCapture) -> float:
    told = video.get(cv2.CAP_PROP_FPS)
    return told if 0 < told <= 1000 else DEFAULT_FPS
