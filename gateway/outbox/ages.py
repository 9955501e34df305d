"""How old a row is, whatever the wall clock does.

The store has a clock of its own, in milliseconds of life. While the machine is up it follows the uptime, which no
clock step touches. Over a reboot the time spent switched off can only be guessed from the wall clock, which may
say 1970 or ten years ahead; so each start adds at most a day. A wrong clock can thus age the rows by a day for each
reboot, never throw everything away at once.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

LONGEST_PAUSE_MS: Final = 24 * 3600 * 1000
"""Counted at most for the time a machine was off, or the store unused before it went down."""


def uptime_ns() -> int:
    """Return the time since boot, suspend included; clock steps do not touch it (clock_gettime(2))."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


def boot_id() -> str:
    """Return the random id of this boot (proc(5)); empty where there is none, which counts as a new boot each time."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return ""


class Reading(msgspec.Struct, frozen=True, kw_only=True):
    """All clocks at one moment."""

    wall_ns: int
    uptime_ns: int
    boot_id: str


class SavedAge(msgspec.Struct, frozen=True, kw_only=True):
    """What the store remembers: its own clock, and the others at the same moment."""

    age_ms: int
    reading: Reading


@dataclass(frozen=True, slots=True)
class Clocks:
    """Where the time comes from; replaced in tests."""

    wall_ns: Callable[[], int] = time.time_ns
    uptime_ns: Callable[[], int] = uptime_ns
    boot_id: Callable[[], str] = boot_id

    def read(self) -> Reading:
        return Reading(wall_ns=self.wall_ns(), uptime_ns=self.uptime_ns(), boot_id=self.boot_id())


def resumed_age_ms(saved: SavedAge | None, now: Reading) -> int:
    """Return the store's clock at `now`, from what was saved last."""
    if saved is None:
        return 0
    before = saved.reading
    if now.boot_id and now.boot_id == before.boot_id and now.uptime_ns >= before.uptime_ns:
        return saved.age_ms + (now.uptime_ns - before.uptime_ns) // 1_000_000
    pause_ms = (now.wall_ns - before.wall_ns) // 1_000_000
    return saved.age_ms + min(max(pause_ms, 0), LONGEST_PAUSE_MS)


class AgeClock:
    """The store's clock while it is open; it never goes back."""

    def __init__(self, saved: SavedAge | None, clocks: Clocks) -> None:
        now = clocks.read()
        self._clocks = clocks
        self._boot_id = now.boot_id
        self._start_ms = resumed_age_ms(saved, now)
        self._start_uptime_ns = now.uptime_ns
        self._latest_ms = self._start_ms

    def now_ms(self) -> int:
        """Return the milliseconds this store has lived."""
        elapsed_ms = (self._clocks.uptime_ns() - self._start_uptime_ns) // 1_000_000
        self._latest_ms = max(self._latest_ms, self._start_ms + elapsed_ms)
        return self._latest_ms

    def save(self) -> SavedAge:
        """Return what must be remembered to go on after a restart."""
        reading = Reading(wall_ns=self._clocks.wall_ns(), uptime_ns=self._clocks.uptime_ns(), boot_id=self._boot_id)
        return SavedAge(age_ms=self.now_ms(), reading=reading)
