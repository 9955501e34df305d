"""Medians, percentiles and ratios."""

import gc
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np


def percentiles(values: Sequence[float], digits: int = 3) -> dict[str, float | int]:
    """Sum up a sample; p99.9 only where at least ten thousand values stand behind it."""
    quantiles = {"p50": 50.0, "p95": 95.0, "p99": 99.0}
    if len(values) >= 10_000:
        quantiles["p99.9"] = 99.9
    figures: dict[str, float | int] = {"count": len(values)}
    for name, quantile in quantiles.items():
        figures[name] = round(float(np.percentile(values, quantile)), digits)
    figures["max"] = round(float(max(values)), digits)
    return figures


def alternate(ours: Callable[[], float], bare: Callable[[], float], rounds: int = 5) -> dict[str, Any]:
    """Run two measurements in turn, A B A B, and compare them pair by pair.

    Each returns a rate (higher is better); a drift of the machine's speed hits both alike.
    """
    pairs: list[tuple[float, float]] = []
    for _ in range(rounds):
        gc.collect()
        pairs.append((ours(), bare()))
    ratios = sorted(our / base for our, base in pairs)
    return {
        "ours": round(float(np.median([our for our, _ in pairs])), 1),
        "bare": round(float(np.median([base for _, base in pairs])), 1),
        "ratio": round(float(np.median(ratios)), 3),
        "ratio_min": round(ratios[0], 3),
        "ratio_max": round(ratios[-1], 3),
        "rounds": rounds,
    }


def elapsed(work: Callable[[], object]) -> float:
    """Return how many seconds a piece of work takes."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started
