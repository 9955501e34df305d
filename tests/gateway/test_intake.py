"""From captures to samples, while what a model wants changes."""

import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest

from gateway.errors import ConfigError
from gateway.intake import Intake
from gateway.sources.slot import Handoff
from gateway.values import Sample, SampleBlock, Window
from gateway.wire.manifest import Plain, WindowInput
from tests.simulators.waiting import wait_for

FOUR = WindowInput(samples=4, hop_samples=4, rate_hz=100.0, features=Plain())
EIGHT = WindowInput(samples=8, hop_samples=8, rate_hz=100.0, features=Plain())


def block(samples: int) -> SampleBlock:
    return SampleBlock("s", time.time_ns(), time.monotonic_ns(), 100.0, np.zeros((samples, 1), np.float32))


def intake() -> Intake:
    return Intake(FOUR, 0, lambda given, wanted: ConfigError(f"{given} for {wanted}"))


class Stuck:
    """A source before an inbox that has room for one sample, and of which nobody takes any."""

    def __init__(self) -> None:
        self.intake = intake()
        self.box: Handoff[Sample | str] = Handoff(capacity=1)
        self._thread = threading.Thread(target=self._feed, daemon=True)
        self._thread.start()
        wait_for(lambda: len(self.box) == 1 and self.intake._lock.locked())

    def _feed(self) -> None:
        while not self.box.closed:
            self.intake.accept(block(8), self._put)

    def _put(self, sample: Sample) -> None:
        self.box.put(sample)

    def change(self, seconds: float) -> bool:
        return self.intake.change(EIGHT, lambda left: self.box.put("behind", left), seconds)

    def end(self) -> None:
        self.box.close()
        while self.box.take(0) is not None:
            pass
        self._thread.join(10)


@pytest.fixture
def stuck() -> Iterator[Stuck]:
    made = Stuck()
    yield made
    made.end()


def test_what_follows_comes_behind_the_last_sample_for_the_present_input() -> None:
    at, found = intake(), list[Sample | str]()
    at.accept(block(6), found.append)  # a window, and half of one that is begun anew
    assert at.change(EIGHT, lambda _left: found.append("behind") is None, 1.0)
    at.accept(block(8), found.append)
    assert [len(each.samples) if isinstance(each, Window) else each for each in found] == [4, "behind", 8]
    assert at.spec == EIGHT


def test_a_change_that_finds_no_room_in_time_changes_nothing(stuck: Stuck) -> None:
    began = time.monotonic()
    assert not stuck.change(0.3)
    assert time.monotonic() - began < 5
    assert stuck.intake.spec == FOUR


def test_control_without_a_limit_it_waits_for_as_long_as_nobody_takes_anything(stuck: Stuck) -> None:
    answers: list[bool] = []
    waiting = threading.Thread(target=lambda: answers.append(stuck.change(60.0)))
    waiting.start()
    waiting.join(1.0)
    assert waiting.is_alive()
    stuck.end()
    waiting.join(10)
    assert answers == [False], "an inbox that is closed takes nothing more"


def test_a_follower_that_finds_no_room_changes_nothing() -> None:
    at = intake()
    assert not at.change(EIGHT, lambda _left: False, 1.0)
    assert at.spec == FOUR


def test_a_change_is_taken_back_with_the_next_capture_without_waiting(stuck: Stuck) -> None:
    stuck.intake.recall(EIGHT)
    assert stuck.intake.spec == FOUR, "the thread that waits for room goes on with what it has cut"
    while stuck.intake.spec != EIGHT:
        stuck.box.take(0.1)
