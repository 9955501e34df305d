"""Quantization of inputs."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from gateway.preprocess.quantize import pixel_table, quantize


@given(st.lists(st.floats(-3.0, 3.0), min_size=1, max_size=50), st.integers(-128, 127))
def test_what_is_within_range_comes_back_within_half_a_step(values: list[float], zero_point: int) -> None:
    scale = 0.05
    low, high = scale * (-128 - zero_point), scale * (127 - zero_point)
    inside = np.clip(np.array(values), low, high)
    back = scale * (quantize(inside, "int8", scale, zero_point).astype(np.float64) - zero_point)
    assert np.abs(back - inside).max() <= scale / 2 + 1e-6


def test_what_is_out_of_range_saturates() -> None:
    assert quantize(np.array([-1e9, 1e9]), "int8", 0.1, 3).tolist() == [-128, 127]
    assert quantize(np.array([-1e9, 1e9]), "uint8", 0.1, 3).tolist() == [0, 255]
    assert quantize(np.array([-1e9, 1e9]), "int16", 0.1, 0).tolist() == [-32768, 32767]


def test_a_float_tensor_takes_the_values_as_they_are() -> None:
    values = np.array([[0.1, -7.5]])
    taken = quantize(values, "float32", 0.0, 0)
    assert taken.dtype == np.float32
    assert np.allclose(taken, values)


def test_integers_without_quantization_are_plain_integers() -> None:
    assert quantize(np.array([0.0, 17.4, 300.0]), "uint8", 0.0, 0).tolist() == [0, 17, 255]


def test_the_pixel_table_is_normalisation_then_quantization() -> None:
    table = pixel_table((10.0, 20.0, 30.0), (2.0, 3.0, 4.0), "int8", 0.7, -5)
    assert table.shape == (256, 3)
    expected = np.clip(np.rint((200 - 20.0) / 3.0 / 0.7) - 5, -128, 127)
    assert table[200, 1] == expected
