"""What a model is given, in numbers: the same whatever type its tensor has, and the same as training says."""

import time

import numpy as np
import pytest

from cloud_bridge.training.baseline import baseline_of, tensor_statistics
from gateway.inference.backend import TensorSpec
from gateway.inference.given import describe
from gateway.preprocess.quantize import quantize

ROWS = np.random.default_rng(1).normal(1.5, 2.0, (3, 96)).astype(np.float32)


def spec(dtype: str, scale: float = 0.0, zero_point: int = 0) -> TensorSpec:
    return TensorSpec("in", (1, 96), dtype, scale, zero_point)


def test_each_row_has_its_own_level_and_spread() -> None:
    found = dict(describe(ROWS, spec("float32")))
    np.testing.assert_allclose(found["level"], ROWS.mean(axis=1), rtol=1e-5)
    np.testing.assert_allclose(found["spread"], ROWS.std(axis=1), rtol=1e-5)


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16"])
def test_integers_are_turned_back(dtype: str) -> None:
    scale, zero = (0.0005, 0) if dtype == "int16" else (0.1, 128 if dtype == "uint8" else 0)
    found = dict(describe(quantize(ROWS, dtype, scale, zero), spec(dtype, scale, zero)))
    np.testing.assert_allclose(found["level"], ROWS.mean(axis=1), atol=scale)
    np.testing.assert_allclose(found["spread"], ROWS.std(axis=1), atol=scale)
    saturated = dict(describe(quantize(ROWS, dtype, scale / 100, zero), spec(dtype, scale / 100, zero)))
    assert max(saturated["spread"]) < min(found["spread"]) / 2  # a range that is too narrow shows


def test_training_describes_what_it_gives_as_the_device_does() -> None:
    ours, theirs = tensor_statistics(ROWS), dict(describe(ROWS, spec("float32")))
    assert set(ours) == set(theirs)
    for name, values in ours.items():
        np.testing.assert_allclose(values, theirs[name], rtol=1e-5)
    made = baseline_of([0.1], {}, {name: values.tolist() for name, values in ours.items()})
    assert {name: sum(each.counts) for name, each in made.tensor.items()} == {"level": 3, "spread": 3}


def test_all_colours_of_a_picture_count_and_it_costs_next_to_nothing() -> None:
    picture = np.zeros((1, 320, 320, 3), np.uint8)
    picture[..., 2] = 240
    tensor = TensorSpec("in", (1, 320, 320, 3), "uint8", 0.0, 0)
    assert dict(describe(picture, tensor))["level"][0] == pytest.approx(80, rel=0.02)
    times = []
    for _ in range(30):
        started = time.perf_counter()
        describe(picture, tensor)
        times.append(time.perf_counter() - started)
    assert min(times) < 0.002
