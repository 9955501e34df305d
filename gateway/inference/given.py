"""What a model is given, in two numbers for each row of its input tensor, so that a release on trial can be judged.

* `level`: mean of the row;
* `spread`: its standard deviation.

Both of about 4,096 values of a row, in the unit that the model was trained in (integers are turned back by scale and
zero point), so that a release whose manifest says another scale, or whose tensor saturates, is given other numbers.
"""

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from gateway.inference.backend import TensorSpec

Given = tuple[tuple[str, tuple[float, ...]], ...]

_VALUES: Final = 4096


def describe(tensor: NDArray[Any], spec: TensorSpec) -> Given:
    """Describe a tensor (rows, ...) of the type that `spec` declares."""
    flat = tensor.reshape(len(tensor), -1)
    step = max(1, flat.shape[1] // _VALUES)
    step += step % 3 == 0  # else one colour of a picture would stand for all
    values = flat[:, ::step].astype(np.float32)
    scale, zero = (spec.scale, spec.zero_point) if spec.scale else (1.0, 0)
    level = (values.mean(axis=1, dtype=np.float64) - zero) * scale
    spread = values.std(axis=1, dtype=np.float64) * scale
    return (("level", tuple(level.tolist())), ("spread", tuple(spread.tolist())))
