"""Sliding windows."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import ConfigError
from gateway.preprocess.window import Windower
from gateway.values import SampleBlock, Window

SECOND = 1_000_000_000
RATE = 100.0


def blocks_of(values: int, sizes: list[int], rate: float = RATE) -> list[SampleBlock]:
    """Cut 0, 1, 2, … into blocks with gap-free times."""
    blocks, at, turn = [], 0, 0
    while at < values:
        size = min(sizes[turn % len(sizes)], values - at)
        blocks.append(block(at, size, rate=rate))
        at, turn = at + size, turn + 1
    return blocks


def block(first: int, size: int, *, rate: float = RATE, late_ns: int = 0, clock_ns: int = 0) -> SampleBlock:
    samples = np.arange(first, first + size, dtype=np.float32).reshape(-1, 1)
    begins = round(first / rate * SECOND) + late_ns
    ends = round((first + size) / rate * SECOND) + late_ns
    return SampleBlock("s", 1_000 * SECOND + begins + clock_ns, ends, rate, samples)


def firsts(windows: list[Window]) -> list[int]:
    return [int(window.samples[0, 0]) for window in windows]


@given(
    st.integers(1, 40),
    st.integers(1, 60),
    st.integers(0, 400),
    st.lists(st.integers(1, 90), min_size=1, max_size=5),
)
def test_windows_do_not_depend_on_how_the_stream_is_cut(samples: int, hop: int, total: int, sizes: list[int]) -> None:
    windower = Windower(samples, hop, 1)
    windows = [window for one in blocks_of(total, sizes) for window in windower.push(one)]
    assert firsts(windows) == list(range(0, total - samples + 1, hop))
    for window in windows:
        assert (np.diff(window.samples[:, 0]) == 1).all()
        assert window.samples.shape == (samples, 1)
    assert [window.sequence for window in windows] == list(range(1, len(windows) + 1))


def test_a_window_bears_the_time_of_its_last_sample() -> None:
    windower = Windower(10, 10, 1)
    (window,) = windower.push(block(0, 15))
    assert window.captured_at_ns == 1_000 * SECOND + round(9 / RATE * SECOND)
    assert window.received_ns == round(15 / RATE * SECOND)
    assert window.rate_hz == RATE


def test_windows_have_their_own_memory() -> None:
    windower = Windower(4, 2, 1)
    first, second = windower.push(block(0, 6))
    first.samples[:] = -1
    windower.push(block(6, 6))
    assert second.samples[:, 0].tolist() == [2, 3, 4, 5]


def test_no_window_spans_a_gap() -> None:
    windower = Windower(10, 5, 1)
    windower.push(block(0, 8))
    windows = windower.push(block(8, 20, late_ns=2 * SECOND))
    assert firsts(windows) == [8, 13, 18]
    assert windower.counts["gaps"] == 1
    assert windower.counts["samples_discarded"] == 8


def test_a_little_lateness_is_no_gap() -> None:
    windower = Windower(10, 5, 1)
    windower.push(block(0, 8))
    assert firsts(windower.push(block(8, 20, late_ns=SECOND // 5))) == [0, 5, 10, 15]
    assert "gaps" not in windower.counts


@pytest.mark.parametrize("step_seconds", [3600, -3600])
def test_a_step_of_the_clock_is_no_gap(step_seconds: int) -> None:
    windower = Windower(10, 5, 1)
    windower.push(block(0, 8))
    assert firsts(windower.push(block(8, 2, clock_ns=step_seconds * SECOND))) == [0]


def test_a_slow_sensor_may_be_late_by_two_samples() -> None:
    windower = Windower(3, 1, 1)
    slow = 0.1  # a sample every ten seconds
    for first in (0, 1):
        windower.push(block(first, 1, rate=slow))
    assert firsts(windower.push(block(2, 1, rate=slow, late_ns=20 * SECOND))) == [0]
    assert windower.push(block(3, 1, rate=slow, late_ns=60 * SECOND)) == []
    assert windower.counts["gaps"] == 1


def test_no_window_spans_a_change_of_rate() -> None:
    windower = Windower(10, 10, 1)
    windower.push(block(0, 8, rate=100))
    assert windower.push(block(8, 9, rate=50)) == []
    assert windower.counts["rate_changes"] == 1


def test_another_number_of_channels_names_both() -> None:
    with pytest.raises(ConfigError, match=r"source s: .*\(5, 1\).*wants 3 channels"):
        Windower(10, 5, 3).push(block(0, 5))
