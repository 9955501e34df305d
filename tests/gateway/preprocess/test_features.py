"""Features, against their definitions written down a second time."""

import numpy as np
import pytest
from numpy.typing import NDArray

from gateway.errors import ModelError
from gateway.preprocess.features import band_bins, extractor_for
from gateway.wire.manifest import LogBands, LogMel, Plain, Standardised, WindowInput

Samples = NDArray[np.float32]


def signal(samples: int, channels: int, seed: int = 1) -> Samples:
    return np.random.default_rng(seed).normal(5.0, 2.0, (samples, channels)).astype(np.float32)


def bands_by_the_book(block: Samples, spec: LogBands, rate_hz: float) -> list[float]:
    n = len(block)
    freqs = np.fft.rfftfreq(n, 1 / rate_hz)
    edges = np.geomspace(spec.low_hz, spec.high_hz, spec.bands + 1)
    values = []
    for channel in range(block.shape[1]):
        one = block[:, channel].astype(np.float64)
        power = np.abs(np.fft.rfft((one - one.mean()) * np.hanning(n))) ** 2 / n
        for k in range(spec.bands):
            inside = (freqs >= edges[k]) & (freqs < edges[k + 1])
            centre = np.sqrt(edges[k] * edges[k + 1])
            mean = power[inside].mean() if inside.any() else power[np.abs(freqs - centre).argmin()]
            values.append(np.log10(mean + spec.floor))
    scaled = (np.array(values) - np.array(spec.mean)) / np.array(spec.scale)
    return [float(v) for v in np.clip(scaled, -spec.clip, spec.clip)]


@pytest.mark.parametrize(("bands", "low", "high"), [(32, 2.0, 100.0), (64, 1.0, 99.0), (5, 10.0, 50.0)])
def test_log_bands_are_what_the_definition_says(bands: int, low: float, high: float) -> None:
    rng = np.random.default_rng(3)
    mean, scale = tuple(rng.normal(size=bands * 3)), tuple(rng.uniform(0.2, 2.0, bands * 3))
    spec = LogBands(bands=bands, low_hz=low, high_hz=high, mean=mean, scale=scale)
    extractor = extractor_for(WindowInput(samples=200, hop_samples=200, channels=3, rate_hz=200, features=spec))
    block = signal(200, 3)
    rows = extractor.rows(block)
    assert rows.shape == (1, bands * 3) == (1, extractor.row_length())
    assert rows.dtype == np.float32
    assert rows[0] == pytest.approx(bands_by_the_book(block, spec, 200.0), abs=1e-5)


def test_log_bands_of_each_channel_alone_have_one_mean_a_band() -> None:
    spec = LogBands(bands=4, low_hz=2, high_hz=90, mean=(0.1, 0.2, 0.3, 0.4), scale=(1.0,))
    window = WindowInput(samples=100, hop_samples=50, channels=1, rate_hz=200, features=spec, per_channel=True)
    block = signal(100, 3)
    rows = extractor_for(window).rows(block)
    assert rows.shape == (3, 4)
    for channel in range(3):
        assert rows[channel] == pytest.approx(bands_by_the_book(block[:, channel : channel + 1], spec, 200.0), abs=1e-5)


def test_a_band_without_a_bin_takes_the_nearest() -> None:
    spec = LogBands(bands=50, low_hz=1.0, high_hz=99.0, mean=(0.0,), scale=(1.0,))
    starts, ends = band_bins(spec, 200, 200.0)
    assert (ends > starts).all()
    assert ends.max() <= 101


def test_the_highest_bin_can_be_the_nearest() -> None:
    spec = LogBands(bands=8, low_hz=90.0, high_hz=100.0, mean=(0.0,), scale=(1.0,))
    extractor = extractor_for(WindowInput(samples=20, hop_samples=20, rate_hz=200, features=spec))
    assert np.isfinite(extractor.rows(signal(20, 1))).all()


@pytest.mark.parametrize(("low", "high"), [(0.0, 50.0), (10.0, 101.0), (50.0, 10.0)])
def test_bands_beyond_half_the_rate_are_refused(low: float, high: float) -> None:
    spec = LogBands(bands=4, low_hz=low, high_hz=high, mean=(0.0,), scale=(1.0,))
    with pytest.raises(ModelError, match="half the rate"):
        extractor_for(WindowInput(samples=200, hop_samples=200, rate_hz=200, features=spec))


def test_a_mean_of_the_wrong_length_says_how_many_are_wanted() -> None:
    spec = LogBands(bands=4, low_hz=1, high_hz=50, mean=(0.0,) * 5, scale=(1.0,))
    with pytest.raises(ModelError, match=r"features\.mean: expected 4 values .* found 5"):
        extractor_for(WindowInput(samples=200, hop_samples=200, rate_hz=200, features=spec))


def standardised(baseline_windows: int = 3, *, hop: int = 4, clip: float = 8.0) -> WindowInput:
    return WindowInput(
        samples=8,
        hop_samples=hop,
        channels=2,
        rate_hz=1,
        features=Standardised(baseline_windows=baseline_windows, clip=clip, floor=0.01),
        per_channel=True,
    )


def against(baseline: Samples, window: Samples, *, floor: float = 0.01, clip: float = 8.0) -> Samples:
    median = np.median(baseline, axis=0)
    spread = 1.4826 * np.median(np.abs(baseline - median), axis=0)
    return np.asarray(np.clip((window - median) / np.maximum(spread, floor), -clip, clip).T, dtype=np.float32)


