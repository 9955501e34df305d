"""What time it is, on a device whose clock may be wrong.

A gateway without a battery wakes up in 1970, and one with a bad time server lives in another year. A certificate
cannot be checked against such a clock. Two things are known all the same: it is not earlier than anything the
bridge has ever told (the floor, which is kept on disk), and since the last word of the bridge exactly so much time
has passed as the monotonic clock says.
"""

import threading
import time
from collections.abc import Callable
from typing import Final

MAX_SKEW_SECONDS: Final = 300.0
"""A wall clock that is further off than this is not believed."""


def boot_clock_ns() -> int:
    """Return the nanoseconds since the machine was started, sleep included."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


class TrustedClock:
    """The wall clock, held against what the bridge has said. Safe to use from any thread."""

    def __init__(
        self,
        floor_ns: int = 0,
        *,
        wall_ns: Callable[[], int] = time.time_ns,
        monotonic_ns: Callable[[], int] = boot_clock_ns,
    ) -> None:
        """Take the latest time that is known to have passed, in nanoseconds UTC."""
        self._wall_ns = wall_ns
        self._monotonic_ns = monotonic_ns
        self._lock = threading.Lock()
        self._floor_ns = floor_ns
        self._anchor: tuple[int, int] | None = None

    @property
    def floor_ns(self) -> int:
        """The latest time that is known to have passed."""
        with self._lock:
            return self._floor_ns

    def begin(self, floor_ns: int) -> None:
        """Take the latest time that is known from earlier starts; an earlier one than is known changes nothing."""
        with self._lock:
            self._floor_ns = max(self._floor_ns, floor_ns)

    def learn(self, told_ns: int) -> None:
        """Take the time from somebody who is trusted; one before the floor is an old message, and is ignored."""
        with self._lock:
            if told_ns < self._floor_ns:
                return
            self._floor_ns = told_ns
            self._anchor = (told_ns, self._monotonic_ns())

    def forget(self, floor_ns: int) -> None:
        """Give up all that was learned: a person has said that it was wrong."""
        with self._lock:
            self._floor_ns = floor_ns
            self._anchor = None

    def now_ns(self) -> int:
        """Return the best guess at the time, in nanoseconds UTC."""
        with self._lock:
            if self._anchor is None:
                return max(self._wall_ns(), self._floor_ns)
            told_ns, at_ns = self._anchor
            return told_ns + self._monotonic_ns() - at_ns

    def wall_ns(self) -> int:
        """Return what the machine's clock says."""
        return self._wall_ns()

    @property
    def skew_seconds(self) -> float:
        """How far the wall clock is ahead of the best guess; negative when it is behind."""
        return (self._wall_ns() - self.now_ns()) / 1e9

    @property
    def doubtful(self) -> bool:
        """Whether certificates must not be checked against the wall clock."""
        return abs(self.skew_seconds) > MAX_SKEW_SECONDS
