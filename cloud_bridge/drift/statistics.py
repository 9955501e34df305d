"""Two distributions compared, as histograms. Pure, and without numpy: the histograms have tens of cells.

PSI is the population stability index, with its null distribution after Yurdakul (2018): PSI / (1/n + 1/m) follows
chi-squared with one degree of freedom less than there are cells. KS is the two-sample Kolmogorov-Smirnov distance,
with the approximation of Stephens (1970); between the edges of a histogram it sees nothing, so its p-value is on the
safe side. Both assume independent samples, which live data are not: the number of samples is divided by the design
effect of the blocks they came in (Kish 1965; Rao and Scott 1981).
"""

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from gateway.wire.histogram import Histogram

_CELL_SHARE: Final = 0.1
_TAIL: Final = 0.005
"""On each side of a baseline: what lies beyond is outside of what training has seen."""

_FEWEST_BLOCKS: Final = 6
"""From which a variance is estimated."""

MOST_COUNT: Final = 2**48
MOST_EDGES: Final = 4096
"""Of a sum. Beyond it is nothing that was measured, and a whole histogram still adds up within 64 bits."""

Counts = list[int]


@dataclass(frozen=True, slots=True)
class Comparison:
    """How one distribution is to another. `samples` counts what was seen, `effective` as if it were independent."""

    psi: float
    ks: float
    p_value: float  # that psi and ks are as large by chance
    outside: float  # share of what was seen in the outermost half percents of the reference, on either side
    outside_p_value: float
    samples: int
    effective: float


def total(histogram: Histogram) -> int:
    """Count the values of a histogram."""
    return sum(histogram.counts)


def merged(histograms: Sequence[Histogram]) -> Histogram | None:
    """Add up, over the finest edges that all of them know; None if there are no such edges or no histograms.

    A cell counts to `MOST_COUNT` and no further. With more than `MOST_EDGES` edges the histograms are of nothing that
    belongs together, and there is no sum.
    """
    edges = common_edges(histograms)
    if not 0 < len(edges) <= MOST_EDGES:
        return None
    sums = [0] * (len(edges) + 1)
    for histogram in histograms:
        for at, count in enumerate(over(histogram, edges)):
            sums[at] += count
    return Histogram(edges=edges, counts=tuple(min(count, MOST_COUNT) for count in sums))


def common_edges(histograms: Sequence[Histogram]) -> tuple[float, ...]:
    """Return the edges at which it is known of every histogram how many values lie below.

    A histogram knows that at its own edges, and beyond its outer edges where nothing was counted there.
    """
    edges = sorted({edge for histogram in histograms for edge in histogram.edges})
    for histogram in histograms:
        own = set(histogram.edges)
        low = histogram.edges[0] if histogram.counts[0] == 0 else -math.inf
        high = histogram.edges[-1] if histogram.counts[-1] == 0 else math.inf
        edges = [edge for edge in edges if edge in own or edge < low or edge > high]
    return tuple(edges)


def over(histogram: Histogram, edges: Sequence[float]) -> Counts:
    """Count over other edges, all of which are among `common_edges`."""
    counts = [0] * (len(edges) + 1)
    for at, count in enumerate(histogram.counts):
        if count:
            counts[bisect_right(edges, histogram.edges[at - 1]) if at else 0] += count
    return counts


def effective_samples(blocks: Sequence[Histogram]) -> float:
    """Return how many independent samples tell as much as these, which came in blocks: hours in order, or devices.

    The variance between the blocks is held against what independent samples would show. What varies more slowly than
    one block shows between pairs and fours of them, so these are looked at too, and the worst counts. One block says
    nothing of all that, and counts as one sample.
    """
    blocks = [block for block in blocks if total(block)]
    edges = common_edges(blocks)
    if len(blocks) < 2 or not edges:
        return float(len(blocks))
    tables = [over(block, edges) for block in blocks]
    samples = sum(map(sum, tables))
    worst = _design_effect(tables)
    while len(tables) >= 2 * _FEWEST_BLOCKS:
        tables = [
            [one + other for one, other in zip(*pair, strict=True)]
            for pair in zip(tables[::2], tables[1::2], strict=False)
        ]
        worst = max(worst, _design_effect(tables))
    return samples / worst


def _design_effect(tables: Sequence[Counts]) -> float:
    """Return the variance of the cumulative shares between blocks, over that of independent samples; at least 1.

    Cumulative, because neighbouring cells that fill in turn are what KS and a shift are about.
    """
    sizes = [sum(table) for table in tables]
    everything = sum(sizes)
    below = [0] * len(tables)
    between = within = 0.0
    for cell in zip(*tables, strict=True):
        below = [before + count for before, count in zip(below, cell, strict=True)]
        share = sum(below) / everything
        between += sum(size * (count / size - share) ** 2 for count, size in zip(below, sizes, strict=True))
        within += share * (1 - share)
    if within <= 0:
        return 1.0  # every value in one cell: there is nothing to be correlated
    return max(1.0, between / ((len(tables) - 1) * within))


