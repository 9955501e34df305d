"""Tiny releases for the rig: a mean over a window or a picture, so that a test decides what the model sees."""

from pathlib import Path

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema

from gateway.wire.manifest import Classification, ImageInput, Plain, Regression, Target, WindowInput
from tests.gateway.inference.graphs import dense
from tests.gateway.inference.manifests import write_release

LOUD = "loudness"
CALM = "calmness"
BRIGHT = "brightness"

LOUD_WINDOW = WindowInput(samples=800, hop_samples=800, channels=3, rate_hz=3200.0, features=Plain())
_CALM_WINDOW = WindowInput(samples=4, hop_samples=2, channels=2, rate_hz=20.0, features=Plain())
_PICTURE = ImageInput(height=4, width=4, mean=(0.0,), scale=(255.0,))


def write_releases(directory: Path) -> Path:
    """Write the models that the site uses: `loudness` answers the mean of a window, `calmness` always nothing."""
    loud(directory, LOUD)
    write_release(
        directory, {"cpu-float": constant(8, 0.1)}, _CALM_WINDOW, Regression(threshold=1.0), name=CALM, version="1.0.0"
    )
    write_release(directory, {"cpu-float": picture_mean()}, _PICTURE, Classification(labels=("light",)), name=BRIGHT)
    return directory


def loud(directory: Path, name: str, content: bytes | None = None, target: Target = "cpu-float") -> Path:
    """Write a release for windows of the loud motor; returns the file of its model."""
    content = mean(LOUD_WINDOW.samples * LOUD_WINDOW.channels) if content is None else content
    folder = write_release(directory, {target: content}, LOUD_WINDOW, Regression(threshold=1.0), name=name)
    return folder / f"{target}.tflite"


def mean(inputs: int) -> bytes:
    """Return a model that answers the mean of its inputs."""
    return dense(np.full((1, inputs), 1 / inputs, np.float32), np.zeros(1, np.float32))


def constant(inputs: int, answer: float) -> bytes:
    """Return a model that always answers the same."""
    return dense(np.zeros((1, inputs), np.float32), np.array([answer], np.float32))


def picture_mean() -> bytes:
    """Return a model that answers the mean brightness of a picture, (1, 4, 4, 3)."""
    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(mean(4 * 4 * 3)))
    picture = model.subgraphs[0].tensors[0]
    picture.shape, picture.shapeSignature = [1, 4, 4, 3], [-1, 4, 4, 3]
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
    return bytes(builder.Output())
