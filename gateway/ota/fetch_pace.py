"""How long a source is given, and how slow it may be. A socket's own time-out sees neither: one byte resets it."""

from collections.abc import Callable
from dataclasses import dataclass

from gateway.ota.errors import DeadlineError, TooSlowError


@dataclass(frozen=True, slots=True)
class Limits:
    """For one file. The rate is an average over `window_seconds`, and only of the time in which a source is read."""

    deadline_seconds: float
    min_bytes_per_second: int
    window_seconds: float = 30.0


class Pace:
    """The clock of one file, over all tries for it."""

    def __init__(self, what: str, limits: Limits, monotonic_ns: Callable[[], int]) -> None:
        """Start the deadline. `what` names the file in errors."""
        self._what = what
        self._limits = limits
        self._monotonic_ns = monotonic_ns
        self._deadline_ns = monotonic_ns() + int(limits.deadline_seconds * 1e9)
        self._window_ns = int(limits.window_seconds * 1e9)
        self._window_began_ns = 0
        self._window_bytes = 0

    @property
    def left_seconds(self) -> float:
        """How long is left until the deadline; never negative."""
        return max(0.0, (self._deadline_ns - self._monotonic_ns()) / 1e9)

    def begin(self) -> None:
        """The source is asked from now on.

        Raises:
            DeadlineError: the time is over.
        """
        self._window_began_ns = self._monotonic_ns()
        self._window_bytes = 0
        self._check(self._window_began_ns)

    def took(self, size_bytes: int) -> None:
        """So much came.

        Raises:
            TooSlowError: less than the minimum over a window.
            DeadlineError: the time is over.
        """
        now = self._monotonic_ns()
        self._window_bytes += size_bytes
        passed = now - self._window_began_ns
        if passed >= self._window_ns:
            rate = self._window_bytes / (passed / 1e9)
            if rate < self._limits.min_bytes_per_second:
                raise TooSlowError(
                    f"{self._what}: {rate:.0f} bytes a second over {passed / 1e9:.0f} s, at least "
                    f"{self._limits.min_bytes_per_second} are wanted (ota.min_bytes_per_second)"
                )
            self._window_began_ns, self._window_bytes = now, 0
        self._check(now)

    def _check(self, now_ns: int) -> None:
        if now_ns >= self._deadline_ns:
            raise DeadlineError(f"{self._what}: not within {self._limits.deadline_seconds:g} s (ota.deadline_seconds)")
