import socket
import threading
import time
from collections import deque
from itertools import islice
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.config import CameraSource
from gateway.errors import SourceLostError
from gateway.sources.base import Source, open_source
from gateway.sources.camera import GarbageFrameError
from gateway.sources.httpline import Line
from gateway.sources.mjpeg import MjpegGrabber, decode_jpeg, jpeg_size
from gateway.values import Capture, Frame
from tests.simulators.camera import MjpegCamera
from tests.simulators.clips import jpeg, picture
from tests.simulators.waiting import wait_for

GOOD = jpeg(picture(1))


def sized(height: int, width: int) -> bytes:
    """Return a JPEG whose header announces another size."""
    at = GOOD.index(b"\xff\xc0") + 5
    return GOOD[:at] + height.to_bytes(2, "big") + width.to_bytes(2, "big") + GOOD[at + 4 :]


def frames(camera: MjpegCamera, count: int, **settings: object) -> list[Capture]:
    source = open_source("dock", CameraSource(device=camera.url, timeout_seconds=1.0, **settings))  # type: ignore[arg-type]
    try:
        return list(islice(source.captures(), count))
    finally:
        source.close()
        camera.unplug()


def heal_when(source: Source, camera: MjpegCamera) -> None:
    """Let the camera send good pictures as soon as a bad one was dropped."""

    def heal() -> None:
        wait_for(lambda: source.drops)
        camera.knobs.garbage = camera.knobs.claimed_length = None

    threading.Thread(target=heal).start()


@pytest.mark.parametrize(
    "knobs",
    [
        {},
        {"with_length": False},
        {"dashes_in_header": True},
        {"boundary": "--myboundary--x"},
        {"boundary": "b", "with_length": False},
    ],
)
def test_streams_are_read_in_the_variants_cameras_send(knobs: dict[str, object]) -> None:
    for frame in frames(MjpegCamera(**knobs), 5):
        assert isinstance(frame, Frame)
        assert frame.image.shape == (240, 320, 3)


