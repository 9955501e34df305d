"""Writes tiny TFLite files: one fully connected layer, or one custom operation. No training, no converter."""

from typing import Any

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema
from numpy.typing import NDArray

_FILE_IDENTIFIER = b"TFL3"
_FLOAT32 = 0
_FULLY_CONNECTED = 9
_CUSTOM = 32


def dense(weights: NDArray[np.float32], bias: NDArray[np.float32]) -> bytes:
    """Return a float model `weights @ x + bias`; input (1, n), weights (m, n), output (1, m)."""
    outputs, inputs = weights.shape
    tensors = [
        _tensor("x", (1, inputs), 0, batch=True),
        _tensor("weights", (outputs, inputs), 1),
        _tensor("bias", (outputs,), 2),
        _tensor("y", (1, outputs), 0, batch=True),
    ]
    code = schema.OperatorCodeT()
    code.builtinCode = code.deprecatedBuiltinCode = _FULLY_CONNECTED
    code.version = 1
    operator = _operator(inputs=[0, 1, 2], outputs=[3])
    operator.builtinOptionsType = schema.BuiltinOptions.FullyConnectedOptions
    operator.builtinOptions = schema.FullyConnectedOptionsT()
    buffers = [b"", np.ascontiguousarray(weights, "<f4").tobytes(), np.ascontiguousarray(bias, "<f4").tobytes()]
    return _model(tensors, code, operator, buffers, inputs=[0], outputs=[3])


def custom(name: str, size: int = 4) -> bytes:
    """Return a model that is nothing but one custom operation, (1, size) to (1, size)."""
    code = schema.OperatorCodeT()
    code.builtinCode = code.deprecatedBuiltinCode = _CUSTOM
    code.customCode = name
    code.version = 1
    tensors = [_tensor("x", (1, size), 0), _tensor("y", (1, size), 0)]
    return _model(tensors, code, _operator(inputs=[0], outputs=[1]), [b""], inputs=[0], outputs=[1])


def _tensor(name: str, shape: tuple[int, ...], buffer: int, *, batch: bool = False) -> Any:
    tensor = schema.TensorT()
    tensor.name, tensor.shape, tensor.buffer, tensor.type = name, list(shape), buffer, _FLOAT32
    if batch:
        tensor.shapeSignature = [-1, *shape[1:]]
    return tensor


def _operator(inputs: list[int], outputs: list[int]) -> Any:
    operator = schema.OperatorT()
    operator.opcodeIndex, operator.inputs, operator.outputs = 0, inputs, outputs
    return operator


def _model(
    tensors: list[Any], code: Any, operator: Any, buffers: list[bytes], *, inputs: list[int], outputs: list[int]
) -> bytes:
    graph = schema.SubGraphT()
    graph.tensors, graph.operators, graph.inputs, graph.outputs = tensors, [operator], inputs, outputs
    model = schema.ModelT()
    model.version, model.operatorCodes, model.subgraphs, model.buffers = 3, [code], [graph], []
    for data in buffers:
        buffer = schema.BufferT()
        buffer.data = list(data)
        model.buffers.append(buffer)
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), file_identifier=_FILE_IDENTIFIER)
    return bytes(builder.Output())
