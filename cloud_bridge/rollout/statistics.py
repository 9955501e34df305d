"""The tests behind the gates, valid however often one looks. Pure, and of the standard library alone.

A look spends a part of the whole error rate (alpha spending: Lan & DeMets 1983, "Discrete sequential boundaries for
clinical trials", Biometrika 70). Look k gets `alpha / (k (k + 1))`; all parts together are alpha, so that by the union
bound the chance that *any* look of an endless row is wrong stays below alpha, whatever connects the looks. Each look
itself is judged with a bound that holds at every size, not with an approximation for large ones.
"""

import math
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from operator import mul
from typing import Final

BINS: Final = 4096
"""Scores are kept as 12-bit numbers: eight times finer than an int8 model answers. Ties only make distances smaller."""


def spent_at(alpha: float, look: int) -> float:
    """Return what look number `look`, counted from 1, may spend of `alpha`."""
    return alpha / (look * (look + 1))


def bin_of(score: float) -> int:
    """Return the bin of a score of 0..1; what lies outside counts as the nearest."""
    return min(BINS - 1, max(0, int(score * BINS)))


@dataclass(frozen=True, slots=True)
class Stratum:
    """The scores of one device, as bins, before and with the new release."""

    old: "array[int]"
    new: "array[int]"


@dataclass(frozen=True, slots=True)
class Distance:
    """How far the new scores are from the old ones.

    `value` is the largest difference of the distribution functions (0..1), `at` the score where it is, `sign` is
    positive when the new scores are lower. `p` bounds the chance of such a distance between equal distributions.
    """

    value: float
    at: float
    sign: int
    p: float
    old: int
    new: int


_MOST_LAGS: Final = 50
_MOST_FOR_LAGS: Final = 20_000
_NO_MORE: Final = 0.02


def correlation_time(sequences: Iterable[Sequence[int]]) -> float:
    """Return how many scores that follow each other are worth one independent score; at least 1.

    One scene gives several events that look alike: five of them say as much as one. The integrated autocorrelation
    time, `1 + 2 Σ ρ`, summed up to the first lag without correlation (Geyer, "Practical Markov chain Monte Carlo",
    Statistical Science 7, 1992), over the first sequences that have 20,000 scores together. For bursts of b equal
    scores it is b.
    """
    centred: list[list[float]] = []
    size, squares = 0, 0.0
    for sequence in sequences:
        if len(sequence) < 2:
            continue
        mean = sum(sequence) / len(sequence)
        centred.append([value - mean for value in sequence])
        size += len(sequence)
        squares += sum(value * value for value in centred[-1])
        if size >= _MOST_FOR_LAGS:
            break
    if not squares:
        return 1.0
    time = 1.0
    for lag in range(1, _MOST_LAGS + 1):
        products = sum(sum(map(mul, values, values[lag:])) for values in centred)
        pairs = sum(max(0, len(values) - lag) for values in centred)
        if not pairs:
            break
        correlation = (products / pairs) / (squares / size)
        if correlation < _NO_MORE:
            break
        time += 2.0 * correlation
    return time