@pytest.mark.parametrize("with_length", [True, False])
@pytest.mark.parametrize(
    ("garbage", "reason"),
    [
        (b"no jpeg at all", "not_jpeg"),
        (GOOD[: len(GOOD) // 2], "truncated_jpeg"),
        (GOOD[:30], "broken_jpeg"),
        (sized(60_000, 60_000), "absurd_size"),
        (sized(0, 320), "zero_size"),
        (b"\xff\xd8\xff\xe0\x00\x02garbage\xff\xd9", "broken_jpeg"),
    ],
)
def test_garbage_pictures_are_counted_and_the_next_good_ones_come_through(
    with_length: bool, garbage: bytes, reason: str
) -> None:
    camera = MjpegCamera(with_length=with_length, garbage=garbage, fps=50)
    source = open_source("dock", CameraSource(device=camera.url, timeout_seconds=5.0))
    captures = source.captures()
    heal_when(source, camera)
    frame = next(captures)
    assert isinstance(frame, Frame)
    assert frame.image.shape == (240, 320, 3)
    assert reason in source.drops
    source.close()
    camera.unplug()


def test_a_camera_that_sends_only_garbage_is_lost() -> None:
    camera = MjpegCamera(garbage=b"garbage")
    with pytest.raises(SourceLostError, match=r"no usable picture.*not_jpeg"):
        frames(camera, 1)


@pytest.mark.parametrize("length", ["-5", "99999999999999999999999", "many", "0"])
def test_an_absurd_length_is_counted_and_nothing_is_allocated(length: str) -> None:
    camera = MjpegCamera(claimed_length=length, fps=50)
    source = open_source("dock", CameraSource(device=camera.url, timeout_seconds=5.0))
    captures = source.captures()
    heal_when(source, camera)
    assert isinstance(next(captures), Frame)
    assert "absurd_length" in source.drops
    source.close()
    camera.unplug()


def test_a_switch_to_4k_in_the_middle_is_followed() -> None:
    camera = MjpegCamera(fps=50)
    source = open_source("dock", CameraSource(device=camera.url))
    shapes: list[tuple[int, ...]] = []
    for frame in source.captures():
        assert isinstance(frame, Frame)
        if frame.image.shape not in shapes:
            shapes.append(frame.image.shape)
        camera.knobs.width, camera.knobs.height = 3840, 2160
        if len(shapes) == 2:
            break
    source.close()
    camera.unplug()
    assert shapes == [(240, 320, 3), (2160, 3840, 3)]


def test_a_password_file_opens_a_camera_that_asks_for_it_and_shows_nowhere(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    secret = tmp_path / "password"
    secret.write_text("p@ss w:rd/ü\n")
    camera = MjpegCamera(credentials=("watch", "p@ss w:rd/ü"))
    assert len(frames(camera, 2, username="watch", password_file=secret)) == 2

    secret.write_text("wr0ng-secret")
    camera = MjpegCamera(credentials=("watch", "right"))
    with pytest.raises(SourceLostError, match=r"401.*check username and password_file") as caught:
        frames(camera, 1, username="watch", password_file=secret)
    shown = "".join(capfd.readouterr()) + str(caught.value)
    assert "wr0ng" not in shown
    assert "p@ss" not in shown


def test_a_page_that_is_no_stream_is_told_as_such() -> None:
    with pytest.raises(SourceLostError, match="answers with text/html, not with an MJPEG stream"):
        frames(MjpegCamera(content_type="text/html"), 1)


def test_a_camera_that_dribbles_single_bytes_is_lost_in_time_and_its_reader_ends() -> None:
    camera = MjpegCamera(dribble_seconds=0.05)
    source = open_source("dribble", CameraSource(device=camera.url, timeout_seconds=0.4))
    begin = time.monotonic()
    with pytest.raises(SourceLostError, match="no usable picture"):
        deque(source.captures(), maxlen=0)
    assert time.monotonic() - begin < 3
    source.close()
    wait_for(lambda: not [thread for thread in threading.enumerate() if thread.name == "read-dribble"])
    camera.unplug()


def readers(name: str) -> int:
    return sum(thread.name == f"read-{name}" for thread in threading.enumerate())


def test_a_camera_that_dribbles_its_header_is_lost_in_time_and_its_reader_ends() -> None:
    camera = MjpegCamera(header_dribble_seconds=0.05)
    source = open_source("header", CameraSource(device=camera.url, timeout_seconds=0.4))
    begin = time.monotonic()
    with pytest.raises(SourceLostError, match="no usable picture"):
        deque(source.captures(), maxlen=0)
    assert time.monotonic() - begin < 3
    assert readers("header") == 1
    source.close()
    wait_for(lambda: not readers("header"))
    camera.unplug()


def test_control_a_reader_that_nobody_can_cut_off_stays_with_such_a_camera(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Line, "cut", lambda _: None)
    camera = MjpegCamera(header_dribble_seconds=0.05)
    source = open_source("control", CameraSource(device=camera.url, timeout_seconds=0.4))
    with pytest.raises(SourceLostError, match="no usable picture"):
        deque(source.captures(), maxlen=0)
    source.close()
    with pytest.raises(AssertionError):
        wait_for(lambda: not readers("control"), seconds=2)
    camera.unplug()
    wait_for(lambda: not readers("control"))


def test_a_camera_that_is_closed_before_it_answers_is_asked_nothing_more() -> None:
    camera = MjpegCamera(credentials=("admin", "p"))
    grabber = MjpegGrabber(camera.url, "admin", "p", 5.0)
    grabber.interrupt()
    with pytest.raises(SourceLostError, match="closed meanwhile"):
        grabber.open()
    grabber.release()
    camera.unplug()


def test_a_handshake_that_never_ends_is_cut_too() -> None:
    server = socket.create_server(("127.0.0.1", 0))
    camera = CameraSource(device=f"https://127.0.0.1:{server.getsockname()[1]}/x", timeout_seconds=30.0)
    source = open_source("tls", camera)
    taking = threading.Thread(target=deque, args=(source.captures(), 0))
    taking.start()
    connection, _ = server.accept()
    connection.recv(1)  # the handshake has begun
    source.close()
    wait_for(lambda: not readers("tls"))
    taking.join(10)
    connection.close()
    server.close()


def test_a_slow_consumer_gets_the_newest_picture_and_the_others_are_counted() -> None:
    camera = MjpegCamera(fps=100)
    source = open_source("dock", CameraSource(device=camera.url))
    captures = source.captures()
    next(captures)
    sent = camera.sent
    wait_for(lambda: camera.sent > sent + 20)
    frame = next(captures)
    assert time.monotonic_ns() - frame.received_ns < 500_000_000
    assert source.drops["superseded"] >= 15
    source.close()
    camera.unplug()


def test_the_size_is_read_from_the_header_without_decoding() -> None:
    assert jpeg_size(GOOD) == (240, 320)
    good, progressive = cv2.imencode(".jpg", picture(1), [cv2.IMWRITE_JPEG_PROGRESSIVE, 1])
    assert good
    assert jpeg_size(progressive.tobytes()) == (240, 320)


def test_a_broken_picture_shows_nothing_of_the_one_before() -> None:
    red = np.zeros((240, 320, 3), np.uint8)
    red[:, :, 2] = 255
    decode_jpeg(jpeg(red))
    torn = jpeg(picture(1))
    shown = decode_jpeg(torn[: len(torn) // 2] + b"\xff\xd9").astype(int)  # claims to be whole
    assert not ((shown[:, :, 2] > 240) & (shown[:, :, 0] < 15)).any()


@given(st.integers(2, len(GOOD) - 1), st.binary(min_size=1, max_size=40))
def test_damaged_pictures_are_either_pictures_or_garbage_and_never_a_crash(at: int, noise: bytes) -> None:
    try:
        image = decode_jpeg(GOOD[:at] + noise + GOOD[at + len(noise) :])
    except GarbageFrameError:
        return
    assert image.dtype == np.uint8
    assert image.ndim == 3


@given(st.binary(max_size=200))
def test_anything_at_all_is_either_a_size_or_garbage(data: bytes) -> None:
    for candidate in (data, b"\xff\xd8" + data):
        try:
            assert jpeg_size(candidate) >= (0, 0)
        except GarbageFrameError:
            continue


def test_a_camera_that_wants_a_token_in_its_address_gets_it_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "query"
    file.write_text("token=tok3nsecret\n")
    assert len(frames(MjpegCamera(query="token=tok3nsecret"), 2, query_file=file)) == 2
    with pytest.raises(SourceLostError, match="answers 403") as caught:
        frames(MjpegCamera(query="token=an0ther"), 1, query_file=file)
    assert "tok3nsecret" not in str(caught.value)
    assert "token=…" in str(caught.value)
