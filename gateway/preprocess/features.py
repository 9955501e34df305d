"""What models see of a window. Training reproduces these definitions, so they are part of the contract.

Every extractor takes a window's samples, (samples, channels), and returns float32 rows: (channels, features) for
`per_channel` models, each channel a row of its own, else one row with all channels (log-mel: a row for each stack of
frames). All arithmetic is in float64, the result is rounded to float32 once.
"""

from collections import deque
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray

from gateway.errors import ModelError
from gateway.preprocess.mel import MelSpectrum, frame_count, stacked
from gateway.wire.manifest import LogBands, LogMel, Plain, Standardised, WindowInput

Rows = NDArray[np.float32]

MAD_TO_SIGMA: Final = 1.4826
"""The median absolute deviation of a normal distribution times this is its standard deviation."""


class Extractor(Protocol):
    """Makes rows of features from windows."""

    def row_length(self) -> int:
        """How many values a row has."""

    def rows(self, samples: NDArray[np.float32]) -> Rows:
        """Return the rows of one window; a stateful extractor remembers the window."""

    def exclude_last(self) -> None:
        """Take the last window out of whatever is remembered; nothing happens where nothing is."""


def extractor_for(spec: WindowInput) -> Extractor:
    """Return the extractor a manifest asks for.

    Raises:
        ModelError: the manifest contradicts itself; the message names the part.
    """
    features = spec.features
    if isinstance(features, LogBands):
        return LogBandFeatures(spec, features)
    if isinstance(features, Standardised):
        return StandardisedFeatures(spec, features)
    if isinstance(features, LogMel):
        return LogMelFeatures(spec, features)
    return PlainFeatures(spec, features)


def per_row(name: str, values: tuple[float, ...], length: int) -> NDArray[np.float64]:
    """Return a mean or a scale as an array of one entry a feature; a single number serves for all.

    Raises:
        ModelError: another number of entries, or a scale of zero.
    """
    if len(values) not in (1, length):
        raise ModelError(f"input.features.{name}: expected {length} values (or one for all), found {len(values)}")
    if name == "scale" and not all(values):
        raise ModelError("input.features.scale: holds a zero")
    return np.broadcast_to(np.asarray(values, dtype=np.float64), (length,))


class _Stateless:
    def exclude_last(self) -> None:
        """Nothing is remembered."""


class LogBandFeatures(_Stateless):
    """Log power in bands of the spectrum, for vibration.

    Per channel: the block minus its mean, times `numpy.hanning(n)`, real FFT, power `|X|² / n`. Band k is the mean
    power of the bins with a frequency in [edge k, edge k+1), edges `numpy.geomspace(low_hz, high_hz, bands + 1)`; a
    band without a bin takes the one nearest to its geometric centre. Then `log10(power + floor)`, all bands of
    channel 0 first, `(value - mean) / scale`, clipped to ±`clip`. With `per_channel`, `mean` and `scale` have one
    entry a band.
    """

    def __init__(self, spec: WindowInput, features: LogBands) -> None:
        self._spec, self._features = spec, features
        self._hann = np.hanning(spec.samples)[:, None]
        starts, ends = band_bins(features, spec.samples, spec.rate_hz)
        # reduceat sums [start, end) at even places; the odd places hold what lies between two bands.
        self._cuts = np.stack((starts, ends), axis=1).ravel()
        self._widths = (ends - starts)[:, None]
        self._mean = per_row("mean", features.mean, self.row_length())
        self._scale = per_row("scale", features.scale, self.row_length())

    def row_length(self) -> int:
        """Bands, times the channels unless each is a row."""
        return self._features.bands * (1 if self._spec.per_channel else self._spec.channels)

    def rows(self, samples: NDArray[np.float32]) -> Rows:
        """Return (channels, bands) or (1, channels * bands)."""
        block = samples.astype(np.float64)
        spectrum = np.fft.rfft((block - block.mean(axis=0)) * self._hann, axis=0)
        power = (spectrum.real**2 + spectrum.imag**2) / len(block)
        padded = np.concatenate((power, np.zeros((1, power.shape[1]))))
        bands = np.add.reduceat(padded, self._cuts, axis=0)[::2] / self._widths
        values = np.log10(bands + self._features.floor).T.reshape(-1, self.row_length())
        scaled = (values - self._mean) / self._scale
        rows: Rows = np.clip(scaled, -self._features.clip, self._features.clip).astype(np.float32)
        return rows