def compare(
    reference: Histogram, seen: Histogram, *, reference_effective: float, effective: float
) -> Comparison | None:
    """Compare two distributions; None if one is empty or they have no edge in common.

    Args:
        reference: what is expected.
        seen: what came.
        reference_effective: independent samples in the reference.
        effective: independent samples in what came.
    """
    edges = common_edges((reference, seen))
    if not edges or not total(reference) or not total(seen):
        return None
    expected, found = over(reference, edges), over(seen, edges)
    distance = ks_distance(expected, found)
    index, cells = psi(expected, found)
    n, m = max(effective, 1.0), max(reference_effective, 1.0)
    by_ks = ks_p_value(distance, n, m)
    by_psi = chi_squared_p_value(index / (1 / n + 1 / m), cells - 1) if cells > 1 else 1.0
    outside = _outside(expected, found)
    return Comparison(
        psi=index,
        ks=distance,
        p_value=min(1.0, 2 * min(by_ks, by_psi)),  # Bonferroni: two looks at one thing
        outside=outside,
        outside_p_value=_excess_p_value(outside, 2 * _TAIL, n),
        samples=total(seen),
        effective=n,
    )


def ks_distance(expected: Sequence[int], found: Sequence[int]) -> float:
    """Return the largest difference of the two cumulative shares."""
    first, second = sum(expected), sum(found)
    worst = below = below_found = 0.0
    for one, other in zip(expected, found, strict=True):
        below, below_found = below + one / first, below_found + other / second
        worst = max(worst, abs(below - below_found))
    return min(worst, 1.0)


def psi(expected: Sequence[int], found: Sequence[int]) -> tuple[float, int]:
    """Return the population stability index and its number of cells.

    Neighbouring cells are joined until each holds a tenth of both distributions together. Half a value is added to
    each cell, so that an empty one has a logarithm.
    """
    first, second = sum(expected), sum(found)
    joined: list[tuple[int, int]] = []
    one = other = 0
    for more, more_found in zip(expected, found, strict=True):
        one, other = one + more, other + more_found
        if (one / first + other / second) / 2 >= _CELL_SHARE:
            joined.append((one, other))
            one = other = 0
    if (one or other) and joined:
        last = joined.pop()
        joined.append((last[0] + one, last[1] + other))
    index = 0.0
    for a, b in joined:
        share = (a + 0.5) / (first + 0.5 * len(joined))
        share_found = (b + 0.5) / (second + 0.5 * len(joined))
        index += (share_found - share) * math.log(share_found / share)
    return index, len(joined)


def ks_p_value(distance: float, n: float, m: float) -> float:
    """Return the chance of a distance at least as large between samples of one distribution."""
    root = math.sqrt(n * m / (n + m))
    at = (root + 0.12 + 0.11 / root) * distance
    if at < 0.2:  # the series needs ever more terms, and its limit is 1
        return 1.0
    series = sum(math.pow(-1, k - 1) * math.exp(-2 * (k * at) ** 2) for k in range(1, 101))
    return min(1.0, max(0.0, 2 * series))


def chi_squared_p_value(value: float, degrees: int) -> float:
    """Return the chance of at least this value (Abramowitz and Stegun 26.4.4 and 26.4.5)."""
    if value <= 0:
        return 1.0
    half = value / 2
    if degrees % 2 == 0:
        even: float = sum(math.pow(half, k) / math.factorial(k) for k in range(degrees // 2))
        return min(1.0, math.exp(-half) * even)
    odd: float = sum(math.pow(half, k + 0.5) / math.gamma(k + 1.5) for k in range((degrees - 1) // 2))
    return min(1.0, math.erfc(math.sqrt(half)) + math.exp(-half) * odd)


def _outside(expected: Sequence[int], found: Sequence[int]) -> float:
    """Return the share of `found` in cells that lie wholly in a tail of `expected`."""
    first, second = sum(expected), sum(found)
    beyond, below = 0, 0
    for one, other in zip(expected, found, strict=True):
        above = first - below - one
        if below + one <= _TAIL * first or above + one <= _TAIL * first:
            beyond += other
        below += one
    return beyond / second


def _excess_p_value(share: float, expected: float, n: float) -> float:
    """Bound the chance that so large a share comes of a smaller expected one (Chernoff 1952)."""
    if share <= expected:
        return 1.0
    divergence = share * math.log(share / expected)
    if share < 1:
        divergence += (1 - share) * math.log((1 - share) / (1 - expected))
    return math.exp(-n * divergence)
