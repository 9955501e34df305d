"""How fast rows come and go, and when a class will be full. Pure: the time comes in."""

import math
from dataclasses import dataclass
from typing import Final

from gateway.config import ClassQuota
from gateway.outbox.quota import Amount, Held

TIME_CONSTANT_SECONDS: Final = 60.0
"""An average over about a minute: long enough for sensor windows, short enough to see a link return."""


@dataclass(frozen=True, slots=True)
class Flow:
    """Rows and bytes a second."""

    rows_per_second: float = 0.0
    bytes_per_second: float = 0.0


STILL: Final = Flow()
"""Nothing moves."""


class Meter:
    """An exponentially weighted rate. One thread adds, any thread reads."""

    def __init__(self, now_ns: int) -> None:
        self._start_ns = now_ns
        self._state = (now_ns, 0.0, 0.0)  # replaced as a whole, so that readers see one moment

    def add(self, amount: Amount, now_ns: int) -> None:
        at_ns, rows, size = self._state
        fade = _fade(now_ns - at_ns)
        self._state = (max(at_ns, now_ns), rows * fade + amount.rows, size * fade + amount.disk_bytes)

    def flow(self, now_ns: int) -> Flow:
        """Return the rate at `now_ns`; a meter younger than its time constant is not biased towards zero."""
        at_ns, rows, size = self._state
        fade = _fade(now_ns - at_ns)
        age_seconds = max((now_ns - self._start_ns) / 1e9, 1.0)
        weight = TIME_CONSTANT_SECONDS * (1 - math.exp(-age_seconds / TIME_CONSTANT_SECONDS))
        return Flow(rows * fade / weight, size * fade / weight)


def seconds_until_full(quota: ClassQuota, held: Held, incoming: Flow, outgoing: Flow) -> float | None:
    """Forecast when a class reaches its quota at this rate; None when it does not grow."""
    room = (quota.max_rows - held.rows, quota.max_bytes - held.disk_bytes)
    growth = (
        incoming.rows_per_second - outgoing.rows_per_second,
        incoming.bytes_per_second - outgoing.bytes_per_second,
    )
    times = [max(left, 0) / rate for left, rate in zip(room, growth, strict=True) if rate > 1e-9]
    return min(times) if times else None


def seconds_until_empty(held: Held, incoming: Flow, outgoing: Flow) -> float | None:
    """Forecast when a class has nothing left at this rate; None when it does not shrink, or is empty."""
    shrinking = outgoing.rows_per_second - incoming.rows_per_second
    return held.rows / shrinking if held.rows and shrinking > 1e-9 else None


def _fade(elapsed_ns: int) -> float:
    return math.exp(-max(elapsed_ns, 0) / 1e9 / TIME_CONSTANT_SECONDS)
