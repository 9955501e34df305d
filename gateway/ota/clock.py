"""What time it is at least. Expiry can only be judged by a clock that an attacker cannot turn back."""

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Final

BUILT_NS: Final = int(datetime(2026, 11, 1, tzinfo=UTC).timestamp()) * 1_000_000_000
"""No device that runs this program lives before this; raised with every version."""


class FlooredClock:
    """The device's best clock, never before the floor.

    A clock that was ahead cannot push the floor far: a refresh only goes through before the metadata expires, so the
    floor never gets past that, and the next metadata are newer.
    """

    def __init__(self, now_ns: Callable[[], int], *, built_ns: int = BUILT_NS) -> None:
        """Take the device's best clock: nanoseconds UTC, such as `TrustedClock.now_ns`."""
        self._now_ns = now_ns
        self._floor_ns = built_ns

    def learn(self, passed_ns: int) -> None:
        """This time is known to have passed."""
        self._floor_ns = max(self._floor_ns, passed_ns)

    def now_ns(self) -> int:
        """Return the time, UTC."""
        return max(self._now_ns(), self._floor_ns)