def test_the_first_window_is_measured_against_itself() -> None:
    window = signal(8, 2)
    assert np.allclose(extractor_for(standardised()).rows(window), against(window, window), atol=1e-5)


def test_later_windows_are_measured_against_the_new_samples_of_those_before() -> None:
    stream = signal(8 + 4 * 6, 2)
    windows = [stream[at : at + 8] for at in range(0, len(stream) - 7, 4)]
    extractor = extractor_for(standardised(baseline_windows=3))
    answers = [extractor.rows(window) for window in windows]
    assert np.allclose(answers[1], against(stream[:8], windows[1]), atol=1e-5)
    assert np.allclose(answers[2], against(stream[:12], windows[2]), atol=1e-5)
    assert np.allclose(answers[3], against(stream[:16], windows[3]), atol=1e-5)
    # From here the first window has left: its eight samples go as one.
    assert np.allclose(answers[4], against(stream[8:20], windows[4]), atol=1e-5)


def test_an_excluded_window_leaves_no_trace_in_the_baseline() -> None:
    for warm in (1, 2, 3, 5):  # before and after the baseline is full
        with_it, without_it = extractor_for(standardised()), extractor_for(standardised())
        for seed in range(warm):
            with_it.rows(signal(8, 2, seed))
            without_it.rows(signal(8, 2, seed))
        with_it.rows(signal(8, 2, 99) + 1000)
        with_it.exclude_last()
        with_it.exclude_last()  # a second call takes nothing more
        following = signal(8, 2, 50)
        assert np.allclose(with_it.rows(following), without_it.rows(following))


def test_without_exclusion_an_anomalous_window_moves_the_baseline() -> None:
    extractor = extractor_for(standardised(baseline_windows=1, hop=8))
    extractor.rows(signal(8, 2, 1))
    extractor.rows(signal(8, 2, 2) + 1000)
    assert extractor.rows(signal(8, 2, 3)).max() == -8.0


def test_a_constant_signal_is_all_zeros_and_a_jump_is_clipped() -> None:
    extractor = extractor_for(standardised())
    assert (extractor.rows(np.full((8, 2), 20.0, np.float32)) == 0).all()
    assert (extractor.rows(np.full((8, 2), 21.0, np.float32)) == 8.0).all()


def test_all_channels_in_one_row_stand_one_after_the_other() -> None:
    spec = WindowInput(samples=3, hop_samples=3, channels=2, rate_hz=1, features=Standardised(floor=1.0))
    window = np.array([[0, 10], [1, 20], [2, 30]], dtype=np.float32)
    assert extractor_for(spec).rows(window)[0].tolist() == pytest.approx(
        [-0.6745, 0, 0.6745, -0.6745, 0, 0.6745], abs=1e-3
    )


def test_plain_goes_sample_by_sample() -> None:
    plain = Plain(mean=(1.0, 2.0), scale=(1.0, 2.0))
    spec = WindowInput(samples=2, hop_samples=2, channels=2, rate_hz=1, features=plain)
    assert extractor_for(spec).rows(np.array([[1, 4], [3, 8]], np.float32)).tolist() == [[0.0, 1.0, 2.0, 3.0]]


def test_plain_per_channel_has_a_row_for_each() -> None:
    spec = WindowInput(samples=2, hop_samples=2, rate_hz=1, features=Plain(mean=(1.0,)), per_channel=True)
    assert extractor_for(spec).rows(np.array([[1, 4], [3, 8]], np.float32)).tolist() == [[0.0, 2.0], [3.0, 7.0]]


def test_a_scale_of_zero_is_refused() -> None:
    with pytest.raises(ModelError, match="holds a zero"):
        extractor_for(WindowInput(samples=2, hop_samples=2, rate_hz=1, features=Plain(scale=(0.0,))))


def test_log_mel_stacks_are_rows_and_channels_follow_each_other() -> None:
    mel = LogMel(mels=8, fft_samples=64, hop_samples=32, stack=5)
    spec = WindowInput(samples=512, hop_samples=512, rate_hz=1000, features=mel, per_channel=True)
    extractor = extractor_for(spec)
    block = signal(512, 2)
    rows = extractor.rows(block)
    assert rows.shape == (2 * (15 - 5 + 1), 40)
    assert extractor.row_length() == 40
    assert (rows[11:] == extractor.rows(block[:, 1:])).all()


def test_log_mel_without_stacks_is_one_row_of_all_frames() -> None:
    mel = LogMel(mels=8, fft_samples=64, hop_samples=32)
    extractor = extractor_for(WindowInput(samples=512, hop_samples=512, rate_hz=1000, features=mel))
    assert extractor.rows(signal(512, 1)).shape == (1, 15 * 8)
    assert extractor.row_length() == 120


def test_log_mel_wants_one_channel_or_each_alone_and_enough_samples() -> None:
    mel = LogMel(mels=8, fft_samples=64, hop_samples=32, stack=5)
    with pytest.raises(ModelError, match="needs per_channel"):
        extractor_for(WindowInput(samples=512, hop_samples=512, channels=2, rate_hz=1000, features=mel))
    with pytest.raises(ModelError, match="4 frames, fewer than one input needs"):
        extractor_for(WindowInput(samples=160, hop_samples=160, rate_hz=1000, features=mel))
