"""A sensor that says the same again and again is noticed."""

import numpy as np
import pytest
from numpy.typing import NDArray

from gateway.config import HealthSource, IioSource, ModbusSource, SerialSource
from gateway.sources.still import StillnessWatch, watch_for
from gateway.values import SampleBlock

SECOND = 1_000_000_000


def block(seconds: float, samples: list[list[float]] | NDArray[np.float32]) -> SampleBlock:
    return SampleBlock("motor", 1, int(seconds * SECOND), 10.0, np.asarray(samples, np.float32))


def test_a_channel_that_stands_still_is_named_after_its_time_and_not_before() -> None:
    watch = StillnessWatch(10.0)
    found = {second: watch.frozen_channels(block(second, [[1.0, second / 10], [1.0, second]])) for second in range(13)}
    assert [second for second, channels in found.items() if channels] == [10, 11, 12]
    assert found[10] == (0,)


def test_the_noise_of_a_working_sensor_is_enough() -> None:
    watch, noise = StillnessWatch(10.0), np.random.default_rng(1)
    for second in range(100):
        samples = (20.0 + 1e-4 * noise.standard_normal((10, 2))).astype(np.float32)
        assert watch.frozen_channels(block(second, samples)) == ()


def test_a_change_within_a_block_counts() -> None:
    watch = StillnessWatch(10.0)
    for second in range(50):
        assert watch.frozen_channels(block(second, [[1.0], [2.0], [1.0]])) == ()


def test_a_channel_that_says_nan_for_ever_stands_still() -> None:
    watch = StillnessWatch(10.0)
    found = [watch.frozen_channels(block(second, [[float("nan")]])) for second in range(12)]
    assert found[-1] == (0,)


def test_it_is_over_with_the_first_other_value() -> None:
    watch = StillnessWatch(10.0)
    for second in range(20):
        watch.frozen_channels(block(second, [[1.0]]))
    assert watch.frozen_channels(block(20, [[1.5]])) == ()
    assert watch.frozen_channels(block(29, [[1.5]])) == ()


def test_another_number_of_channels_begins_anew() -> None:
    watch = StillnessWatch(10.0)
    watch.frozen_channels(block(0, [[1.0]]))
    assert watch.frozen_channels(block(20, [[1.0, 1.0]])) == ()
    assert watch.frozen_channels(block(21, [])) == ()


@pytest.mark.parametrize(
    ("settings", "watched"),
    [
        (IioSource(device="adxl", channels=["x"], rate_hz=10), True),
        (IioSource(device="adxl", channels=["x"], rate_hz=10, frozen_after_seconds=None), False),
        (ModbusSource(device="tcp://a", registers=[]), False),
        (ModbusSource(device="tcp://a", registers=[], frozen_after_seconds=60.0), True),
        (SerialSource(device="/dev/ttyS0", rate_hz=1), False),  # type: ignore[arg-type]
        (HealthSource(), False),
    ],
)
def test_values_that_may_honestly_stand_still_are_watched_only_on_request(settings: object, watched: bool) -> None:
    assert (watch_for(settings) is not None) is watched
