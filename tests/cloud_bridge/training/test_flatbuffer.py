from typing import Any

import flatbuffers
import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema

from cloud_bridge.training.flatbuffer import Dense, dense_network, head_tensors, prepared_for_quantization
from cloud_bridge.training.network import answer
from cloud_bridge.training.quantize import to_int8
from cloud_bridge.training.runner import Runner


def layers(random: np.random.Generator) -> list[Dense]:
    def dense(inputs: int, outputs: int, kind: Any) -> Dense:
        return Dense(
            random.normal(0, inputs**-0.5, (outputs, inputs)).astype(np.float32),
            random.normal(0, 0.1, outputs).astype(np.float32),
            kind,
        )

    return [dense(12, 20, "relu"), dense(20, 5, "relu"), dense(5, 12, "none")]


def test_a_written_network_answers_as_its_layers_do() -> None:
    random = np.random.default_rng(1)
    network = layers(random)
    rows = random.normal(0, 1, (50, 12)).astype(np.float32)
    np.testing.assert_allclose(Runner(dense_network(network, "test")).rows(rows), answer(network, rows), atol=1e-5)


def test_the_same_layers_make_the_same_file() -> None:
    first, second = (dense_network(layers(np.random.default_rng(1)), "test") for _ in range(2))
    assert first == second


def test_preparing_a_dense_network_changes_no_answer() -> None:
    random = np.random.default_rng(2)
    model = dense_network(layers(random), "test")
    rows = random.normal(0, 1, (5, 12)).astype(np.float32)
    np.testing.assert_array_equal(Runner(prepared_for_quantization(model)).rows(rows), Runner(model).rows(rows))


def dying_convolution(kernel_dtype: type[np.float32] | type[np.float16]) -> bytes:
    """A 1x1 convolution of 4 channels, the second of them dead with a bias of 3, then a reshape to `answer`.

    Weights are constants, or half-precision behind DEQUANTIZE as converters write them.
    """
    kernel = np.random.default_rng(3).normal(0, 0.5, (4, 1, 1, 2)).astype(np.float32)
    kernel[1] = 1e-30
    bias = np.array([0.1, 3.0, -0.2, 0.3], np.float32)
    half = kernel_dtype is np.float16
    contents = [b"", kernel.astype(kernel_dtype).tobytes(), bias.tobytes(), np.array([1, 64], np.int32).tobytes()]
    floats, halves = schema.TensorType.FLOAT32, schema.TensorType.FLOAT16
    tensors = [
        tensor("picture", (1, 4, 4, 2), 0, floats),
        tensor("kernel", kernel.shape, 1, halves if half else floats),
        tensor("bias", (4,), 2, floats),
        tensor("map", (1, 4, 4, 4), 0, floats),
        tensor("shape", (2,), 3, schema.TensorType.INT32),
        tensor("answer", (1, 64), 0, floats),
        *([tensor("kernel_float", kernel.shape, 0, floats)] if half else []),
    ]
    convolution = schema.Conv2DOptionsT()
    convolution.strideW = convolution.strideH = convolution.dilationWFactor = convolution.dilationHFactor = 1
    reshape = schema.ReshapeOptionsT()
    reshape.newShape = [1, 64]
    kinds = schema.BuiltinOptions
    operators = [operator(2, [1], [6], kinds.DequantizeOptions, schema.DequantizeOptionsT())] if half else []
    operators += [
        operator(0, [0, 6 if half else 1, 2], [3], kinds.Conv2DOptions, convolution),
        operator(1, [3, 4], [5], kinds.ReshapeOptions, reshape),
    ]
    graph = schema.SubGraphT()
    graph.tensors, graph.operators, graph.inputs, graph.outputs = tensors, operators, [0], [5]
    model = schema.ModelT()
    model.version, model.subgraphs = 3, [graph]
    codes = (schema.BuiltinOperator.CONV_2D, schema.BuiltinOperator.RESHAPE, schema.BuiltinOperator.DEQUANTIZE)
    model.operatorCodes = [operator_code(code, version) for code, version in zip(codes, (2, 1, 2), strict=True)]
    model.buffers = [buffer(content) for content in contents]
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def tensor(name: str, shape: tuple[int, ...], at: int, kind: int) -> Any:
    made = schema.TensorT()
    made.name, made.shape, made.buffer, made.type = name, list(shape), at, kind
    return made


def operator(code: int, inputs: list[int], outputs: list[int], kind: int, options: Any) -> Any:
    made = schema.OperatorT()
    made.opcodeIndex, made.inputs, made.outputs = code, inputs, outputs
    made.builtinOptionsType, made.builtinOptions = kind, options
    return made


def operator_code(code: int, version: int) -> Any:
    made = schema.OperatorCodeT()
    made.builtinCode = made.deprecatedBuiltinCode = code
    made.version = version
    return made


def buffer(content: bytes) -> Any:
    made = schema.BufferT()
    made.data = np.frombuffer(content, np.uint8) if content else None
    return made


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_a_prepared_convolution_answers_alike_and_survives_quantization(
    dtype: type[np.float32] | type[np.float16],
) -> None:
    model = dying_convolution(dtype)
    prepared = prepared_for_quantization(model)
    rows = np.random.default_rng(4).uniform(-1, 1, (30, 1, 4, 4, 2)).astype(np.float32)
    expected = np.concatenate([Runner(model).answers(row)[0] for row in rows])
    mended = np.concatenate([Runner(prepared).answers(row)[0] for row in rows])
    np.testing.assert_allclose(mended, expected, atol=2e-3)
    runner = Runner(to_int8(prepared, "picture", list(rows)))
    int8 = np.concatenate([runner.answers(row)[0] for row in rows])
    np.testing.assert_allclose(int8, expected, atol=0.05)


def test_without_lifting_the_dead_channel_is_lost() -> None:
    """The control of the test above: the bias of a dead channel overflows int32."""
    model = dying_convolution(np.float32)
    signed = schema.ModelT.InitFromObj(schema.Model.GetRootAs(prepared_for_quantization(model), 0))
    untouched = schema.ModelT.InitFromObj(schema.Model.GetRootAs(model, 0))
    untouched.signatureDefs = signed.signatureDefs
    builder = flatbuffers.Builder(1024)
    builder.Finish(untouched.Pack(builder), b"TFL3")
    rows = np.random.default_rng(4).uniform(-1, 1, (10, 1, 4, 4, 2)).astype(np.float32)
    with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
        runner = Runner(to_int8(bytes(builder.Output()), "picture", list(rows)))
    dead = runner.answers(rows[0])[0].reshape(4, 4, 4)[..., 1]
    assert np.abs(dead - 3.0).max() > 0.5


def test_the_tensors_of_a_head_reach_back_to_what_computes() -> None:
    assert head_tensors(prepared_for_quantization(dying_convolution(np.float16)), "answer") == ["answer", "map"]
