"""Two samples of values compared: how far apart, and how likely by chance. Pure.

Samples that follow each other are alike, which makes any test fire too early: they count as fewer, by their integrated
autocorrelation time (Sokal 1997, §3). Who looks again and again does so at sizes that double (`look_at`).
"""

import math
from bisect import bisect_right
from collections.abc import Sequence
from typing import Final

FIRST_LOOK: Final = 50
"""Samples of each release before their answers are compared for the first time."""


def look_at(count: int) -> tuple[int, int] | None:
    """Return the size and the number (from 0) of the last look that so many samples allow, None before the first."""
    if count < FIRST_LOOK:
        return None
    number = (count // FIRST_LOOK).bit_length() - 1
    return FIRST_LOOK << number, number


def ks_distance(first: Sequence[float], second: Sequence[float]) -> float:
    """Return the greatest distance of two empirical distributions, 0..1; O(n log n)."""
    one, two = sorted(first), sorted(second)
    return max(abs(bisect_right(one, value) / len(one) - bisect_right(two, value) / len(two)) for value in (*one, *two))


def mean_shift(first: Sequence[float], second: Sequence[float]) -> float:
    """Return by how much scores differ on average, in order of size: the Wasserstein distance of two samples."""
    one, two = sorted(first), sorted(second)
    steps = 200
    places = [(step + 0.5) / steps for step in range(steps)]
    return math.fsum(abs(one[int(p * len(one))] - two[int(p * len(two))]) for p in places) / steps


def correlation_time(values: Sequence[float]) -> float:
    """Return how many values in a row say as much as one independent one, at least 1 and at most an eighth of them all.

    The integrated autocorrelation time, summed until a lag at which nothing is left of the likeness.
    """
    count = len(values)
    mean = math.fsum(values) / count
    off = [value - mean for value in values]
    power = math.fsum(one * one for one in off)
    if not power:
        return 1.0
    time = 1.0
    for lag in range(1, count // 2):
        likeness = math.fsum(off[at] * off[at + lag] for at in range(count - lag)) / power
        if likeness <= 2 / math.sqrt(count):  # what chance alone gives
            break
        time += 2 * likeness
    return min(time, count / 8)


def ks_chance(distance: float, first: float, second: float) -> float:
    """Return how likely a distance at least so large is for samples of one distribution, asymptotically."""
    root = math.sqrt(first * second / (first + second))
    x = (root + 0.12 + 0.11 / root) * distance
    if x < 0.3:  # the series does not converge there; the chance is 1 to five digits
        return 1.0
    terms = (math.exp(-2.0 * k * k * x * x) * (2.0 if k % 2 else -2.0) for k in range(1, 101))
    return min(1.0, max(0.0, math.fsum(terms)))


def without_stalls(took: Sequence[float], busy: Sequence[float]) -> list[float]:
    """Return how long answers took, without what their thread waited off the processor for longer than usual.

    What comes now and then is the machine's: another thread of this program has the interpreter, and waits for a
    processor itself. No count of the waiting thread shows that.

    Args:
        took: by each answer, without what its thread waited for a processor.
        busy: how long the thread was on one, or on an accelerator, for it.
    """
    stalls = [max(0.0, each - on) for each, on in zip(took, busy, strict=True)]
    usual = quantile(stalls, 0.5) if stalls else 0.0
    return [each - max(0.0, stall - usual) for each, stall in zip(took, stalls, strict=True)]


def quantile(values: Sequence[float], share: float) -> float:
    """Return the value that this share of all do not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, math.ceil(share * len(ordered)) - 1)]
