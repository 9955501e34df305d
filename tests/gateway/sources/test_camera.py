import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from gateway.config import CameraSource
from gateway.errors import ConfigError, SourceLostError
from gateway.shown import shown
from gateway.sources.base import open_source
from gateway.sources.camera import Camera, GarbageFrameError, address_of, checked_picture
from gateway.sources.videocapture import with_credentials
from gateway.values import Frame
from tests.simulators.camera_rtsp import RtspCamera
from tests.simulators.clips import picture
from tests.simulators.waiting import wait_for


class ScriptedGrabber:
    """A grabber that does what it is told."""

    device = "/dev/script"

    def __init__(self, read: Callable[[], NDArray[np.uint8]]) -> None:
        self._read = read
        self.released = 0

    def open(self) -> None:
        """Do nothing."""

    def read(self) -> NDArray[np.uint8]:
        return self._read()

    def release(self) -> None:
        self.released += 1

    def interrupt(self) -> None:
        """Do nothing: like OpenCV's."""


@pytest.mark.parametrize(
    ("garbage", "reason"),
    [
        (None, "no_picture"),
        (np.zeros((0, 10, 3), np.uint8), "zero_size"),
        (np.zeros((10, 10, 4), np.uint8), "wrong_shape"),
        (np.zeros((10, 10, 3), np.uint16), "wrong_shape"),
        (np.zeros(10, np.uint8), "wrong_shape"),
        (np.broadcast_to(np.uint8(0), (20_000, 10, 3)), "absurd_size"),
        (np.broadcast_to(np.uint8(0), (9_000, 9_000, 3)), "absurd_size"),
    ],
)
def test_what_is_no_picture_is_garbage_with_a_reason(garbage: object, reason: str) -> None:
    with pytest.raises(GarbageFrameError, match=reason):
        checked_picture(garbage)


def test_grey_pictures_become_three_channels() -> None:
    grey = np.arange(100, dtype=np.uint8).reshape(10, 10)
    assert np.array_equal(checked_picture(grey)[:, :, 2], grey)
    assert checked_picture(grey[:, :, None]).shape == (10, 10, 3)


def test_garbage_between_pictures_is_counted_and_skipped() -> None:
    script: list[NDArray[np.uint8]] = [picture(1), np.zeros((0, 0, 3), np.uint8), picture(2)]
    taken = threading.Semaphore(1)

    def read() -> NDArray[np.uint8]:
        taken.acquire()
        if not script:
            raise SourceLostError("camera /dev/script: check the end")
        if script[0].size == 0:
            taken.release()
        return script.pop(0)

    grabber = ScriptedGrabber(read)
    camera = Camera("dock", grabber, timeout_seconds=5)
    sequences = []

    def consume() -> None:
        for frame in camera.captures():
            sequences.append(frame.sequence)
            taken.release()

    with pytest.raises(SourceLostError, match="check the end"):
        consume()
    assert sequences == [1, 2]
    assert camera.drops == {"zero_size": 1}
    wait_for(lambda: grabber.released == 1)


def test_a_read_that_hangs_is_given_up_in_time_and_closing_does_not_wait_for_it() -> None:
    release = threading.Event()

    def hang() -> NDArray[np.uint8]:
        release.wait(20)
        return picture(1)

    camera = Camera("dock", ScriptedGrabber(hang), timeout_seconds=0.2)
    begin = time.monotonic()
    with pytest.raises(SourceLostError, match="no usable picture"):
        next(camera.captures())
    assert time.monotonic() - begin < 2

    camera = Camera("dock", ScriptedGrabber(hang), timeout_seconds=20)
    threading.Timer(0.1, camera.close).start()
    begin = time.monotonic()
    assert list(camera.captures()) == []
    assert time.monotonic() - begin < 1
    release.set()


def test_a_v4l2_camera_that_is_not_there_is_named_with_the_remedy() -> None:
    with pytest.raises(SourceLostError, match=r"/dev/video99 is not there; `ls /dev/video\*`.*cable"):
        next(open_source("dock", CameraSource(device="/dev/video99")).captures())


def test_a_device_that_is_no_camera_is_refused() -> None:
    with pytest.raises(SourceLostError, match=r"/dev/null cannot be opened; another program.*v4l2-ctl"):
        next(open_source("dock", CameraSource(device="/dev/null", width=640, height=480)).captures())


