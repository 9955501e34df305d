"""A model that is small enough to be judged by eye: how bright is the picture? For the rig's camera."""

import hashlib
import json
from pathlib import Path
from typing import Any, Final

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter

NAME: Final = "rig-brightness"
LABEL: Final = "light"
_SIDE: Final = 4


def write_brightness(directory: Path) -> Path:
    """Write the release below a directory of releases; returns its folder."""
    folder = directory / NAME / "1.0.0"
    folder.mkdir(parents=True, exist_ok=True)
    content = _mean_of_picture()
    picture = np.full((1, _SIDE, _SIDE, 3), 0.25, np.float32)
    interpreter = Interpreter(model_content=content)
    interpreter.allocate_tensors()
    interpreter.set_tensor(interpreter.get_input_details()[0]["index"], picture)
    interpreter.invoke()
    answer = interpreter.get_tensor(interpreter.get_output_details()[0]["index"])
    files = {"brightness.tflite": content, "golden-input.bin": picture.tobytes(), "golden-output.bin": answer.tobytes()}
    for name, data in files.items():
        (folder / name).write_bytes(data)
    digest = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
    manifest: dict[str, Any] = {
        "name": NAME,
        "version": "1.0.0",
        "summary": "Mean brightness of a picture, for the rig",
        "released_at": "2026-01-01T00:00:00Z",
        "deployment_token": 0,
        "artefacts": [
            {
                "target": "cpu-float",
                "file": "brightness.tflite",
                "sha256": digest["brightness.tflite"],
                "size_bytes": len(content),
            }
        ],
        "input": {"kind": "image", "height": _SIDE, "width": _SIDE, "mean": [0.0], "scale": [255.0]},
        "output": {"kind": "classification", "labels": [LABEL]},
        "golden": [
            {
                "target": "cpu-float",
                "input": "golden-input.bin",
                "output": "golden-output.bin",
                "input_sha256": digest["golden-input.bin"],
                "output_sha256": digest["golden-output.bin"],
                "tolerance": 0.001,
            }
        ],
    }
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=1))
    return folder


def _mean_of_picture() -> bytes:
    """Return a model with one layer, (1, side, side, 3) → (1, 1): the mean."""
    inputs = _SIDE * _SIDE * 3
    model = schema.ModelT()
    model.version = 3
    weights, bias = np.full((1, inputs), 1 / inputs, np.float32), np.zeros(1, np.float32)
    model.buffers = [_buffer(b""), _buffer(weights.tobytes()), _buffer(bias.tobytes())]
    code = schema.OperatorCodeT()
    code.builtinCode = code.deprecatedBuiltinCode = schema.BuiltinOperator.FULLY_CONNECTED
    code.version = 1
    model.operatorCodes = [code]
    graph = schema.SubGraphT()
    graph.tensors = [
        _tensor("picture", (1, _SIDE, _SIDE, 3), 0),
        _tensor("weights", weights.shape, 1),
        _tensor("bias", bias.shape, 2),
        _tensor("answer", (1, 1), 0),
    ]
    layer = schema.OperatorT()
    layer.opcodeIndex = 0
    layer.inputs, layer.outputs = np.array([0, 1, 2], np.int32), np.array([3], np.int32)
    layer.builtinOptionsType = schema.BuiltinOptions.FullyConnectedOptions
    layer.builtinOptions = schema.FullyConnectedOptionsT()
    graph.inputs, graph.outputs = np.array([0], np.int32), np.array([3], np.int32)
    graph.operators = [layer]
    model.subgraphs = [graph]
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
    return bytes(builder.Output())


def _buffer(data: bytes) -> Any:
    made = schema.BufferT()
    made.data = np.frombuffer(data, np.uint8) if data else None
    return made


def _tensor(name: str, shape: tuple[int, ...], buffer: int) -> Any:
    made = schema.TensorT()
    made.name, made.buffer, made.type = name.encode(), buffer, schema.TensorType.FLOAT32
    made.shape = np.array(shape, np.int32)
    return made
