"""Log-mel spectrograms, equal to librosa's with its defaults but without padding.

The definition: periodic Hann window; frames only where all samples exist (librosa's `center=False`; the references
that centre throw the padded frames away); magnitude to `power`; Slaney's mel scale (linear below 1 kHz, 200/3 Hz a
mel, logarithmic above, 27 mels for a factor of 6.4) with triangles of equal area (Slaney's normalisation), not HTK;
then `20 / power * log10(mel + eps)`, eps being the smallest double step at 1 as in the MLPerf Tiny reference.
"""

import sys

import numpy as np
from numpy.typing import NDArray

from gateway.wire.manifest import LogMel

_LINEAR_HZ = 200.0 / 3.0
_BREAK_HZ = 1000.0
_BREAK_MEL = _BREAK_HZ / _LINEAR_HZ
_LOG_STEP = np.log(6.4) / 27.0


def mel_of_hz(hz: float) -> float:
    """Convert a frequency to Slaney's mel scale."""
    if hz < _BREAK_HZ:
        return hz / _LINEAR_HZ
    return float(_BREAK_MEL + np.log(hz / _BREAK_HZ) / _LOG_STEP)


def hz_of_mel(mels: NDArray[np.float64]) -> NDArray[np.float64]:
    """Convert from Slaney's mel scale to frequencies."""
    linear = mels * _LINEAR_HZ
    logarithmic = _BREAK_HZ * np.exp(_LOG_STEP * (mels - _BREAK_MEL))
    return np.where(mels < _BREAK_MEL, linear, logarithmic)


def mel_filters(features: LogMel, rate_hz: float) -> NDArray[np.float64]:
    """Return the triangles, shape (mels, fft_samples // 2 + 1)."""
    high_hz = features.high_hz if features.high_hz is not None else rate_hz / 2
    edges = hz_of_mel(np.linspace(mel_of_hz(features.low_hz), mel_of_hz(high_hz), features.mels + 2))
    bins = np.fft.rfftfreq(features.fft_samples, 1 / rate_hz)
    rising = (bins - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
    falling = (edges[2:, None] - bins) / (edges[2:] - edges[1:-1])[:, None]
    area = 2.0 / (edges[2:] - edges[:-2])
    return np.maximum(0.0, np.minimum(rising, falling)) * area[:, None]


def frame_count(features: LogMel, samples: int) -> int:
    """Return how many whole frames a window has; 0 if it is shorter than one."""
    return max(0, 1 + (samples - features.fft_samples) // features.hop_samples)


class MelSpectrum:
    """Computes log-mel spectrograms of windows of one rate; the filters are made once."""

    def __init__(self, features: LogMel, rate_hz: float) -> None:
        self._features = features
        self._filters = mel_filters(features, rate_hz)
        ramp = np.arange(features.fft_samples) / features.fft_samples
        self._hann = 0.5 - 0.5 * np.cos(2 * np.pi * ramp)

    def __call__(self, samples: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the spectrogram of one channel, samples (n,) to (frames, mels), in decibels."""
        spec = self._features
        strided = np.lib.stride_tricks.sliding_window_view(samples.astype(np.float64), spec.fft_samples)
        frames = strided[:: spec.hop_samples] * self._hann
        magnitude = np.abs(np.fft.rfft(frames, axis=1))
        mel = (magnitude**spec.power) @ self._filters.T
        return (20.0 / spec.power * np.log10(mel + sys.float_info.epsilon)).astype(np.float32)


def stacked(frames: NDArray[np.float32], stack: int) -> NDArray[np.float32]:
    """Join `stack` consecutive frames to one row, sliding by one: (n, mels) to (n - stack + 1, stack * mels)."""
    rows = np.lib.stride_tricks.sliding_window_view(frames, stack, axis=0)  # (rows, mels, stack)
    return np.ascontiguousarray(rows.transpose(0, 2, 1)).reshape(len(rows), -1)