def distance(strata: Iterable[Stratum], pool: Sequence[int] = (), worth: float = 1.0) -> Distance | None:
    """Compare new scores with old ones, each device with its own past; None without scores on both sides.

    A canary is one camera, and no two cameras see the same: against the fleet it would differ whatever it runs. So the
    old scores of each device weigh as much as its new ones (a stratified Kolmogorov-Smirnov statistic). A device
    without a past of its own is held against `pool`. One pass over the scores and one over the bins.

    p is the two-sample form of the Dvoretzky-Kiefer-Wolfowitz inequality, `2 exp(-2 D² n m / (n + m))` (Massart 1990;
    Wei & Dudley 2012), with the effective number of old scores under the weights; `worth` scores count as one
    (`correlation_time`).
    """
    difference = [0.0] * BINS
    total_new = total_old = 0
    spread = 0.0  # sum of w²/m over the strata; 1 over it is the effective number of old scores
    pooled_new = 0
    for stratum in strata:
        size, past = len(stratum.new), len(stratum.old)
        if not size:
            continue
        total_new += size
        for at in stratum.new:
            difference[at] -= 1.0
        if not past:
            pooled_new += size
            continue
        total_old += past
        weight = size / past
        spread += size * weight
        for at in stratum.old:
            difference[at] += weight
    if pooled_new and pool:
        weight = pooled_new / len(pool)
        spread += pooled_new * weight
        total_old += len(pool)
        for at in pool:
            difference[at] += weight
    if not total_new or not total_old or (pooled_new and not pool):
        return None
    largest, where, running = 0.0, 0, 0.0
    for at, step in enumerate(difference):
        running += step
        if abs(running) > abs(largest):
            largest, where = running, at
    value = min(1.0, abs(largest) / total_new)
    effective = total_new * total_new / spread
    harmonic = total_new * effective / (total_new + effective) / max(1.0, worth)
    p = min(1.0, 2.0 * math.exp(-2.0 * value * value * harmonic))
    sign = -1 if largest > 0 else 1
    return Distance(value, (where + 1) / BINS, sign, p, total_old, total_new)


@dataclass(frozen=True, slots=True)
class Rate:
    """Happenings against the hours, or the samples, in which they could happen."""

    count: int
    exposure: float

    @property
    def value(self) -> float:
        """How many there are for one unit of exposure."""
        return self.count / self.exposure if self.exposure > 0 else 0.0


def rate_p(old: Rate, new: Rate, dispersion: float = 1.0) -> float:
    """Bound the chance that two equal rates look so different, either way.

    Given how many there are in all, the new ones are binomial with the share of the exposure (Przyborowski & Wilenski
    1940); the bound is Chernoff's in its Kullback-Leibler form (Hoeffding 1963, theorem 1), at every size. What comes
    in bursts is worth less: `dispersion`, variance over mean of the counts, divides the number.
    """
    total, exposure = old.count + new.count, old.exposure + new.exposure
    if not total or old.exposure <= 0 or new.exposure <= 0:
        return 1.0
    expected, seen = new.exposure / exposure, new.count / total
    divergence = _kl(seen, expected)
    return min(1.0, 2.0 * math.exp(-total / max(1.0, dispersion) * divergence))


def _kl(seen: float, expected: float) -> float:
    def part(a: float, b: float) -> float:
        return 0.0 if a <= 0 else a * math.log(a / b)

    return part(seen, expected) + part(1.0 - seen, 1.0 - expected)


def dispersion_of(groups: Iterable[tuple[Sequence[int], Sequence[float]]]) -> float:
    """Return variance over mean of counts, given for each device its counts and their exposures; at least 1.

    Each device has a rate of its own, so only what differs within a device counts (Pearson's X² over its freedom).
    """
    squares, freedom = 0.0, 0
    for counts, exposures in groups:
        total, exposure = sum(counts), sum(exposures)
        if not total or exposure <= 0 or len(counts) < 2:
            continue
        rate = total / exposure
        squares += sum((n - rate * e) ** 2 / (rate * e) for n, e in zip(counts, exposures, strict=True) if e > 0)
        freedom += len(counts) - 1
    return max(1.0, squares / freedom) if freedom else 1.0


def quantile(edges: Sequence[float], counts: Sequence[int], q: float) -> float | None:
    """Read a quantile off a histogram of positive values, geometric within a bin; None if it is empty.

    Below the first edge and above the last nothing more is known: the edge itself is the answer.
    """
    total = sum(counts)
    if not total:
        return None
    wanted, below = q * total, 0
    for at, count in enumerate(counts):
        if below + count >= wanted and count:
            if at == 0 or at == len(edges):
                return edges[0] if at == 0 else edges[-1]
            low, high = edges[at - 1], edges[at]
            inside = (wanted - below) / count
            return low * (high / low) ** inside if low > 0 else low + (high - low) * inside
        below += count
    return edges[-1]
