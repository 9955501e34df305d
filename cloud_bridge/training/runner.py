"""Runs a .tflite over many inputs, float or int8 alike, as the device does: quantize, invoke, dequantize."""

from collections.abc import Sequence

import numpy as np
from ai_edge_litert.interpreter import Interpreter
from numpy.typing import NDArray

Array = NDArray[np.float32]


class Runner:
    """One model on one CPU thread."""

    def __init__(self, model: bytes) -> None:
        """Load the model; raises ValueError or RuntimeError of the runtime if it is not usable."""
        self._interpreter = Interpreter(model_content=model, num_threads=1)
        self._interpreter.allocate_tensors()
        (self._input,) = self._interpreter.get_input_details()
        self._outputs = self._interpreter.get_output_details()

    @property
    def output_names(self) -> list[str]:
        """The names of the outputs, in the order of the answers."""
        return [str(output["name"]) for output in self._outputs]

    def raw(self, row: Array) -> tuple[NDArray[np.generic], list[NDArray[np.generic]]]:
        """Run one input (1, …); returns the tensors as the model has them, input and outputs."""
        tensor = self._quantized(row)
        return tensor, self._invoke(tensor)

    def from_bytes(self, data: bytes) -> list[NDArray[np.generic]]:
        """Run the raw little-endian bytes of an input tensor; returns the output tensors.

        Raises:
            ValueError: they are no tensor of this model.
        """
        dtype = np.dtype(self._input["dtype"])
        tensor = np.frombuffer(data, dtype.newbyteorder("<")).astype(dtype)
        return self._invoke(tensor.reshape(self._input["shape"]))

    def _invoke(self, tensor: NDArray[np.generic]) -> list[NDArray[np.generic]]:
        self._interpreter.set_tensor(self._input["index"], tensor)
        self._interpreter.invoke()
        return [self._interpreter.get_tensor(output["index"]) for output in self._outputs]

    def answers(self, row: Array) -> list[Array]:
        """Run one input (1, …); returns the outputs in real units."""
        _, tensors = self.raw(row)
        return [_real(tensor, output["quantization"]) for tensor, output in zip(tensors, self._outputs, strict=True)]

    def rows(self, rows: Array) -> Array:
        """Run a model with one output over (n, …) inputs."""
        return np.concatenate([self.answers(row[None])[0] for row in rows])

    def _quantized(self, row: Array) -> NDArray[np.generic]:
        dtype = np.dtype(self._input["dtype"])
        if dtype == np.float32:
            return row.astype(np.float32)
        scale, zero_point = self._input["quantization"]
        limits = np.iinfo(dtype)
        steps: NDArray[np.generic] = np.clip(np.round(row / scale + zero_point), limits.min, limits.max).astype(dtype)
        return steps


def _real(tensor: NDArray[np.generic], quantization: Sequence[float]) -> Array:
    if tensor.dtype == np.float32:
        return tensor.astype(np.float32)
    scale, zero_point = quantization
    return ((tensor.astype(np.float32) - zero_point) * scale).astype(np.float32)