def band_bins(features: LogBands, samples: int, rate_hz: float) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return for each band the first bin of the real FFT that belongs to it, and the first that does not.

    Raises:
        ModelError: the bands are not within 0 and half the rate.
    """
    if not 0 < features.low_hz < features.high_hz <= rate_hz / 2:
        raise ModelError(
            f"input.features: bands from {features.low_hz:g} to {features.high_hz:g} Hz are not within 0 and "
            f"{rate_hz / 2:g} Hz, half the rate"
        )
    bins = np.fft.rfftfreq(samples, 1 / rate_hz)
    edges = np.geomspace(features.low_hz, features.high_hz, features.bands + 1)
    cuts = np.searchsorted(bins, edges, side="left")
    starts, ends = cuts[:-1].astype(np.int64), cuts[1:].astype(np.int64)
    centres = np.sqrt(edges[:-1] * edges[1:])
    nearest = np.abs(bins[None, :] - centres[:, None]).argmin(axis=1)
    empty = starts == ends
    return np.where(empty, nearest, starts), np.where(empty, nearest + 1, ends)


class StandardisedFeatures:
    """Samples against a slow baseline of each channel, for process values.

    `(sample - median) / max(spread, floor)`, clipped to ±`clip`; the spread is 1.4826 times the median absolute
    deviation from that median. Both are taken over the new samples of the last `baseline_windows` windows before this
    one. New in a window are its last `hop_samples` samples, in the first window all. The first window has none before
    it and is measured against itself. Every window enters the baseline after it was measured, unless `exclude_last`
    takes it out again.
    """

    def __init__(self, spec: WindowInput, features: Standardised) -> None:
        self._spec, self._features = spec, features
        self._fresh: deque[NDArray[np.float32]] = deque(maxlen=features.baseline_windows)
        self._pushed_out: NDArray[np.float32] | None = None
        self._excludable = False

    def row_length(self) -> int:
        """Samples, times the channels unless each is a row."""
        return self._spec.samples * (1 if self._spec.per_channel else self._spec.channels)

    def rows(self, samples: NDArray[np.float32]) -> Rows:
        """Return (channels, samples) or (1, channels * samples), all samples of channel 0 first."""
        baseline = np.concatenate(self._fresh) if self._fresh else samples
        median = np.median(baseline.astype(np.float64), axis=0)
        spread = MAD_TO_SIGMA * np.median(np.abs(baseline - median), axis=0)
        scaled = (samples - median) / np.maximum(spread, self._features.floor)
        self._remember(samples)
        rows = np.clip(scaled, -self._features.clip, self._features.clip).T.reshape(-1, self.row_length())
        return rows.astype(np.float32)

    def exclude_last(self) -> None:
        """Take the last window out of the baseline, because it was no example of what is normal."""
        if not self._excludable:
            return
        self._fresh.pop()
        if self._pushed_out is not None:
            self._fresh.appendleft(self._pushed_out)
        self._excludable = False

    def _remember(self, samples: NDArray[np.float32]) -> None:
        full = len(self._fresh) == self._fresh.maxlen
        self._pushed_out = self._fresh[0] if full else None
        new = samples[-self._spec.hop_samples :] if self._fresh else samples
        self._fresh.append(new.copy())
        self._excludable = True


class LogMelFeatures(_Stateless):
    """Log-mel spectrogram as `gateway.preprocess.mel` defines it; stacks of frames become rows."""

    def __init__(self, spec: WindowInput, features: LogMel) -> None:
        if spec.channels != 1 and not spec.per_channel:
            raise ModelError(f"input: log-mel of {spec.channels} channels needs per_channel")
        frames = frame_count(features, spec.samples)
        if frames < features.stack:
            raise ModelError(
                f"input: a window of {spec.samples} samples has {frames} frames, fewer than one input needs "
                f"({features.stack})"
            )
        self._features, self._frames = features, frames
        self._spectrum = MelSpectrum(features, spec.rate_hz)

    def row_length(self) -> int:
        """Mels, times the frames of one input."""
        return self._features.mels * (self._features.stack if self._features.stack > 1 else self._frames)

    def rows(self, samples: NDArray[np.float32]) -> Rows:
        """Return (channels, frames * mels), or (channels * (frames - stack + 1), stack * mels)."""
        spectra = [self._spectrum(samples[:, channel]) for channel in range(samples.shape[1])]
        if self._features.stack > 1:
            return np.concatenate([stacked(frames, self._features.stack) for frames in spectra])
        return np.stack([frames.reshape(-1) for frames in spectra])


class PlainFeatures(_Stateless):
    """The samples as they are: `(sample - mean) / scale`, `mean` and `scale` per channel or one for all.

    One row goes sample by sample; with `per_channel`, row c holds the samples of channel c, and a single `mean` and
    `scale` serve all channels.
    """

    def __init__(self, spec: WindowInput, features: Plain) -> None:
        self._spec = spec
        length = 1 if spec.per_channel else spec.channels
        self._mean = per_row("mean", features.mean, length)
        self._scale = per_row("scale", features.scale, length)

    def row_length(self) -> int:
        """Samples, times the channels unless each is a row."""
        return self._spec.samples * (1 if self._spec.per_channel else self._spec.channels)

    def rows(self, samples: NDArray[np.float32]) -> Rows:
        """Return (channels, samples) or (1, samples * channels)."""
        scaled = ((samples - self._mean) / self._scale).astype(np.float32)
        return np.ascontiguousarray(scaled.T) if self._spec.per_channel else scaled.reshape(1, -1)
