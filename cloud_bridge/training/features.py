"""What the models see: the definitions of `gateway.wire.manifest`, computed for whole recordings at once.

The device computes the same window by window; a parity test holds the two together.
"""

import itertools

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from gateway.wire.manifest import LogBands, Standardised

Floats = NDArray[np.float64]


def band_matrix(samples: int, rate_hz: float, low_hz: float, high_hz: float, bands: int) -> Floats:
    """Return (bands, samples // 2 + 1): the mean over the bins of each band, as one multiplication.

    A band takes the bins with `edge <= frequency < next edge`, edges spaced evenly on a logarithmic scale. A band
    without a bin takes the one nearest to its geometric centre.
    """
    frequencies = np.fft.rfftfreq(samples, 1 / rate_hz)
    edges = np.geomspace(low_hz, high_hz, bands + 1)
    matrix = np.zeros((bands, len(frequencies)))
    for band, (low, high) in enumerate(itertools.pairwise(edges)):
        bins = np.flatnonzero((frequencies >= low) & (frequencies < high))
        if not len(bins):
            bins = np.array([np.argmin(np.abs(frequencies - np.sqrt(low * high)))])
        matrix[band, bins] = 1 / len(bins)
    return matrix


def log_bands(
    windows: Floats, rate_hz: float, *, bands: int, low_hz: float, high_hz: float, floor: float = 1e-9
) -> Floats:
    """Return (windows, channels * bands), channel-major, before standardising, of windows (windows, n, channels)."""
    n = windows.shape[1]
    centred = (windows - windows.mean(axis=1, keepdims=True)) * np.hanning(n)[None, :, None]
    power = np.abs(np.fft.rfft(centred, axis=1)) ** 2 / n
    banded = band_matrix(n, rate_hz, low_hz, high_hz, bands) @ power
    logarithms: Floats = np.log10(banded + floor)
    return logarithms.transpose(0, 2, 1).reshape(len(windows), -1)


def scaled(raw: Floats, definition: LogBands) -> NDArray[np.float32]:
    """Standardise and clip the result of `log_bands`."""
    values = (raw - np.asarray(definition.mean)) / np.asarray(definition.scale)
    rows: NDArray[np.float32] = np.clip(values, -definition.clip, definition.clip).astype(np.float32)
    return rows


def windows_of(samples: Floats, length: int, hop: int) -> Floats:
    """Cut (n, channels) into (windows, length, channels); what does not fill a window at the end is left out."""
    if len(samples) < length:
        return np.empty((0, length, samples.shape[1]))
    return sliding_window_view(samples, length, axis=0)[::hop].transpose(0, 2, 1)


def baselines(series: Floats, length: int, hop: int, definition: Standardised) -> tuple[Floats, Floats]:
    """Return the median and the spread (with its floor) that each window of one channel (n,) is measured against.

    The baseline of a window is what was new in up to `baseline_windows` windows before it: the last `hop` samples of
    each, all samples of the first. The first window has nothing before it and is measured against itself.
    """
    count = max((len(series) - length) // hop + 1, 0)
    medians, spreads = np.empty(count), np.empty(count)
    for at in range(count):
        end = max(at - 1, 0) * hop + length
        oldest = at - definition.baseline_windows
        baseline = series[0 if oldest <= 0 else (oldest - 1) * hop + length : end]
        medians[at] = np.median(baseline)
        spreads[at] = 1.4826 * np.median(np.abs(baseline - medians[at]))
    return medians, np.maximum(spreads, definition.floor)


def standardised(series: Floats, length: int, hop: int, definition: Standardised) -> NDArray[np.float32]:
    """Return (windows, length) of one channel (n,), each window against the baseline before it."""
    return against(series, baselines(series, length, hop, definition), length, hop, definition)


def against(
    series: Floats, baseline: tuple[Floats, Floats], length: int, hop: int, definition: Standardised
) -> NDArray[np.float32]:
    """Return (windows, length) of a series measured against baselines that may be another's."""
    cut = windows_of(series[:, None], length, hop)[:, :, 0]
    medians, spreads = baseline
    rows = (cut - medians[:, None]) / spreads[:, None]
    return np.clip(rows, -definition.clip, definition.clip).astype(np.float32)
