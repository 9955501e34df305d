"""What time it is for what deletes by time: the wall clock, unless it has jumped. Pure.

A machine whose clock stands years ahead for a minute after it was switched on would otherwise remove, for good, what is
to be kept for years. So time goes on from what was believed last, by a clock that nobody sets, and another time is
believed once it has stood for a day. Nothing is lost by that but a day: what is due goes later.

Where the clock was set while the bridge ran, it was behind before: what came until then bears times that are too old,
and would be due at once. The years that it was set by are no time in which anything has grown old. After a stop they
cannot be told from years in which the bridge was off, and they count.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

_DAY_NS: Final = 86_400 * 1_000_000_000
STEP_NS: Final = _DAY_NS
"""So far the wall clock may be from what was expected, either way: drift, a time server, a short stop."""
PATIENCE_NS: Final = _DAY_NS
"""So long, by a clock that runs while the bridge does, a time that was not expected must stand to be believed."""


MAX_STEPS: Final = 32
"""So many settings of the clock are remembered; no clock that is looked after is set so often by days."""


class Step(NamedTuple):
    """A clock that was behind, set ahead while the bridge ran: what it said last, and by how much it was set."""

    from_ns: int
    by_ns: int


@dataclass(frozen=True, slots=True)
class Belief:
    """A moment, UTC in nanoseconds; since which such moment the wall clock has said something else, and what.

    `stepped`: the doubt began while the bridge ran. `steps`: how the clock was set before, the earliest first.
    """

    at_ns: int
    doubted_since_ns: int | None = None
    doubted_ns: int | None = None
    stepped: bool = False
    steps: tuple[Step, ...] = ()

    def due_ns(self, wall_ns: int) -> int:
        """Return the time by which something may be removed: the earlier of the two, while they differ."""
        return min(self.at_ns, wall_ns)


def before_ns(now_ns: int, age_ns: int, steps: Sequence[Step]) -> int:
    """Return the time stamp of what is of this age now, without the time that the clock was only set by."""
    for step in reversed(steps):
        began_ns = step.from_ns + step.by_ns
        if now_ns - age_ns >= began_ns:
            break
        age_ns -= max(0, now_ns - began_ns)
        now_ns = min(now_ns, step.from_ns)
    return now_ns - age_ns


def believe(before: Belief | None, elapsed_ns: int | None, wall_ns: int) -> Belief:
    """Say what to believe, of a wall clock that says `wall_ns`.

    Args:
        before: what was believed last; None: never anything, and the wall clock is all there is.
        elapsed_ns: how long that was ago, by a monotonic clock; None where it was before a stop, however long ago.
        wall_ns: UTC.
    """
    if before is None:
        return Belief(wall_ns)
    steps = before.steps
    ran_ns = elapsed_ns or 0
    expected_ns = before.at_ns + ran_ns
    if abs(wall_ns - expected_ns) <= STEP_NS:
        return Belief(wall_ns, steps=_standing(steps, wall_ns))
    since_ns = before.doubted_since_ns
    if since_ns is None:
        return Belief(expected_ns, expected_ns, wall_ns, elapsed_ns is not None, steps)
    doubted_ns = wall_ns if before.doubted_ns is None else before.doubted_ns + ran_ns
    if wall_ns - doubted_ns >= -STEP_NS and (elapsed_ns is None or wall_ns - doubted_ns <= STEP_NS):
        # The clock that was in doubt before; over a stop it has gone on.
        if expected_ns - since_ns < PATIENCE_NS:
            return Belief(expected_ns, since_ns, wall_ns, before.stepped, steps)
        if before.stepped and wall_ns > expected_ns:
            steps = (*steps, Step(since_ns, wall_ns - expected_ns))[-MAX_STEPS:]
        return Belief(wall_ns, steps=_standing(steps, wall_ns))
    if wall_ns < expected_ns < doubted_ns:
        # One without a battery, that is set in a moment. What is behind removes nothing, so the wait is only
        # interrupted: where each start begins like this, and none lasts for a day, it would never end.
        return Belief(expected_ns, since_ns + ran_ns, doubted_ns, before.stepped, steps)
    return Belief(expected_ns, expected_ns, wall_ns, before.stepped or elapsed_ns is not None, steps)


def _standing(steps: tuple[Step, ...], wall_ns: int) -> tuple[Step, ...]:
    """Leave out settings that turned out to be mistakes: the clock was set back, and time goes on from before them."""
    return tuple(step for step in steps if step.from_ns + step.by_ns <= wall_ns)
