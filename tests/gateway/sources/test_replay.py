import threading
import time
from itertools import islice, pairwise
from pathlib import Path

import numpy as np
import pytest

from gateway.config import ReplaySource
from gateway.errors import ConfigError
from gateway.sources.base import open_source
from gateway.sources.replay import SampleReplay
from gateway.values import SampleBlock


def recording(path: Path, *, samples: int = 1000, **settings: object) -> ReplaySource:
    file = path / "data.npz"
    np.savez(file, samples=np.column_stack([np.arange(samples), -np.arange(samples)]))
    return ReplaySource(file=file, rate_hz=1000, **settings)  # type: ignore[arg-type]


def test_blocks_are_spaced_by_the_rate_and_hold_the_data_in_order(tmp_path: Path) -> None:
    source = SampleReplay("press", recording(tmp_path, samples=500))
    begin = time.monotonic()
    blocks = list(source.captures())
    assert 0.49 < time.monotonic() - begin < 1.0
    assert np.concatenate([block.samples for block in blocks])[:, 0].tolist() == list(range(500))
    assert [len(block.samples) for block in blocks] == [50] * 10
    steps = [after.captured_at_ns - before.captured_at_ns for before, after in pairwise(blocks)]
    assert steps == [50_000_000] * 9
    for block in blocks:
        assert block.rate_hz == 1000
        # Complete now, begun fifty milliseconds ago.
        late_ns = time.time_ns() - time.monotonic_ns() + block.received_ns - block.captured_at_ns - 50_000_000
        assert -5_000_000 < late_ns < 500_000_000


def test_ten_times_the_speed_takes_a_tenth_of_the_time(tmp_path: Path) -> None:
    source = SampleReplay("press", recording(tmp_path, samples=4000, speed=10))
    begin = time.monotonic()
    blocks = list(source.captures())
    assert 0.39 < time.monotonic() - begin < 1.5
    assert {after.captured_at_ns - before.captured_at_ns for before, after in pairwise(blocks)} == {5_000_000}


def test_the_pace_does_not_drift_under_a_consumer_that_takes_its_time(tmp_path: Path) -> None:
    source = SampleReplay("press", recording(tmp_path, samples=1000))
    begin = time.monotonic()
    for _ in source.captures():
        threading.Event().wait(0.03)  # of the 50 ms to the next block
    assert 0.99 < time.monotonic() - begin < 1.5  # 1.6 s with drift


def test_at_full_speed_everything_comes_at_once(tmp_path: Path) -> None:
    source = SampleReplay("press", recording(tmp_path, samples=100_000, speed="max"))
    begin = time.monotonic()
    blocks = list(source.captures())
    assert time.monotonic() - begin < 5
    assert sum(len(block.samples) for block in blocks) == 100_000
    assert all(after.captured_at_ns >= before.captured_at_ns for before, after in pairwise(blocks))


def test_a_loop_goes_on_without_a_seam_in_time(tmp_path: Path) -> None:
    source = SampleReplay("press", recording(tmp_path, samples=100, loop=True, speed=5))
    blocks = list(islice(source.captures(), 7))
    assert [block.samples[0, 0] for block in blocks] == [0, 50, 0, 50, 0, 50, 0]
    assert {after.captured_at_ns - before.captured_at_ns for before, after in pairwise(blocks)} == {10_000_000}


def test_a_step_of_the_clock_is_followed(tmp_path: Path) -> None:
    step_ns = 0
    source = SampleReplay(
        "press", recording(tmp_path, loop=True, speed=5), wall_clock=lambda: time.monotonic_ns() + step_ns
    )
    captures = source.captures()
    before = next(captures)
    step_ns = 3_600_000_000_000
    after = next(captures)
    assert after.captured_at_ns - before.captured_at_ns == pytest.approx(step_ns + 10_000_000, abs=50_000_000)


def test_recorded_windows_come_one_a_block_unless_a_size_is_configured(tmp_path: Path) -> None:
    file = tmp_path / "data.npz"
    np.savez(file, windows=np.zeros((3, 200, 2), np.int8))
    blocks = list(SampleReplay("press", ReplaySource(file=file, rate_hz=1000, speed="max")).captures())
    assert [block.samples.shape for block in blocks] == [(200, 2)] * 3
    settings = ReplaySource(file=file, rate_hz=1000, speed="max", block_samples=250)
    assert [len(block.samples) for block in SampleReplay("press", settings).captures()] == [250, 250, 100]


def test_samples_that_are_not_finite_are_dropped_and_counted(tmp_path: Path) -> None:
    file = tmp_path / "data.csv"
    file.write_text("x,y\n1,2\nnan,3\n4,inf\n5,6\n")
    source = SampleReplay("press", ReplaySource(file=file, rate_hz=1000, speed="max"))
    (block,) = source.captures()
    assert block.samples.tolist() == [[1, 2], [5, 6]]
    assert source.drops == {"not_finite": 2}


def test_a_recording_without_a_single_finite_sample_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "data.csv"
    file.write_text("x\nnan\nnan\n")
    source = SampleReplay("press", ReplaySource(file=file, rate_hz=1000, speed="max", loop=True))
    with pytest.raises(ConfigError, match="no finite sample"):
        list(source.captures())


def test_closing_ends_a_long_wait_at_once(tmp_path: Path) -> None:
    settings = recording(tmp_path, block_samples=1000, speed=0.001)
    source = SampleReplay("press", settings)
    threading.Timer(0.1, source.close).start()
    begin = time.monotonic()
    assert list(source.captures()) == []
    assert time.monotonic() - begin < 1


def test_the_ending_of_the_name_decides_between_samples_and_video(tmp_path: Path) -> None:
    source = open_source("press", recording(tmp_path, speed="max"))
    assert isinstance(next(source.captures()), SampleBlock)
    file = tmp_path / "notes.pdf"
    file.write_text("no video")
    with pytest.raises(ConfigError, match=r"notes\.pdf is no video"):
        next(open_source("press", ReplaySource(file=file)).captures())
