"""Log-mel spectrograms."""

import numpy as np
import pytest

from gateway.preprocess.mel import MelSpectrum, frame_count, hz_of_mel, mel_filters, mel_of_hz, stacked
from gateway.wire.manifest import LogMel

SPEC = LogMel(mels=128, fft_samples=1024, hop_samples=512)


def test_it_agrees_with_librosa() -> None:
    """The figures are those of librosa 0.11: melspectrogram(sr=16000, n_fft=1024, hop_length=512, center=False)."""
    t = np.arange(16000) / 16000
    signal = (0.5 * np.sin(2 * np.pi * 440 * t) + 0.2 * np.sin(2 * np.pi * 3000 * t**2)).astype(np.float32)
    spectrum = MelSpectrum(SPEC, 16000)(signal)
    assert spectrum.shape == (30, 128)
    places = [(0, 0), (0, 18), (10, 18), (10, 60), (29, 127), (20, 100)]
    figures = [-7.6771, 28.1517, 28.1511, -75.591, -114.5911, 12.7887]
    assert [float(spectrum[place]) for place in places] == pytest.approx(figures, abs=1e-3)


def test_the_mel_scale_is_slaneys() -> None:
    assert mel_of_hz(1000.0) == pytest.approx(15.0)
    assert mel_of_hz(6400.0) == pytest.approx(42.0)  # 27 mels for a factor of 6.4
    there = np.array([mel_of_hz(hz) for hz in (60.0, 999.0, 1001.0, 7000.0)])
    assert hz_of_mel(there) == pytest.approx([60.0, 999.0, 1001.0, 7000.0])


def test_wide_triangles_have_the_same_area() -> None:
    filters = mel_filters(LogMel(mels=20, fft_samples=8192, hop_samples=512), 16000)
    assert filters.sum(axis=1) * (16000 / 8192) == pytest.approx(np.ones(20), rel=0.01)


def test_frames_exist_only_where_all_samples_do() -> None:
    assert [frame_count(SPEC, n) for n in (1023, 1024, 1535, 1536, 16000)] == [0, 1, 1, 2, 30]


def test_magnitude_and_power_differ_only_by_how_triangles_add_up() -> None:
    tone = np.sin(2 * np.pi * 1000 * np.arange(4096) / 16000).astype(np.float32)
    power = MelSpectrum(SPEC, 16000)(tone)
    magnitude = MelSpectrum(LogMel(mels=128, fft_samples=1024, hop_samples=512, power=1.0), 16000)(tone)
    assert power.argmax(axis=1).tolist() == magnitude.argmax(axis=1).tolist()


def test_stacks_slide_by_one_frame() -> None:
    frames = np.arange(8, dtype=np.float32).reshape(4, 2)
    assert stacked(frames, 3).tolist() == [[0, 1, 2, 3, 4, 5], [2, 3, 4, 5, 6, 7]]
