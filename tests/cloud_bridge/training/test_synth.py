import numpy as np
import pytest

from cloud_bridge.training.synth import loops, machine


def spectrum(samples: np.ndarray) -> np.ndarray:
    """The amplitude at each whole frequency of ten seconds of the first axis, in g."""
    window = np.hanning(len(samples))
    amplitudes: np.ndarray = np.abs(np.fft.rfft(samples[:, 0] * window))[::10] * 2 / window.sum()
    return amplitudes


def run(fault: machine.Fault | None, seed: int = 7) -> np.ndarray:
    random = np.random.default_rng(seed)
    faults = np.zeros((10, len(machine.FAULTS)))
    if fault:
        faults[:, machine.FAULTS.index(fault)] = 0.8
    return machine.run(machine.build_machine(random), 10, random, faults)


def test_the_same_seed_makes_the_same_recording() -> None:
    np.testing.assert_array_equal(run(None), run(None))
    assert not np.array_equal(run(None), run(None, seed=8))


def test_the_sensor_has_its_steps_and_its_limit() -> None:
    samples = run("outer-race")
    np.testing.assert_allclose(np.round(samples / machine.SENSOR_STEP_G), samples / machine.SENSOR_STEP_G)
    sensed = machine.sense(np.full((10, 3), 99.0), np.random.default_rng(1))
    assert sensed.max() <= 16


def test_imbalance_shows_at_the_shaft_speed_and_misalignment_at_twice() -> None:
    healthy, imbalance, misalignment = (spectrum(run(fault)) for fault in (None, "imbalance", "misalignment"))
    once, twice = slice(23, 27), slice(47, 52)
    assert imbalance[once].max() > 3 * healthy[once].max()
    assert misalignment[twice].max() > 3 * healthy[twice].max()
    assert imbalance[twice].max() < 2 * healthy[twice].max()


def test_an_outer_race_defect_is_impulsive() -> None:
    def kurtosis(samples: np.ndarray) -> float:
        centred = samples[:, 0] - samples[:, 0].mean()
        return float((centred**4).mean() / (centred**2).mean() ** 2)

    assert kurtosis(run("outer-race")) > 1.5 * kurtosis(run(None))


@pytest.mark.parametrize("kind", loops.KINDS)
def test_series_are_finite_and_reproducible(kind: object) -> None:
    assert callable(kind)
    first, second = (kind(500, np.random.default_rng(3)) for _ in range(2))
    np.testing.assert_array_equal(first, second)
    assert np.isfinite(first).all()
    assert first.shape == (500,)


@pytest.mark.parametrize("kind", loops.TROUBLES)
def test_trouble_changes_its_own_stretch_and_nothing_else(kind: loops.Trouble) -> None:
    random = np.random.default_rng(4)
    series = loops.temperature(800, random)
    wrong = loops.trouble(series, kind, 500, spread=1.0, strength=8.0, random=random)
    changed = np.flatnonzero(wrong.series != series)
    assert len(changed)
    assert changed.min() >= 500 == wrong.start
    assert changed.max() <= wrong.end
    np.testing.assert_array_equal(wrong.clean, series)
