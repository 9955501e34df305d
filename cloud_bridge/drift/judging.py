"""From a comparison to a level that does not flap. Pure."""

from dataclasses import dataclass, replace
from typing import Final, Literal

from cloud_bridge.config import Drift
from cloud_bridge.drift.statistics import Comparison

Level = Literal["waiting", "ok", "warning", "alarm"]
"""`waiting`: not enough samples, or nothing to compare with."""

ORDER: Final[tuple[Level, ...]] = ("waiting", "ok", "warning", "alarm")
CONFIRMATIONS: Final = 2
"""Looks in a row, each with something new in it, before a level changes."""
_RELIEF: Final = 0.8
"""A level is left below this share of the threshold that led to it."""

Basis = Literal["range", "shape"]
"""`range`: what lies outside of the reference counts; `shape`: every difference of the two distributions does.

One device sees a part of what a release was trained on, and differs from the whole in shape from the first day. So it
is held against the range of the training data, and against the shape of its own first window.
"""


@dataclass(frozen=True, slots=True)
class Standing:
    """What is known of one statistic of one device or cohort against one reference."""

    level: Level = "waiting"
    since_ns: int = 0
    proposed: Level = "waiting"  # what the last looks said, if it differs
    times: int = 0  # how many looks in a row
    newest: int = 0  # stands for the newest data at the last look; see `evaluation.newest_of`


def level_of(found: Comparison | None, basis: Basis, settings: Drift, *, looks: int, held: Level) -> Level:
    """Say what one comparison means by itself.

    Args:
        found: the comparison, None if there is none.
        basis: what counts.
        settings: thresholds.
        looks: how many comparisons are made side by side; the significance is shared among them (Bonferroni).
        held: the level now; it is left for a lower one only with some relief.
    """
    if found is None or found.samples < settings.min_samples:
        return "waiting"
    by_shape = basis == "shape"
    effect, p_value = (found.psi, found.p_value) if by_shape else (found.outside, found.outside_p_value)
    alarm = settings.psi_alarm if by_shape else settings.outside_alarm
    warning = settings.psi_warning if by_shape else settings.outside_warning
    if held == "alarm":
        alarm *= _RELIEF
    if held in ("alarm", "warning"):
        warning *= _RELIEF
    if p_value > settings.significance / max(looks, 1):
        return "ok"
    if effect >= alarm:
        return "alarm"
    return "warning" if effect >= warning else "ok"


def next_standing(before: Standing, said: Level, newest: int, now_ns: int) -> Standing:
    """Take a look into account: the level changes when `CONFIRMATIONS` looks in a row agree.

    A look at which nothing new has come (`newest` is as before) repeats the one before, and confirms nothing. That all
    is well after waiting is believed at once.
    """
    if said == before.level:
        return replace(before, proposed=said, times=0, newest=newest)
    if before.level == "waiting" and said == "ok":
        return Standing(said, now_ns, said, 0, newest)
    fresh = newest != before.newest
    times = (before.times + fresh) if said == before.proposed else 1
    if times >= CONFIRMATIONS:
        return Standing(said, now_ns, said, 0, newest)
    return replace(before, proposed=said, times=times, newest=newest)


def worst(levels: list[Level]) -> Level:
    """Return the highest level; `waiting` if there is none."""
    return max(levels, key=ORDER.index, default="waiting")
