"""The watch that decides whether models went on answering, against a gateway that does what is written."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest

from tests.chaos.standstill import Standstill
from tests.chaos.timing import pause
from tests.simulators.waiting import wait_for


@dataclass
class Scripted:
    """Knobs: `answers` while a count is to rise with each look, `speaks`, `pid`."""

    answers: bool = True
    speaks: bool = True
    pid: int | None = 1
    count: int = 0
    asked: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def status(self) -> dict[str, Any] | None:
        with self.lock:
            self.asked += 1
            self.count += self.answers
            return {"pipelines": [{"pipeline": "motor", "inferences": self.count}]} if self.speaks else None


@contextmanager
def watched(gateway: Scripted) -> Iterator[Standstill]:
    with Standstill(gateway.status, lambda: gateway.pid) as watch:
        wait_for(lambda: gateway.asked >= 5, seconds=20, what="it is watched")
        yield watch


def test_models_that_answer_all_the_time_pass() -> None:
    with watched(Scripted()) as watch:
        pause(1.0)
    assert watch.check(["motor"]) == {"motor": 1.0}


@pytest.mark.parametrize("knob", ["answers", "speaks"])
def test_models_that_stand_still_or_say_nothing_are_caught(knob: str) -> None:
    gateway = Scripted()
    with watched(gateway) as watch:
        setattr(gateway, knob, False)
        pause(2.5)
    with pytest.raises(AssertionError, match="answered for less than 95%"):
        watch.check(["motor"])
    assert watch.shares["motor"].still_seconds >= 1.5


def test_a_process_that_was_stopped_on_purpose_or_is_gone_is_not_blamed() -> None:
    gateway = Scripted()
    with watched(gateway) as watch:
        with watch.excused():
            gateway.answers = False
            pause(1.5)
            gateway.answers = True
        gateway.pid, gateway.answers = None, False
        pause(1.5)
        # The next one has yet to answer for the first time: it may wait for a key.
        gateway.pid, gateway.count = 2, 0
        pause(1.5)
    assert watch.check(["motor"]) == {"motor": 1.0}


def test_a_pipeline_that_never_answered_does_not_pass_for_want_of_evidence() -> None:
    with watched(Scripted(answers=False)) as watch:
        pass
    with pytest.raises(AssertionError, match="not all were watched"):
        watch.check(["motor"])
