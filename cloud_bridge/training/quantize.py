"""Float .tflite to full int8: weights, activations, input and output."""

import contextlib
import io
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
from litert_quantizer import calibrator, quantizer, recipe, recipe_manager
from litert_quantizer.utils import qsv_utils
from numpy.typing import NDArray

from cloud_bridge.training.flatbuffer import SIGNATURE

Range = tuple[float, float]
_NONE: Final[Mapping[str, Range]] = {}


def to_int8(
    model: bytes, input_name: str, samples: Sequence[NDArray[np.float32]], limits: Mapping[str, Range] = _NONE
) -> bytes:
    """Quantize a float model.

    The range of a tensor is the whole range seen in `samples`: an anomaly detector is broken by an average range,
    which cuts off exactly what is rare. So the samples must contain what the model shall still tell apart.

    Args:
        model: the float file; weights are constants.
        input_name: of the signature's input.
        samples: each one input, with its batch dimension.
        limits: tensors whose range is cut, because what lies outside does not matter.
    """
    with (
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore", UserWarning)
        ranges = _ranges(model, input_name, samples)
        for name, (low, high) in limits.items():
            seen = ranges[name]
            ranges[name] = {**seen, "min": np.maximum(seen["min"], low), "max": np.minimum(seen["max"], high)}
        job = quantizer.Quantizer(bytearray(model))
        job.load_quantization_recipe(recipe.static_wi8_ai8())
        return bytes(job.quantize(ranges).quantized_model)


def _ranges(model: bytes, input_name: str, samples: Sequence[NDArray[np.float32]]) -> dict[str, Any]:
    manager = recipe_manager.RecipeManager()
    manager.load_quantization_recipe(recipe.static_wi8_ai8())
    seeing = calibrator.Calibrator(model, num_threads=1, qsv_update_func=qsv_utils.min_max_update)
    seeing.calibrate({SIGNATURE: [{input_name: sample} for sample in samples]}, manager)
    ranges: dict[str, Any] = seeing.get_model_qsvs()
    return ranges
