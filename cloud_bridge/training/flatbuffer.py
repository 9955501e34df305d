"""Writes and rewrites TFLite files without TensorFlow: dense networks, and what quantization needs of others' files.

The schema is the runtime's own (`ai_edge_litert.schema_py_generated`, from tflite's schema.fbs).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema
from numpy.typing import NDArray

SIGNATURE: Final = "serving_default"
_IDENTIFIER: Final = b"TFL3"
_FILE_VERSION: Final = 3


@dataclass(frozen=True, slots=True)
class Dense:
    """A fully connected layer."""

    weights: NDArray[np.float32]  # (outputs, inputs)
    biases: NDArray[np.float32]  # (outputs,)
    activation: Literal["none", "relu"]


def dense_network(layers: Sequence[Dense], description: str) -> bytes:
    """Return a float .tflite of layers in a row; input `features` [1, n], output `answer` [1, m]."""
    graph = schema.SubGraphT()
    graph.name = "main"
    graph.tensors, graph.operators = [], []
    model = _empty(description)
    model.subgraphs = [graph]
    code = schema.OperatorCodeT()
    code.builtinCode = code.deprecatedBuiltinCode = schema.BuiltinOperator.FULLY_CONNECTED
    code.version = 1
    model.operatorCodes = [code]
    at = _tensor(model, "features", (1, layers[0].weights.shape[1]))
    graph.inputs = [at]
    for number, layer in enumerate(layers):
        weights = _tensor(model, f"dense{number}/weights", layer.weights.shape, layer.weights)
        biases = _tensor(model, f"dense{number}/biases", layer.biases.shape, layer.biases)
        last = number == len(layers) - 1
        output = _tensor(model, "answer" if last else f"dense{number}", (1, layer.weights.shape[0]))
        graph.operators.append(_fully_connected((at, weights, biases), output, layer.activation))
        at = output
    graph.outputs = [at]
    return _packed(_signed(model))


def prepared_for_quantization(data: bytes) -> bytes:
    """Return a float model that the quantizer can take, with the same answers.

    Three things are mended: weights stored as float16 behind DEQUANTIZE become float32 constants, since only
    constants are quantized; output channels that training has killed (all weights next to zero) get one weight large
    enough for their bias to fit int32 at the channel's scale, without it the bias overflows and the whole map is
    wrong; and a signature is added where there is none.
    """
    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(data, 0))
    for graph in model.subgraphs:
        _fold_half_weights(model, graph)
        _drop_unused_tensors(graph)
        for operator in graph.operators:
            _lift_dead_channels(model, graph, operator)
    return _packed(_signed(model))


def head_tensors(data: bytes, output: str) -> list[str]:
    """Return the names of the tensors between an output and the last operations that compute: one range fits all."""
    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(data, 0))
    graph = model.subgraphs[0]
    made_by = {int(out): operator for operator in graph.operators for out in operator.outputs}
    names: list[str] = []
    waiting = [int(i) for i in graph.outputs if _name(graph.tensors[i]) == output]
    while waiting:
        tensor = waiting.pop()
        names.append(_name(graph.tensors[tensor]))
        operator = made_by[tensor]
        if _code(model, operator) == schema.BuiltinOperator.CONCATENATION:
            waiting.extend(int(i) for i in operator.inputs)
        elif _code(model, operator) == schema.BuiltinOperator.RESHAPE:
            waiting.append(int(operator.inputs[0]))
    return names


def _empty(description: str) -> Any:
    model = schema.ModelT()
    model.version = _FILE_VERSION
    model.description = description
    model.buffers = [schema.BufferT()]  # buffer 0 is the empty one, by convention
    return model


def _tensor(model: Any, name: str, shape: Sequence[int], values: NDArray[np.float32] | None = None) -> int:
    tensor = schema.TensorT()
    tensor.name = name
    tensor.type = schema.TensorType.FLOAT32
    tensor.shape = list(shape)
    if values is None:
        tensor.buffer = 0
    else:
        tensor.buffer = _buffer(model, values)
    graph = model.subgraphs[0]
    graph.tensors.append(tensor)
    return len(graph.tensors) - 1


def _buffer(model: Any, values: NDArray[np.float32]) -> int:
    buffer = schema.BufferT()
    buffer.data = np.frombuffer(np.ascontiguousarray(values, "<f4").tobytes(), np.uint8)
    model.buffers.append(buffer)
    return len(model.buffers) - 1


def _fully_connected(inputs: Sequence[int], output: int, activation: str) -> Any:
    options = schema.FullyConnectedOptionsT()
    kinds = schema.ActivationFunctionType
    options.fusedActivationFunction = kinds.RELU if activation == "relu" else kinds.NONE
    operator = schema.OperatorT()
    operator.opcodeIndex = 0
    operator.inputs, operator.outputs = list(inputs), [output]
    operator.builtinOptionsType = schema.BuiltinOptions.FullyConnectedOptions
    operator.builtinOptions = options
    return operator


def _signed(model: Any) -> Any:
    """Give the model a signature if it has none; the quantizer addresses inputs by it."""
    if model.signatureDefs:
        return model
    graph = model.subgraphs[0]
    signature = schema.SignatureDefT()
    signature.signatureKey = SIGNATURE
    signature.subgraphIndex = 0
    signature.inputs = [_mapped(graph, int(i)) for i in graph.inputs]
    signature.outputs = [_mapped(graph, int(i)) for i in graph.outputs]
    model.signatureDefs = [signature]
    return model


def _mapped(graph: Any, tensor: int) -> Any:
    entry = schema.TensorMapT()
    entry.name = _name(graph.tensors[tensor])
    entry.tensorIndex = tensor
    return entry


def _packed(model: Any) -> bytes:
    builder = flatbuffers.Builder(1 << 20)
    builder.Finish(model.Pack(builder), _IDENTIFIER)
    return bytes(builder.Output())


def _name(tensor: Any) -> str:
    return tensor.name.decode() if isinstance(tensor.name, bytes) else str(tensor.name)


def _code(model: Any, operator: Any) -> int:
    code = model.operatorCodes[operator.opcodeIndex]
    return max(int(code.builtinCode), int(code.deprecatedBuiltinCode))  # old files have only the latter


def _fold_half_weights(model: Any, graph: Any) -> None:
    kept = []
    for operator in graph.operators:
        source = graph.tensors[operator.inputs[0]]
        data = model.buffers[source.buffer].data
        half = source.type == schema.TensorType.FLOAT16 and data is not None
        if half and _code(model, operator) == schema.BuiltinOperator.DEQUANTIZE:
            values = np.frombuffer(np.asarray(data, np.uint8).tobytes(), "<f2").astype(np.float32)
            graph.tensors[operator.outputs[0]].buffer = _buffer(model, values)
            model.buffers[source.buffer].data = None
        else:
            kept.append(operator)
    graph.operators = kept


def _drop_unused_tensors(graph: Any) -> None:
    used = {int(i) for operator in graph.operators for i in (*operator.inputs, *operator.outputs) if i >= 0}
    used |= {int(i) for i in (*graph.inputs, *graph.outputs)}
    moved = {old: new for new, old in enumerate(sorted(used))}
    moved[-1] = -1  # an optional input that is not there
    graph.tensors = [graph.tensors[old] for old in sorted(used)]
    graph.inputs, graph.outputs = ([moved[int(i)] for i in side] for side in (graph.inputs, graph.outputs))
    for operator in graph.operators:
        operator.inputs = [moved[int(i)] for i in operator.inputs]
        operator.outputs = [moved[int(i)] for i in operator.outputs]


_CHANNEL_AXIS: Final = {schema.BuiltinOperator.CONV_2D: 0, schema.BuiltinOperator.DEPTHWISE_CONV_2D: 3}


def _lift_dead_channels(model: Any, graph: Any, operator: Any) -> None:
    axis = _CHANNEL_AXIS.get(_code(model, operator))
    if axis is None:
        return
    tensor = graph.tensors[operator.inputs[1]]
    weights = _constant(model, tensor)
    biases = _constant(model, graph.tensors[operator.inputs[2]])
    if weights is None or biases is None:
        return
    channels = np.moveaxis(weights, axis, 0).copy()
    rows = channels.reshape(len(channels), -1)
    # int32 holds bias / (input scale * weight scale); an input scale of 1e-3 and more leaves ample room.
    least = 1e-4 * np.maximum(np.abs(biases), 0.01)
    dead = np.abs(rows).max(axis=1) < least
    if not dead.any():
        return
    rows[dead] = 0
    rows[dead, 0] = least[dead]
    tensor.buffer = _buffer(model, np.moveaxis(rows.reshape(channels.shape), 0, axis))


def _constant(model: Any, tensor: Any) -> NDArray[np.float32] | None:
    data = model.buffers[tensor.buffer].data
    if data is None or tensor.type != schema.TensorType.FLOAT32:
        return None
    return np.frombuffer(np.asarray(data, np.uint8).tobytes(), "<f4").reshape(tensor.shape)
