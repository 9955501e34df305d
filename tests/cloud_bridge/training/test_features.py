import numpy as np
import pytest

from cloud_bridge.training.features import band_matrix, log_bands, scaled, standardised, windows_of
from gateway.preprocess.features import extractor_for
from gateway.wire.manifest import LogBands, Standardised, WindowInput

RATE_HZ = 3200.0


def test_log_bands_are_those_of_the_device() -> None:
    random = np.random.default_rng(1)
    samples = random.normal(0, 0.2, (5 * 3200, 3)) + 0.5
    features = LogBands(
        bands=32,
        low_hz=10.0,
        high_hz=1600.0,
        mean=tuple(random.normal(-3, 1, 96)),
        scale=tuple(random.uniform(0.2, 2, 96)),
        clip=6.0,
    )
    device = extractor_for(WindowInput(samples=3200, hop_samples=3200, channels=3, rate_hz=RATE_HZ, features=features))
    windows = windows_of(samples.astype(np.float32).astype(np.float64), 3200, 3200)
    here = scaled(log_bands(windows, RATE_HZ, bands=32, low_hz=10.0, high_hz=1600.0), features)
    there = np.concatenate([device.rows(window.astype(np.float32)) for window in windows])
    assert here.shape == there.shape == (5, 96)
    np.testing.assert_allclose(here, there, atol=1e-5)


def test_log_bands_with_empty_bands_are_those_of_the_device() -> None:
    samples = np.random.default_rng(2).normal(0, 1, (200, 3)).astype(np.float32)
    features = LogBands(bands=32, low_hz=1.0, high_hz=100.0, mean=(0.0,), scale=(1.0,))
    device = extractor_for(WindowInput(samples=200, hop_samples=200, channels=3, rate_hz=200.0, features=features))
    here = scaled(log_bands(samples[None].astype(np.float64), 200.0, bands=32, low_hz=1.0, high_hz=100.0), features)
    np.testing.assert_allclose(here, device.rows(samples), atol=1e-5)


@pytest.mark.parametrize(("window", "hop", "baseline"), [(32, 8, 128), (32, 8, 5), (16, 16, 4)])
def test_standardised_windows_are_those_of_the_device_from_the_first_to_long_after(
    window: int, hop: int, baseline: int
) -> None:
    series = np.cumsum(np.random.default_rng(3).normal(0, 1, 2000)).astype(np.float32)
    features = Standardised(baseline_windows=baseline, floor=0.2, clip=8.0)
    device = extractor_for(
        WindowInput(samples=window, hop_samples=hop, rate_hz=1.0, features=features, per_channel=True)
    )
    here = standardised(series.astype(np.float64), window, hop, features)
    cuts = windows_of(series[:, None].astype(np.float64), window, hop)
    there = np.concatenate([device.rows(cut.astype(np.float32)) for cut in cuts])
    np.testing.assert_allclose(here, there, atol=1e-5)


def test_a_band_without_a_bin_takes_the_nearest() -> None:
    matrix = band_matrix(20, 20.0, 1.0, 10.0, 16)  # bins of 1 Hz, bands of 0.15 Hz at the low end
    np.testing.assert_allclose(matrix.sum(axis=1), 1.0)


def test_what_does_not_fill_a_window_is_left_out() -> None:
    assert windows_of(np.zeros((41, 2)), 32, 8).shape == (2, 32, 2)
    assert windows_of(np.zeros((31, 2)), 32, 8).shape == (0, 32, 2)
