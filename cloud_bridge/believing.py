"""What time it is for what deletes by time: the wall clock, unless it has jumped. Pure.

A machine whose clock stands years ahead for a minute after it was switched on would otherwise remove, for good, what is
to be kept for years. So time goes on from what was believed last, by a clock that nobody sets, and another time is
believed once it has stood for a day. Nothing is lost by that but a day: what is due goes later.
"""

from dataclasses import dataclass
from typing import Final

_DAY_NS: Final = 86_400 * 1_000_000_000
STEP_NS: Final = _DAY_NS
"""So far the wall clock may be from what was expected, either way: drift, a time server, a short stop."""
PATIENCE_NS: Final = _DAY_NS
"""So long, by a clock that runs while the bridge does, a time that was not expected must stand to be believed."""


@dataclass(frozen=True, slots=True)
class Belief:
    """A moment, UTC in nanoseconds, and since which such moment the wall clock has said something else."""

    at_ns: int
    doubted_since_ns: int | None = None

    def due_ns(self, wall_ns: int) -> int:
        """Return the time by which something may be removed: the earlier of the two, while they differ."""
        return min(self.at_ns, wall_ns)


def believe(before: Belief | None, elapsed_ns: int, wall_ns: int) -> Belief:
    """Say what to believe, of a wall clock that says `wall_ns`.

    Args:
        before: what was believed last; None: never anything, and the wall clock is all there is.
        elapsed_ns: how long that was ago, by a monotonic clock; 0 where it was before a stop, however long ago.
        wall_ns: UTC.
    """
    if before is None:
        return Belief(wall_ns)
    expected_ns = before.at_ns + elapsed_ns
    if abs(wall_ns - expected_ns) <= STEP_NS:
        return Belief(wall_ns)
    since_ns = expected_ns if before.doubted_since_ns is None else before.doubted_since_ns
    if expected_ns - since_ns >= PATIENCE_NS:
        return Belief(wall_ns)
    return Belief(expected_ns, since_ns)
