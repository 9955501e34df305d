import time
from itertools import islice, pairwise
from pathlib import Path

import numpy as np
import pytest

from gateway.config import ReplaySource
from gateway.errors import ConfigError
from gateway.sources.video import VideoFile
from tests.simulators.clips import picture, write_video


def test_a_clip_plays_at_its_own_rate_and_ends(tmp_path: Path) -> None:
    clip = write_video(tmp_path / "clip.mp4", frames=20, fps=25)
    begin = time.monotonic()
    frames = list(VideoFile("dock", ReplaySource(file=clip)).captures())
    assert 19 / 25 - 0.01 < time.monotonic() - begin < 2
    assert [frame.sequence for frame in frames] == list(range(1, 21))
    assert np.abs(frames[3].image.astype(int) - picture(3)).mean() < 12
    lag_ns = (time.time_ns() - time.monotonic_ns()) + frames[-1].received_ns - frames[-1].captured_at_ns
    assert abs(lag_ns) < 50_000_000


def test_a_clip_plays_faster_and_at_a_configured_rate(tmp_path: Path) -> None:
    clip = write_video(tmp_path / "clip.avi", frames=20, fps=10)
    begin = time.monotonic()
    assert len(list(VideoFile("dock", ReplaySource(file=clip, rate_hz=5, speed=10)).captures())) == 20
    assert 19 / 50 - 0.01 < time.monotonic() - begin < 1.5


def test_at_full_speed_nothing_is_waited_for_and_nothing_left_out(tmp_path: Path) -> None:
    clip = write_video(tmp_path / "clip.avi", frames=60, fps=1)
    begin = time.monotonic()
    frames = list(VideoFile("dock", ReplaySource(file=clip, speed="max")).captures())
    assert time.monotonic() - begin < 5
    assert [frame.sequence for frame in frames] == list(range(1, 61))


def test_a_loop_goes_on_numbering_and_stamping(tmp_path: Path) -> None:
    clip = write_video(tmp_path / "clip.avi", frames=5)
    source = VideoFile("dock", ReplaySource(file=clip, loop=True, speed=4))
    frames = list(islice(source.captures(), 12))
    assert [frame.sequence for frame in frames] == list(range(1, 13))
    assert all(after.captured_at_ns > before.captured_at_ns for before, after in pairwise(frames))


def test_frames_of_a_truncated_clip_come_as_far_as_they_can_be_decoded(tmp_path: Path) -> None:
    clip = write_video(tmp_path / "clip.avi", frames=30)
    data = clip.read_bytes()
    clip.write_bytes(data[: len(data) // 2])
    assert 0 < len(list(VideoFile("dock", ReplaySource(file=clip, speed="max")).captures())) < 30


def test_a_file_that_is_no_video_is_refused_with_a_remedy(tmp_path: Path) -> None:
    clip = tmp_path / "clip.mp4"
    clip.write_bytes(b"\x00" * 5000)
    with pytest.raises(ConfigError, match=r"clip\.mp4 is no video that can be decoded; convert"):
        next(VideoFile("dock", ReplaySource(file=clip)).captures())
