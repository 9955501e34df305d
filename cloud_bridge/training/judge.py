"""How well a detector does: pure figures from scores."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Scores = NDArray[np.floating]


@dataclass(frozen=True, slots=True)
class Judgement:
    """A detector at its threshold, on one split."""

    auc: float
    f1: float
    recall: float
    false_alarm_rate: float  # share of the normal windows at or above the threshold


def judge(normal: Scores, anomalous: Scores, threshold: float) -> Judgement:
    """Judge scores of normal and of anomalous windows."""
    hits = int((anomalous >= threshold).sum())
    false = int((normal >= threshold).sum())
    missed = len(anomalous) - hits
    return Judgement(
        auc=auc(normal, anomalous),
        f1=2 * hits / max(2 * hits + false + missed, 1),
        recall=hits / max(len(anomalous), 1),
        false_alarm_rate=false / max(len(normal), 1),
    )


def auc(normal: Scores, anomalous: Scores) -> float:
    """Return the chance that an anomalous window scores above a normal one; a tie counts half."""
    ordered = np.sort(normal)
    below = np.searchsorted(ordered, anomalous, side="left")
    tied = np.searchsorted(ordered, anomalous, side="right") - below
    return float((below + tied / 2).mean() / len(ordered))


def threshold_for(normal: Scores, false_alarm_rate: float, margin: float) -> float:
    """Return the score that normal windows reach at the given rate, times a margin for what has not been seen."""
    return float(np.quantile(normal, 1 - false_alarm_rate, method="higher")) * margin


def reconstruction_error(inputs: NDArray[np.float32], outputs: NDArray[np.float32]) -> Scores:
    """Return the mean squared difference of each row, in feature units."""
    difference = inputs.astype(np.float64) - outputs.astype(np.float64)
    return np.asarray((difference**2).mean(axis=tuple(range(1, difference.ndim))))


def alarms(scores: Scores, threshold: float) -> list[tuple[int, int]]:
    """Return the stretches (first, last) of consecutive windows at or above the threshold."""
    above = np.concatenate([[False], scores >= threshold, [False]])
    edges = np.flatnonzero(above[1:] != above[:-1])
    return [(int(start), int(end) - 1) for start, end in zip(edges[::2], edges[1::2], strict=True)]


def overlaps(stretch: tuple[float, float], intervals: Sequence[tuple[float, float]]) -> bool:
    """Tell whether a stretch meets one of the intervals, ends included."""
    return any(stretch[0] <= end and stretch[1] >= start for start, end in intervals)
