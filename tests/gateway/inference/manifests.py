"""Releases for tests: a manifest around a model's bytes, laid out as `gateway.inference.bundle` wants it."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray

from gateway.config import Pipeline
from gateway.inference.backend import Backend
from gateway.inference.bundle import ReleaseStore
from gateway.inference.litert import LiteRtBackend
from gateway.inference.model import Model
from gateway.inference.plain import open_plain
from gateway.inference.select import load_model
from gateway.preprocess.preparation import preparation_for
from gateway.values import Frame, Window
from gateway.wire.manifest import (
    MANIFEST_FILE,
    Artefact,
    Baseline,
    Constraints,
    Golden,
    ImageInput,
    ModelManifest,
    Output,
    Target,
    WindowInput,
)

SHARED = Path(__file__).resolve().parents[4] / "shared"
CPU: tuple[Backend, ...] = (LiteRtBackend(),)


def shared(path: str) -> Path:
    """Return a file of the shared folder; skip the test where there is none."""
    file = SHARED / path
    if not file.exists():
        pytest.skip(f"needs {file}: reference models and samples that do not lie in the repository")
    return file


def write_release(
    directory: Path,
    contents: dict[Target, bytes],
    model_input: ImageInput | WindowInput,
    output: Output,
    *,
    name: str = "probe",
    version: str = "1.0.0",
    golden: Sequence[tuple[Target, bytes, bytes, float]] = (),
    max_batch: int = 1,
    baseline: Baseline | None = None,
) -> Path:
    """Write `<directory>/<name>/<version>` and return it; `golden` is target, input, outputs and tolerance."""
    folder = directory / name / version
    folder.mkdir(parents=True)
    artefacts = []
    for target, content in contents.items():
        (folder / f"{target}.tflite").write_bytes(content)
        artefacts.append(
            Artefact(target=target, file=f"{target}.tflite", sha256=digest(content), size_bytes=len(content))
        )
    goldens = []
    for number, (target, given, expected, tolerance) in enumerate(golden):
        (folder / f"in{number}.bin").write_bytes(given)
        (folder / f"out{number}.bin").write_bytes(expected)
        goldens.append(
            Golden(
                target=target,
                input=f"in{number}.bin",
                output=f"out{number}.bin",
                input_sha256=digest(given),
                output_sha256=digest(expected),
                tolerance=tolerance,
            )
        )
    manifest = ModelManifest(
        name=name,
        version=version,
        artefacts=tuple(artefacts),
        input=model_input,
        output=output,
        golden=tuple(goldens),
        constraints=Constraints(max_batch=max_batch),
        baseline=baseline,
    )
    (folder / MANIFEST_FILE).write_bytes(msgspec.json.encode(manifest))
    return folder


def load(directory: Path, *, backends: Sequence[Backend] = CPU, **settings: Any) -> Model:
    """Load the release `probe` from a directory."""
    pipeline = Pipeline(source="s", **{"model": "probe", **settings})
    store = ReleaseStore([directory], packaged=directory / "none")
    return load_model(store, pipeline, preparation_for, open_plain, backends=backends)


def open_cpu(
    directory: Path, content: bytes, model_input: ImageInput | WindowInput, output: Output, *, max_batch: int = 1
) -> Model:
    """Write a release with one int8 artefact and load it."""
    write_release(directory, {"cpu-int8": content}, model_input, output, max_batch=max_batch)
    return load(directory)


def picture(path: Path) -> Frame:
    """Return a picture file as a frame."""
    image = cv2.imread(str(path))
    assert image is not None, path
    return frame(np.asarray(image, dtype=np.uint8))


def frame(image: NDArray[np.uint8]) -> Frame:
    """Return a frame of a camera."""
    return Frame("camera", 7, 1_000, 2_000, image)


def window(samples: NDArray[np.float32], rate_hz: float = 1.0, sequence: int = 1) -> Window:
    """Return a window of a sensor."""
    return Window("sensor", sequence, 1_000, 2_000, rate_hz, samples)


def digest(content: bytes) -> str:
    """Return the sha256."""
    return hashlib.sha256(content).hexdigest()
