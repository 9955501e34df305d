"""The edges of the histograms in measures and baselines: fixed, so that a fleet can be added up and compared.

Changing one makes distributions of old and new devices comparable only where the edges agree; a new statistic needs
a new name. A histogram on the wire may leave out edges at both ends beyond which nothing was counted.
"""

from typing import Final

from gateway.wire.histogram import Histogram

_E12: Final = (1.0, 1.2, 1.5, 1.8, 2.2, 2.7, 3.3, 3.9, 4.7, 5.6, 6.8, 8.2)
"""IEC 60063: twelve steps of about 21 % a decade, in two digits."""

Edges = tuple[float, ...]


def _decades(first: int, last: int) -> Edges:
    """Return E12 edges from 10^first up to 10^last."""
    inner = (float(f"{step}e{power}") for power in range(first, last) for step in _E12)
    return (*inner, float(f"1e{last}"))


SCORE_EDGES: Final[Edges] = tuple(at / 20 for at in range(21))
"""Scores 0..1 in 20ths."""

LATENCY_EDGES_MS: Final[Edges] = _decades(-1, 4)
"""0.1 ms to 10 s, a step being about a fifth."""

INPUT_EDGES: Final[dict[str, Edges]] = {
    # Of pictures, all as shares of full scale.
    "brightness": tuple(at / 20 for at in range(21)),
    "contrast": tuple(at / 40 for at in range(21)),
    "detail": _decades(-4, 0),
    # Of each channel of a window, its mean taken off; `rms` in the unit of the source, the others without one.
    "rms": _decades(-5, 6),
    "crest": tuple(1 + at / 4 for at in range(41)),
    "roughness": _decades(-3, 1),
}
"""By statistic of the input; what each means says `gateway.preprocess.statistics`."""

_MAGNITUDES: Final = _decades(-3, 3)

TENSOR_EDGES: Final[dict[str, Edges]] = {
    "level": (*(-edge for edge in reversed(_MAGNITUDES)), 0.0, *_MAGNITUDES),
    "spread": _decades(-4, 3),
}
"""By statistic of what the model is given after preprocessing: mean and standard deviation of each row of its input."""


def trimmed(edges: Edges, counts: list[int]) -> Histogram:
    """Make a histogram without the outer edges beyond which nothing was counted; at least one edge stays.

    `counts` has one entry more than there are edges.
    """
    seen = [at for at, count in enumerate(counts) if count] or [0]
    low, high = max(0, seen[0] - 1), min(len(edges), seen[-1] + 1)
    return Histogram(edges=edges[low:high], counts=tuple(_within(counts, low, high)))


def _within(counts: list[int], low: int, high: int) -> list[int]:
    return [sum(counts[: low + 1]), *counts[low + 1 : high], sum(counts[high:])]