def test_an_unknown_kind_of_address_is_a_mistake_in_the_configuration() -> None:
    with pytest.raises(ConfigError, match="ftp://"):
        open_source("dock", CameraSource(device="ftp://camera/1"))


def test_a_missing_password_file_is_a_mistake_in_the_configuration(tmp_path: Path) -> None:
    settings = CameraSource(device="rtsp://camera/1", username="me", password_file=tmp_path / "none")
    with pytest.raises(ConfigError, match=r"cannot read password_file .*none"):
        open_source("dock", settings)


def test_an_rtsp_camera_is_read_with_its_password_and_refuses_a_wrong_one_in_silence(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    camera = RtspCamera(fps=25, credentials=("watch", "p@ss/w:rd"))
    secret = tmp_path / "password"
    secret.write_text("p@ss/w:rd\n")
    settings = CameraSource(device=camera.url, username="watch", password_file=secret, timeout_seconds=3)
    source = open_source("dock", settings)
    assert isinstance(next(source.captures()), Frame)
    source.close()
    secret.write_text("wr0ng-secret")
    with pytest.raises(SourceLostError, match=r"check the address.*password_file") as caught:
        next(open_source("dock", settings).captures())
    camera.unplug()
    shown = "".join(capfd.readouterr()) + str(caught.value)
    assert "wr0ng" not in shown
    assert "p@ss" not in shown


def test_an_rtsp_camera_that_falls_silent_is_lost_within_its_time_out() -> None:
    camera = RtspCamera(fps=25)
    source = open_source("dock", CameraSource(device=camera.url, timeout_seconds=2))
    captures = source.captures()
    next(captures)
    camera.silent = True
    begin = time.monotonic()
    with pytest.raises(SourceLostError, match=r"no usable picture for 2 s|stopped sending"):
        deque(captures, maxlen=0)
    assert time.monotonic() - begin < 4.5
    source.close()
    camera.unplug()


def test_credentials_are_taken_out_of_what_is_shown_and_put_into_what_is_used() -> None:
    assert shown("rtsp://me:secret@camera:554/1?x=2") == "rtsp://…@camera:554/1?x=…"
    used = with_credentials("rtsp://old:pw@camera:554/1", "me@site", "p@ss/w:rd #1")
    assert used == "rtsp://me%40site:p%40ss%2Fw%3Ard%20%231@camera:554/1"
    assert with_credentials("rtsp://camera/1", None, "") == "rtsp://camera/1"


@pytest.mark.parametrize("scheme", ["rtsp", "http"])
def test_a_token_in_the_query_of_an_address_is_in_no_error(scheme: str) -> None:
    settings = CameraSource(device=f"{scheme}://127.0.0.1:9/s?token=tok3nsecret&channel=1", timeout_seconds=1)
    source = open_source("dock", settings)
    with pytest.raises(SourceLostError) as caught:
        deque(source.captures(), maxlen=0)
    source.close()
    assert "tok3nsecret" in settings.device, "the control: it is what the camera is asked with"
    assert f"{scheme}://127.0.0.1:9/s?token=…&channel=…" in str(caught.value)
    assert "tok3nsecret" not in str(caught.value)


def test_the_query_comes_out_of_its_file_and_only_a_query_is_taken(tmp_path: Path) -> None:
    file = tmp_path / "query"
    file.write_text("?token=tok3n&x=1\n")
    assert address_of("dock", CameraSource(device="http://cam/s#f", query_file=file)) == "http://cam/s?token=tok3n&x=1"
    with_one = CameraSource(device="http://cam/s?channel=1", query_file=file)
    assert address_of("dock", with_one) == "http://cam/s?channel=1&token=tok3n&x=1"
    assert address_of("dock", CameraSource(device="http://cam/s")) == "http://cam/s"
    file.write_text("token=tok3n\r\nHost: elsewhere")
    with pytest.raises(ConfigError, match=r"query_file .* holds no query") as caught:
        address_of("dock", with_one)
    assert "tok3n" not in str(caught.value)
    file.unlink()
    with pytest.raises(ConfigError, match="cannot read query_file"):
        address_of("dock", with_one)
