"""Watches from outside whether the models of a gateway answer, whatever else happens to it."""

import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, Self

ANSWERED: Final = 0.95
"""The share of the time in which models answer at least, whatever else happens, while the process is there."""
LOOK_SECONDS: Final = 0.1
PATIENCE_SECONDS: Final = 1.0
"""Between two answers that count as going on: many windows, and what a busy machine lets a process wait."""


@dataclass
class _Course:
    """How one pipeline of one process has got on: answers so far, and monotonic times."""

    seen: int
    looked_at: float
    answered_at: float


@dataclass
class Share:
    """What part of the time a pipeline answered in, all processes of the gateway together."""

    watched_seconds: float = 0.0
    still_seconds: float = 0.0
    longest_seconds: float = 0.0  # between two answers, to within a look

    @property
    def of_time(self) -> float:
        """0..1; 0 where nothing was seen at all."""
        return 1.0 - self.still_seconds / self.watched_seconds if self.watched_seconds else 0.0


class Standstill:
    """Asks a gateway ten times a second how many answers its pipelines have given.

    A process counts from the first answer of a pipeline on: until then it may wait for a key. It does not count while
    it is gone, or is excused because it was stopped on purpose. One that is there and does not say stands still.
    """

    def __init__(self, status: Callable[[], Mapping[str, Any] | None], pid: Callable[[], int | None]) -> None:
        """Take what is asked. status: of the gateway, None where it does not answer; pid: None while it is gone."""
        self._status = status
        self._pid = pid
        self._excused = 0
        self._process: int | None = None
        self._courses: dict[str, _Course] = {}
        self.shares: dict[str, Share] = {}
        self._lock = threading.Lock()
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="standstill", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end.set()
        self._thread.join(10.0)

    @contextmanager
    def excused(self) -> Iterator[None]:
        """Count no time until the block ends, nor what had begun before it."""
        with self._lock:
            self._excused += 1
            self._courses.clear()
        try:
            yield
        finally:
            with self._lock:
                self._excused -= 1
                self._courses.clear()

    def check(self, pipelines: Collection[str], least: float = ANSWERED) -> dict[str, float]:
        """Check that each pipeline has answered for this share of the time that its process was there, or longer.

        Raises:
            AssertionError: one has not, or was never seen.
        """
        found = {name: round(self.shares[name].of_time, 4) for name in pipelines if name in self.shares}
        assert set(found) == set(pipelines), f"not all were watched: {found} of {list(pipelines)}"
        still = {name: share for name, share in found.items() if share < least}
        assert not still, f"models answered for less than {least:.0%} of the time: {still}, of {self.shares}"
        return found

    def _watch(self) -> None:
        while not self._end.wait(LOOK_SECONDS):
            pid = self._pid()
            status = self._status() if pid is not None else None
            with self._lock:
                self._look(pid, status, time.monotonic())

    def _look(self, pid: int | None, status: Mapping[str, Any] | None, now: float) -> None:
        if self._excused or pid is None or pid != self._pid() or pid != self._process:
            self._courses.clear()
            self._process = pid
            return
        found = {each["pipeline"]: int(each["inferences"]) for each in (status or {}).get("pipelines", ())}
        for name, count in found.items():
            if name not in self._courses and count:
                self._courses[name] = _Course(count, now, now)
        for name, course in self._courses.items():
            self._count(name, course, found.get(name, course.seen), now)

    def _count(self, name: str, course: _Course, count: int, now: float) -> None:
        share = self.shares.setdefault(name, Share())
        share.watched_seconds += now - course.looked_at
        share.longest_seconds = max(share.longest_seconds, now - course.answered_at)
        if count != course.seen:
            course.seen, course.answered_at = count, now
        elif now - course.answered_at > PATIENCE_SECONDS:
            # All since the last answer stood still, and not only what is beyond patience.
            begun = course.looked_at if course.looked_at - course.answered_at > PATIENCE_SECONDS else course.answered_at
            share.still_seconds += now - begun
        course.looked_at = now
