from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from gateway.config import CameraSource, HealthSource, ReplaySource
from gateway.sources.fresh import FreshnessGuard, guard_for
from gateway.values import Frame
from tests.simulators.clips import picture

SECOND = 1_000_000_000


def frame(image: NDArray[np.uint8], at_seconds: float, sequence: int = 1) -> Frame:
    return Frame("dock", sequence, round(at_seconds * SECOND), round(at_seconds * SECOND), image)


def test_pictures_of_a_still_but_live_scene_are_fresh_because_of_their_noise() -> None:
    guard = FreshnessGuard(frozen_after_seconds=2)
    rng = np.random.default_rng(1)
    for number in range(100):
        still = np.full((240, 320, 3), 100, np.uint8) + rng.integers(0, 2, (240, 320, 3), dtype=np.uint8)
        assert guard.judge(frame(still, number / 10)) == "fresh"


def test_an_equal_picture_is_repeated_first_and_frozen_after_a_while_and_never_fresh() -> None:
    guard = FreshnessGuard(frozen_after_seconds=2)
    image = picture(1)
    verdicts = [guard.judge(frame(image.copy(), number / 10)) for number in range(40)]
    assert verdicts[0] == "fresh"
    assert verdicts[1:20] == ["repeated"] * 19
    assert verdicts[20:] == ["frozen"] * 20


def test_without_the_guard_for_it_a_frozen_picture_counts_as_fresh() -> None:
    guard = FreshnessGuard(frozen_after_seconds=None)
    image = picture(1)
    assert {guard.judge(frame(image.copy(), number / 10)) for number in range(40)} == {"fresh"}


def test_a_picture_that_moves_again_is_fresh_and_the_patience_starts_anew() -> None:
    guard = FreshnessGuard(frozen_after_seconds=1)
    guard.judge(frame(picture(1), 0))
    assert guard.judge(frame(picture(1), 2)) == "frozen"
    assert guard.judge(frame(picture(2), 2.1)) == "fresh"
    assert guard.judge(frame(picture(2), 2.9)) == "repeated"


def test_the_very_same_object_is_repeated() -> None:
    guard = FreshnessGuard(frozen_after_seconds=10)
    same = frame(picture(1), 0)
    assert guard.judge(same) == "fresh"
    assert guard.judge(same) == "repeated"


@given(st.integers(0, 1079), st.integers(0, 1919), st.integers(0, 2))
def test_a_change_of_any_single_value_makes_a_picture_fresh(row: int, column: int, colour: int) -> None:
    guard = FreshnessGuard(frozen_after_seconds=10)
    image = np.zeros((1080, 1920, 3), np.uint8)
    guard.judge(frame(image, 0))
    changed = image.copy()
    changed[row, column, colour] = 1
    assert guard.judge(frame(changed, 1)) == "fresh"


def test_another_resolution_of_the_same_scene_is_fresh() -> None:
    guard = FreshnessGuard(frozen_after_seconds=10)
    assert guard.judge(frame(np.zeros((240, 320, 3), np.uint8), 0)) == "fresh"
    assert guard.judge(frame(np.zeros((2160, 3840, 3), np.uint8), 1)) == "fresh"
    assert guard.judge(frame(np.zeros((1, 1, 3), np.uint8), 2)) == "fresh"


@pytest.mark.parametrize(("source_fps", "limit", "expected"), [(25, 10, 100), (30, 30, 300), (30, 1, 10), (7, 30, 70)])
def test_no_more_pictures_a_second_than_wished_and_no_fewer(source_fps: int, limit: int, expected: int) -> None:
    guard = FreshnessGuard(frozen_after_seconds=None, fps=limit)
    jitter = np.random.default_rng(3).uniform(-0.2, 0.2, source_fps * 10) / source_fps
    verdicts = [
        guard.judge(frame(picture(number, width=32, height=24), 100 + number / source_fps + jitter[number]))
        for number in range(source_fps * 10)
    ]
    assert abs(verdicts.count("fresh") - expected) <= 1
    assert set(verdicts) <= {"fresh", "rate_limited"}


def test_a_pause_of_the_camera_is_not_made_up_for() -> None:
    guard = FreshnessGuard(frozen_after_seconds=None, fps=1)
    guard.judge(frame(picture(0), 0))
    verdicts = [guard.judge(frame(picture(number), 100 + number / 100)) for number in range(1, 40)]
    assert verdicts.count("fresh") == 1


def test_pictures_of_a_single_colour_are_counted_but_let_through() -> None:
    guard = FreshnessGuard(frozen_after_seconds=10)
    assert guard.judge(frame(np.full((240, 320, 3), (0, 135, 0), np.uint8), 0)) == "fresh"
    assert guard.judge(frame(picture(1), 1)) == "fresh"
    assert guard.uniform == 1


def test_cameras_are_guarded_and_recordings_and_sensors_are_not() -> None:
    def repeats(guard: FreshnessGuard | None) -> bool:
        assert guard is not None
        guard.judge(frame(picture(1), 0))
        return guard.judge(frame(picture(1), 60)) == "frozen"

    for device in ("/dev/video0", "rtsp://camera/1", "http://camera/stream"):
        assert repeats(guard_for(CameraSource(device=device)))
    assert not repeats(guard_for(CameraSource(device="clip.mp4")))
    assert guard_for(ReplaySource(file=Path("clip.mp4"))) is None
    assert guard_for(HealthSource()) is None
