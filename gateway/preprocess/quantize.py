"""Between real numbers and the integers of a quantized tensor: `real = scale * (integer - zero_point)`."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

TENSOR_DTYPES = frozenset({"float32", "int8", "uint8", "int16"})
"""Input types a preparation can fill."""


def quantize(values: NDArray[np.floating[Any]], dtype: str, scale: float, zero_point: int) -> NDArray[Any]:
    """Return the values as a tensor of type `dtype`, same shape; halves go to the even neighbour, the rest saturates.

    A tensor that declares no quantization (scale 0) takes integers as they are.
    """
    if dtype == "float32":
        return np.ascontiguousarray(values, dtype=np.float32)
    limits = np.iinfo(dtype)
    steps = np.rint(values / scale if scale else values) + (zero_point if scale else 0)
    quantized: NDArray[Any] = np.clip(steps, limits.min, limits.max).astype(dtype)
    return quantized


def pixel_table(
    mean: tuple[float, ...], scale: tuple[float, ...], dtype: str, step: float, zero_point: int
) -> NDArray[Any]:
    """Return what each of the 256 values of a pixel becomes, shape (256, len(mean) or len(scale)).

    Args:
        mean: per channel, or one for all.
        scale: per channel, or one for all.
        dtype: type of the tensor.
        step: scale of the tensor's quantization.
        zero_point: zero point of the tensor's quantization.
    """
    pixels = np.arange(256, dtype=np.float64)[:, None]
    reals = (pixels - np.asarray(mean, dtype=np.float64)) / np.asarray(scale, dtype=np.float64)
    return quantize(reals, dtype, step, zero_point)
