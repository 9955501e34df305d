"""The doctor opens cameras as the gateway would."""

from pathlib import Path

from gateway.config import CameraSource, Config, Gateway, Vault
from gateway.doctor.cameras import try_cameras
from gateway.doctor.diagnosis import Diagnosis
from tests.simulators.camera import MjpegCamera
from tests.simulators.camera_rtsp import RtspCamera
from tests.simulators.clips import write_video

SOFTWARE = Vault(level="software")


def tried(device: str, **more: object) -> list[Diagnosis]:
    source = CameraSource(device=device, timeout_seconds=0.5, **more)  # type: ignore[arg-type]
    return list(try_cameras(Config(gateway=Gateway(id="a"), sources={"cam": source}, pipelines={}, vault=SOFTWARE)))


def test_a_camera_that_gives_pictures_is_well() -> None:
    camera = MjpegCamera(width=160, height=120)
    try:
        (found,) = tried(camera.url)
    finally:
        camera.unplug()
    assert (found.check, found.verdict) == ("camera cam", "ok")
    assert "160 x 120" in found.found


def test_an_rtsp_camera_is_tried_with_its_password(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("right")
    wrong = tmp_path / "wrong"
    wrong.write_text("guess")
    camera = RtspCamera(credentials=("me", "right"))
    try:
        (well,) = tried(camera.url, username="me", password_file=secret)
        (refused,) = tried(camera.url, username="me", password_file=wrong)
    finally:
        camera.unplug()
    assert well.verdict == "ok"
    assert refused.verdict == "failed"
    assert "guess" not in refused.found + refused.remedy


def test_a_camera_that_says_nothing_is_given_up_in_time_and_told() -> None:
    camera = MjpegCamera(silent=True)
    try:
        (found,) = tried(camera.url)
    finally:
        camera.unplug()
    assert found.verdict == "failed"
    assert found.remedy


def test_a_video_file_is_opened(tmp_path: Path) -> None:
    (there,) = tried(str(write_video(tmp_path / "door.avi", frames=3)))
    assert there.verdict == "ok"
    (missing,) = tried(str(tmp_path / "none.avi"))
    assert missing.verdict == "failed"


def test_devices_of_this_machine_are_left_to_the_gateway_that_may_be_running() -> None:
    assert tried("/dev/video0") == []
