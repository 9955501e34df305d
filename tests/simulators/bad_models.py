"""TFLite files that are well-formed and do harm: one ends the process, one never ends, one answers no number."""

from typing import Any

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema

from tests.gateway.inference.graphs import dense

_FULLY_CONNECTED = 9
_WHILE = 119
_GREATER = 61
_SQUEEZE = 43
_FLOAT32, _BOOL = 0, 6


def not_a_number(inputs: int) -> bytes:
    """Return a model that answers NaN, whatever it is given."""
    return dense(np.full((1, inputs), np.nan, np.float32), np.zeros(1, np.float32))


def slow(inputs: int, width: int = 2500, times: int = 12) -> bytes:
    """Return a model that answers the mean of its inputs, after multiplying by one large matrix many times."""
    model = schema.ModelT()
    model.version = 3
    code = schema.OperatorCodeT()
    code.builtinCode = code.deprecatedBuiltinCode = _FULLY_CONNECTED
    code.version = 1
    model.operatorCodes = [code]
    # The same matrix again and again makes it slow, not large.
    model.buffers, tensors, operators = [schema.BufferT()], [_tensor("x", [1, inputs])], []
    last = 0
    for number, (rows, columns, repeated) in enumerate(((width, inputs, 1), (width, width, times), (1, width, 1))):
        held = []
        weights, bias = _weights(rows, columns), np.zeros(rows, "<f4")
        for name, content in (("w", weights), ("b", bias)):
            buffer = schema.BufferT()
            buffer.data = np.frombuffer(content.tobytes(), np.uint8)
            model.buffers.append(buffer)
            held.append(len(tensors))
            tensors.append(_tensor(f"{name}{number}", [*content.shape], buffer=len(model.buffers) - 1))
        for turn in range(repeated):
            tensors.append(_tensor(f"y{number}.{turn}", [1, rows]))
            operator = schema.OperatorT()
            operator.opcodeIndex = 0
            operator.inputs, operator.outputs = [last, *held], [len(tensors) - 1]
            operator.builtinOptionsType = schema.BuiltinOptions.FullyConnectedOptions
            operator.builtinOptions = schema.FullyConnectedOptionsT()
            operators.append(operator)
            last = len(tensors) - 1
    model.subgraphs = [_subgraph(tensors, operators, [0], [len(tensors) - 1])]
    return _file(model)


def endless(inputs: int) -> bytes:
    """Return a model whose first invocation never ends: a loop whose condition is always true."""
    return _looping(inputs, condition_subgraph=1, body_subgraph=2)


def fatal(inputs: int) -> bytes:
    """Return a model that ends its process when it is loaded: a graph that contains itself, until the stack is full."""
    return _looping(inputs, condition_subgraph=1, body_subgraph=0)


def endless_above(limit: float) -> bytes:
    """Return a model of one input that answers it, and never ends when that is greater than the limit."""
    model = schema.ModelT()
    model.version = 3
    codes = []
    for builtin in (_WHILE, _GREATER, _SQUEEZE):
        code = schema.OperatorCodeT()
        code.builtinCode = code.deprecatedBuiltinCode = builtin
        code.version = 1
        codes.append(code)
    model.operatorCodes = codes
    empty, bound = schema.BufferT(), schema.BufferT()
    bound.data = np.frombuffer(np.array([limit], "<f4").tobytes(), np.uint8)
    model.buffers = [empty, bound]
    flatten, compare = schema.OperatorT(), schema.OperatorT()
    flatten.opcodeIndex, flatten.inputs, flatten.outputs = 2, [0], [3]
    flatten.builtinOptionsType = schema.BuiltinOptions.SqueezeOptions
    flatten.builtinOptions = schema.SqueezeOptionsT()
    flatten.builtinOptions.squeezeDims = [0]
    compare.opcodeIndex, compare.inputs, compare.outputs = 1, [3, 1], [2]
    tensors = [_tensor("x", [1, 1]), _tensor("limit", [1], buffer=1), _tensor("more", [1], _BOOL), _tensor("f", [1])]
    condition = _subgraph(tensors, [flatten, compare], [0], [2])
    model.subgraphs = [_loop(1, 1, 2), condition, _subgraph([_tensor("x", [1, 1])], [], [0], [0])]
    return _file(model)


def _looping(inputs: int, condition_subgraph: int, body_subgraph: int) -> bytes:
    model = schema.ModelT()
    model.version = 3
    code = schema.OperatorCodeT()
    code.builtinCode = code.deprecatedBuiltinCode = _WHILE
    code.version = 1
    model.operatorCodes = [code]
    empty, true = schema.BufferT(), schema.BufferT()
    true.data = np.frombuffer(b"\x01", np.uint8)
    model.buffers = [empty, true]
    main = _loop(inputs, condition_subgraph, body_subgraph)
    yes = _tensor("true", [1], _BOOL, 1)
    condition = _subgraph([_tensor("x", [1, inputs]), yes], [], [0], [1])
    body = _subgraph([_tensor("x", [1, inputs])], [], [0], [0])
    model.subgraphs = [main, condition, body]
    return _file(model)


def _weights(rows: int, columns: int) -> Any:
    """Return weights whose rows have the mean 1 / columns, and that no compression makes small."""
    weights = np.random.default_rng(1).uniform(0.5, 1.5, (rows, columns))
    return (weights / weights.sum(axis=1, keepdims=True)).astype("<f4")


def _loop(inputs: int, condition_subgraph: int, body_subgraph: int) -> Any:
    operator = schema.OperatorT()
    operator.opcodeIndex, operator.inputs, operator.outputs = 0, [0], [1]
    operator.builtinOptionsType = schema.BuiltinOptions.WhileOptions
    options = schema.WhileOptionsT()
    options.condSubgraphIndex, options.bodySubgraphIndex = condition_subgraph, body_subgraph
    operator.builtinOptions = options
    return _subgraph([_tensor("x", [1, inputs]), _tensor("y", [1, inputs])], [operator], [0], [1])


def _file(model: Any) -> bytes:
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
    return bytes(builder.Output())


def _tensor(name: str, shape: list[int], kind: int = _FLOAT32, buffer: int = 0) -> Any:
    tensor = schema.TensorT()
    tensor.name, tensor.shape, tensor.type, tensor.buffer = name, shape, kind, buffer
    return tensor


def _subgraph(tensors: list[Any], operators: list[Any], inputs: list[int], outputs: list[int]) -> Any:
    subgraph = schema.SubGraphT()
    subgraph.tensors, subgraph.operators = tensors, operators
    subgraph.inputs, subgraph.outputs = inputs, outputs
    return subgraph
