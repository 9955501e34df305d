"""A camera reads the code that the bridge prints."""

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from cloud_bridge.identity.claimfile import as_picture
from gateway.appliance.claim import read_claim
from gateway.appliance.pictures import codes_in, seen_codes
from gateway.wire.claimfile import EthernetNetwork, to_qr
from tests.gateway.appliance.claims import SSH_KEY, text

Picture = NDArray[np.uint8]


def printed(**more: Any) -> tuple[str, Picture]:
    """What the code says, and how it looks on paper."""
    claim = read_claim(text(**more), "c")
    found = cv2.imdecode(np.frombuffer(as_picture(claim, "png"), np.uint8), cv2.IMREAD_GRAYSCALE)
    assert found is not None
    return to_qr(claim), np.asarray(found, np.uint8)


def seen(paper: Picture, *, height: int, seed: int, blur: float = 0.8, noise: float = 6.0) -> Picture:
    """The paper as a camera sees it: at an angle, turned, blurred, in weak and uneven light, with noise, in colour."""
    draw = np.random.default_rng(seed)
    width = height * 4 // 3
    side = height * 0.72
    turn = np.deg2rad(draw.uniform(-12, 12))
    rotation = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    corners = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) * side / 2 @ rotation.T
    corners += np.array([width / 2, height / 2]) + draw.uniform(-0.03 * side, 0.03 * side, (4, 2))
    edge = paper.shape[0]
    frame = np.array([[0, 0], [edge, 0], [edge, edge], [0, edge]], np.float32)
    transform = cv2.getPerspectiveTransform(frame, corners.astype(np.float32))
    picture = cv2.warpPerspective(paper, transform, (width, height), borderValue=(120.0,), flags=cv2.INTER_AREA)
    picture = cv2.GaussianBlur(picture, (0, 0), blur)
    light = picture * 0.55 + 50 + np.linspace(-30, 30, width)[None, :] + draw.normal(0, noise, picture.shape)
    grey = np.clip(light, 0, 255).astype(np.uint8)
    return np.asarray(cv2.cvtColor(grey, cv2.COLOR_GRAY2BGR), np.uint8)


@pytest.mark.parametrize("height", [480, 720])
def test_a_camera_reads_a_claim_off_paper_within_a_few_looks(height: int) -> None:
    content, paper = printed(labels={"site": "berlin"}, time_zone="Europe/Berlin")
    read = [codes_in(seen(paper, height=height, seed=seed)) == [content] for seed in range(6)]
    assert sum(read) >= 5


def test_a_large_claim_is_still_read_by_a_camera_of_720_lines() -> None:
    network = EthernetNetwork(address="192.0.2.7/24", gateway="192.0.2.1", dns=["192.0.2.1"])
    plain = {"address": network.address, "gateway": network.gateway, "dns": network.dns}
    content, paper = printed(ssh=[SSH_KEY], network=[plain], ntp=["ntp.plant.example"], labels={"site": "berlin"})
    assert len(content) > 400
    assert any(codes_in(seen(paper, height=720, seed=seed)) == [content] for seed in range(8))


def test_a_picture_without_a_code_has_none() -> None:
    noise = np.random.default_rng(1).integers(0, 255, (240, 320, 3)).astype(np.uint8)
    assert codes_in(noise) == []
    assert codes_in(np.zeros((240, 320), np.uint8)) == []


def test_a_code_that_is_out_of_focus_is_not_misread() -> None:
    """The control: what cannot be read is nothing, and never another claim."""
    content, paper = printed()
    for seed in range(3):
        assert codes_in(seen(paper, height=240, seed=seed, blur=4.0)) in ([], [content])


@pytest.mark.parametrize(("over", "ways"), [(False, 5), (True, 1)])
def test_a_picture_is_tried_in_further_ways_only_while_there_is_time(over: bool, ways: int) -> None:
    noise = np.random.default_rng(1).integers(0, 255, (240, 320, 3)).astype(np.uint8)
    asked: list[None] = []

    def enough() -> bool:
        asked.append(None)
        return over

    assert codes_in(noise, enough) == []
    assert len(asked) == ways


def test_without_cameras_nothing_is_seen(tmp_path: Path) -> None:
    assert list(seen_codes(tmp_path)) == []
    (tmp_path / "video0").touch()
    assert list(seen_codes(tmp_path)) == []
