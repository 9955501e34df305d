"""Moments, and figures about how long things took."""

import time
from collections.abc import Sequence


def pause(seconds: float) -> None:
    """Let time pass on purpose: how long a fault lasts, or when it strikes. Never a wait for something to happen."""
    time.sleep(seconds)


def percentile(values: Sequence[float], share: float) -> float:
    """Return the value that this share of all values does not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def at_most(limit_seconds: float, seconds: Sequence[float]) -> dict[str, float]:
    """Check that 95 % of the times are within a limit, and none is three times as long; return what was measured.

    Raises:
        AssertionError: with the slowest ones.
    """
    figures = {
        "count": float(len(seconds)),
        "p50": round(percentile(seconds, 0.5), 3),
        "p95": round(percentile(seconds, 0.95 if len(seconds) > 20 else 0.9), 3),
        "max": round(max(seconds), 3),
    }
    slowest = [round(each, 2) for each in sorted(seconds)[-5:]]
    assert figures["p95"] <= limit_seconds, f"95 % within {limit_seconds} s was asked for: {figures}, slowest {slowest}"
    assert figures["max"] <= 3 * limit_seconds, f"none above {3 * limit_seconds} s: {figures}, slowest {slowest}"
    return figures
