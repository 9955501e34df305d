"""Golden inputs."""

from pathlib import Path

import numpy as np
import pytest

from gateway.errors import ModelError
from gateway.inference.backend import TensorSpec
from gateway.inference.golden import loosest_tolerance
from gateway.wire.manifest import Plain, Regression, Target, WindowInput
from tests.gateway.inference.graphs import dense
from tests.gateway.inference.manifests import load, write_release

INPUT = WindowInput(samples=4, hop_samples=4, rate_hz=1, features=Plain())
OUTPUT = Regression(threshold=1.0)
MODEL = dense(np.ones((1, 4), np.float32), np.zeros(1, np.float32))
GIVEN = np.array([1, 2, 3, 4], "<f4").tobytes()


def answer(value: float) -> bytes:
    return np.array([value], "<f4").tobytes()


def release(
    tmp_path: Path, expected: bytes, *, given: bytes = GIVEN, tolerance: float = 0.0, target: Target = "cpu-float"
) -> Path:
    return write_release(tmp_path, {"cpu-float": MODEL}, INPUT, OUTPUT, golden=[(target, given, expected, tolerance)])


def test_the_right_answer_is_accepted(tmp_path: Path) -> None:
    release(tmp_path, answer(10.0))
    load(tmp_path)


def test_an_answer_within_the_tolerance_is_accepted(tmp_path: Path) -> None:
    release(tmp_path, answer(10.4), tolerance=0.5)
    load(tmp_path)


@pytest.mark.parametrize("expected", [10.4, float("nan")])
def test_a_wrong_answer_stops_the_release(tmp_path: Path, expected: float) -> None:
    release(tmp_path, answer(expected), tolerance=0.1)
    with pytest.raises(ModelError, match=r"golden input in0\.bin \(cpu-float\): output y is off by .*0\.1 allowed"):
        load(tmp_path)


def test_one_changed_weight_is_noticed(tmp_path: Path) -> None:
    """The control: without the golden input the changed file loads."""
    weights = np.array([[1, 1, 1, 2]], np.float32)
    changed = dense(weights, np.zeros(1, np.float32))
    write_release(
        tmp_path / "with", {"cpu-float": changed}, INPUT, OUTPUT, golden=[("cpu-float", GIVEN, answer(10), 0.1)]
    )
    write_release(tmp_path / "without", {"cpu-float": changed}, INPUT, OUTPUT)
    with pytest.raises(ModelError, match="off by 4"):
        load(tmp_path / "with")
    load(tmp_path / "without")


def test_golden_inputs_of_other_targets_are_not_run(tmp_path: Path) -> None:
    release(tmp_path, answer(99.0), target="edgetpu")
    load(tmp_path)


@pytest.mark.parametrize(
    ("given", "expected", "message"),
    [
        (GIVEN[:-1], answer(10), r"is no tensor \(1, 4\) of float32"),
        (GIVEN + b"\0", answer(10), "is no tensor"),
        (GIVEN, answer(10)[:-1], "shorter than the outputs"),
        (GIVEN, answer(10) + b"\0", "longer than the outputs"),
    ],
)
def test_files_of_the_wrong_size_are_refused(tmp_path: Path, given: bytes, expected: bytes, message: str) -> None:
    release(tmp_path, expected, given=given)
    with pytest.raises(ModelError, match=message):
        load(tmp_path)


@pytest.mark.parametrize("file", ["in0.bin", "out0.bin"])
def test_a_golden_file_that_was_changed_is_refused(tmp_path: Path, file: str) -> None:
    folder = release(tmp_path, answer(10.0))
    content = bytearray((folder / file).read_bytes())
    content[0] ^= 1
    (folder / file).write_bytes(content)
    with pytest.raises(ModelError, match="is not the file of this release"):
        load(tmp_path)


def output(dtype: str, *shape: int) -> TensorSpec:
    return TensorSpec("y", shape, dtype, 0.0, 0)


@pytest.mark.parametrize(
    ("values", "outputs", "most"),
    [
        (np.zeros(3, "<i1"), [output("int8", 3)], 255 / 16),
        (np.zeros(2, "<i2"), [output("int16", 2)], 65535 / 16),
        (np.array([0, -8], "<f4"), [output("float32", 1, 2)], 2.0),
        (np.array([0, 0.001], "<f4"), [output("float32", 2)], 0.01),
        (np.array([np.nan, -np.inf, 4], "<f4"), [output("float32", 3)], 1.0),
        (np.array([40], "<i8"), [output("int64", 1)], 10.0),
        (np.array([1, 80], "<f4"), [output("float32", 1), output("float32", 1)], 20.0),
        (np.zeros(4, "<i1"), [output("int8", 3)], None),
        (np.zeros(2, "<i1"), [output("int8", 3)], None),
        (np.zeros(0, "<i1"), [], None),
    ],
)
def test_a_tolerance_may_be_as_loose_as_the_type_and_the_values_allow(
    values: np.ndarray, outputs: list[TensorSpec], most: float | None
) -> None:
    assert loosest_tolerance(values.tobytes(), outputs) == most
