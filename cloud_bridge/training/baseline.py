"""Baselines for manifests: what healthy data look like, and what a model answers to them.

The definitions are those of `gateway.preprocess.statistics` and `gateway.inference.given`, for many windows at once; a
parity test holds them together.
"""

from bisect import bisect_right
from collections.abc import Iterable, Mapping
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from gateway.wire.edges import INPUT_EDGES, SCORE_EDGES, TENSOR_EDGES, Edges, trimmed
from gateway.wire.histogram import Histogram
from gateway.wire.manifest import Baseline

Floats = NDArray[np.float64]


def window_statistics(windows: Floats) -> dict[str, Floats]:
    """Return `rms`, `crest` and `roughness` of windows (windows, samples, channels), one value for each channel.

    A flat channel has an RMS only.
    """
    values = windows.astype(np.float32).astype(np.float64)  # as the device sees them
    centred = values - values.mean(axis=1, keepdims=True)
    rms = np.sqrt((centred**2).mean(axis=1))
    peak = np.abs(centred).max(axis=1)
    steps = np.sqrt((np.diff(values, axis=1) ** 2).mean(axis=1))
    moving = rms > 0
    return {
        "rms": rms.ravel(),
        "crest": peak[moving] / rms[moving],
        "roughness": steps[moving] / rms[moving] / np.sqrt(2),
    }


def squashed(raw: NDArray[np.floating], threshold: float) -> Floats:
    """Return anomaly scores as the device tells them: 0.5 is the threshold."""
    return np.asarray(1.0 - 2.0 ** (-np.maximum(0.0, raw.astype(np.float64)) / threshold))


def tensor_statistics(rows: NDArray[np.floating]) -> dict[str, Floats]:
    """Return `level` and `spread` of what the model is given, (rows, values), one value for each row."""
    values = rows.astype(np.float64)
    return {"level": values.mean(axis=1), "spread": values.std(axis=1)}


def baseline_of(
    scores: Iterable[float],
    inputs: Mapping[str, Iterable[float]],
    tensor: Mapping[str, Iterable[float]] = MappingProxyType({}),
) -> Baseline:
    """Make a baseline of squashed scores, and of statistics of the inputs and of what the model is given, by name."""
    score = _histogram(scores, SCORE_EDGES)
    return Baseline(
        score=score,
        inputs={name: _histogram(values, INPUT_EDGES[name]) for name, values in inputs.items()},
        tensor={name: _histogram(values, TENSOR_EDGES[name]) for name, values in tensor.items()},
        samples=sum(score.counts),
    )


def _histogram(values: Iterable[float], edges: Edges) -> Histogram:
    counts = [0] * (len(edges) + 1)
    for value in values:
        counts[bisect_right(edges, value)] += 1
    return trimmed(edges, counts)
