"""The whole way of a QR code: printed by the bridge, seen by a camera, taken by a device that waits for its claim."""

import re
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from click.testing import CliRunner

from gateway.cli import main
from gateway.configload import read
from tests.gateway.appliance.claims import CODE, device
from tests.gateway.appliance.test_pictures import printed, seen

CAPTURE = cv2.VideoCapture


def before_a_camera(monkeypatch: pytest.MonkeyPatch, folder: Path, frames: list[Any]) -> None:
    """Have OpenCV take these pictures wherever it is asked for a V4L2 device."""
    folder.mkdir()
    for number, frame in enumerate(frames):
        cv2.imwrite(str(folder / f"frame-{number:02}.png"), frame)

    def capture(_device: str, _backend: int) -> cv2.VideoCapture:
        return CAPTURE(str(folder / "frame-%02d.png"), cv2.CAP_IMAGES)

    def waited(_seconds: float) -> None:
        raise KeyboardInterrupt  # nothing else comes before the camera

    monkeypatch.setattr(cv2, "VideoCapture", capture)
    monkeypatch.setattr("time.sleep", waited)


def test_a_device_that_is_shown_the_code_of_the_bridge_becomes_the_gateway_that_it_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    places = device(tmp_path / "device")
    (places.devices / "video0").touch()
    _, paper = printed(labels={"site": "berlin"}, time_zone="Europe/Berlin")
    dark = np.zeros((480, 640, 3), np.uint8)  # as the first picture of many a camera is
    before_a_camera(
        monkeypatch, tmp_path / "frames", [dark, *(seen(paper, height=480, seed=seed) for seed in range(3))]
    )
    done = CliRunner().invoke(main, ["appliance", "provision", "--scan", "--root", str(tmp_path / "device")])
    assert done.exit_code == 0, done.output
    camera = re.escape(str(places.devices / "video0"))
    assert re.search(rf"This device is now the gateway dock-7 \(from camera {camera}\)\.", done.output)
    found = read(places.config, require_files=False)
    assert found.errors == []
    assert found.config is not None
    assert (found.config.gateway.id, found.config.gateway.time_zone) == ("dock-7", "Europe/Berlin")
    assert (places.state / "identity/claim").read_text().strip() == CODE


def test_a_device_that_sees_another_code_goes_on_waiting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    places = device(tmp_path / "device")
    (places.devices / "video0").touch()
    foreign = np.kron(cv2.QRCodeEncoder.create().encode("https://example.com"), np.ones((8, 8), np.uint8))
    before_a_camera(monkeypatch, tmp_path / "frames", [np.pad(foreign, 40, constant_values=255)])
    done = CliRunner().invoke(main, ["appliance", "provision", "--scan", "--root", str(tmp_path / "device")])
    assert "this QR code is no claim" in done.output
    assert not places.config.exists()
