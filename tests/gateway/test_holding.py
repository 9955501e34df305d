"""Which messages of a leaf sensor are dealt with once a window is."""

from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.holding import Holding
from gateway.preprocess.window import Windower
from gateway.values import SampleBlock, Window

SECOND = 1_000_000_000


@dataclass
class Leaf:
    """Cuts numbered single samples, each a message, into windows."""

    samples: int
    hop: int
    at_most: int = 1000
    done: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.windower = Windower(self.samples, self.hop, 1)
        self.holding = Holding(self.at_most)

    def push(self, number: int, at_seconds: float | None = None) -> list[Window]:
        at_ns = int(SECOND * (number if at_seconds is None else at_seconds))
        block = SampleBlock("s", at_ns, at_ns, 1.0, np.full((1, 1), number, np.float32), Message(number, self))
        return self.holding.follow(block, self.windower.push(block), self.windower.needed)


@dataclass
class Message:
    number: int
    leaf: Leaf

    def done(self) -> None:
        self.leaf.done.append(self.number)

    def again(self) -> None:
        raise AssertionError


def finish(windows: list[Window]) -> None:
    for window in windows:
        if window.done is not None:
            window.done()


def first(window: Window) -> int:
    return int(window.samples[0, 0])


def test_a_reading_is_done_when_the_window_of_one_is() -> None:
    leaf = Leaf(1, 1)
    windows = leaf.push(1)
    assert leaf.done == []
    finish(windows)
    assert leaf.done == [1]


@given(st.integers(1, 12), st.integers(1, 12), st.integers(1, 60), st.integers(0, 5))
def test_a_kill_at_any_instant_costs_no_window(samples: int, hop: int, killed_after: int, unfinished: int) -> None:
    """What was not acknowledged comes again, in order: all windows are dealt with, as if nothing had been."""
    without = Leaf(samples, hop)
    last = killed_after + 3 * (samples + hop)
    wanted = [first(window) for number in range(last) for window in without.push(number)]
    before = Leaf(samples, hop)
    waiting = [window for number in range(killed_after) for window in before.push(number)]
    dealt_with = waiting[: max(0, len(waiting) - unfinished)]
    finish(dealt_with)
    after = Leaf(samples, hop)
    again = [first(each) for number in range(last) if number not in before.done for each in after.push(number)]
    found = {first(window) for window in dealt_with} | set(again)
    if hop <= samples:
        assert found >= set(wanted[: -samples - hop or None])
        assert set(again) <= set(wanted), "the windows after the kill are those that would have been without it"
    assert before.done == sorted(before.done)


def test_control_acknowledged_at_receipt_a_kill_costs_the_windows_that_were_filling() -> None:
    before, after = Leaf(4, 2, at_most=0), Leaf(4, 2)
    windows = [window for number in range(7) for window in before.push(number)]
    finish(windows)
    assert before.done == list(range(7))
    again = [first(window) for number in range(7, 13) for window in after.push(number)]
    assert [first(window) for window in windows] + again == [0, 2, 7, 9], "those from 4 and 6 on are missing"


def test_of_long_windows_only_the_newest_readings_are_held() -> None:
    leaf = Leaf(100, 100, at_most=10)
    for number in range(60):
        assert leaf.push(number) == []
    assert leaf.done == list(range(50))


def test_what_a_gap_discards_is_done_after_the_windows_it_was_part_of() -> None:
    leaf = Leaf(4, 2)
    windows = [window for number in range(5) for window in leaf.push(number)]
    assert leaf.push(100) == []
    assert leaf.done == []
    finish(windows)
    assert leaf.done == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("hop", [1, 4])
def test_blocks_that_nobody_keeps_pass_through(hop: int) -> None:
    windower, holding = Windower(4, hop, 1), Holding(10)
    block = SampleBlock("s", 0, 0, 1.0, np.zeros((8, 1), np.float32))
    windows = windower.push(block)
    assert holding.follow(block, windows, windower.needed) == windows
