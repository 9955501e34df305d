"""What outputs mean."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from gateway.errors import InferenceError, ModelError
from gateway.inference.backend import TensorSpec
from gateway.inference.postprocess import (
    activate,
    dequantize,
    grouped,
    read_for_vectors,
    require_finite,
    squash,
)
from gateway.wire.manifest import Classification, Reconstruction, Regression
from tests.simulators.runtime import tensor


@dataclass(frozen=True)
class Sample:
    tensor: NDArray[Any]
    channels: int | None = None

    @property
    def reals(self) -> Callable[[], NDArray[np.float32]]:
        return lambda: self.tensor.astype(np.float32)

    def to_frame(self, boxes: NDArray[np.float32]) -> NDArray[np.float32]:
        return boxes


def rows(count: int, length: int = 4, channels: int | None = None) -> Sample:
    return Sample(np.zeros((count, length), np.float32), channels)


@given(st.floats(1e-6, 1e6))
def test_the_threshold_is_a_half(threshold: float) -> None:
    assert squash(threshold, threshold) == pytest.approx(0.5)


@given(st.floats(0, 1e6), st.floats(0, 1e6), st.floats(1e-3, 1e3))
def test_a_higher_raw_score_never_scores_lower(one: float, two: float, threshold: float) -> None:
    low, high = sorted((one, two))
    assert 0.0 <= squash(low, threshold) <= squash(high, threshold) <= 1.0


def test_a_negative_raw_score_counts_as_zero() -> None:
    assert squash(-5.0, 1.0) == 0.0


def test_quantized_outputs_mean_what_their_tensor_says() -> None:
    raw = np.array([-128, 0, 127], dtype=np.int8)
    assert dequantize(raw, tensor((1, 3), "int8", 1 / 256, -128)).tolist() == [0.0, 0.5, 255 / 256]
    assert dequantize(np.array([1.5], np.float32), tensor((1, 1))).tolist() == [1.5]
    assert dequantize(np.array([7], np.int32), tensor((1, 1), "int32")).tolist() == [7.0]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_outputs_that_are_not_finite_are_refused(bad: float) -> None:
    require_finite((np.zeros(3, np.float32), np.zeros(3, np.int8)))
    with pytest.raises(InferenceError, match="output 1 of the model is not finite"):
        require_finite((np.zeros(3, np.float32), np.array([0, bad], np.float32)))


def test_rows_of_one_answer_are_averaged() -> None:
    values = np.arange(6, dtype=np.float64).reshape(6, 1)
    assert grouped(values, None).tolist() == [[2.5]]
    assert grouped(values, 2).tolist() == [[1.0], [4.0]]
    assert grouped(values, 6).tolist() == values.tolist()
    with pytest.raises(InferenceError, match="6 rows cannot be shared among 4 channels"):
        grouped(values, 4)


def test_activations() -> None:
    logits = np.array([[0.0, np.log(3.0)], [1000.0, 0.0]])
    assert activate(logits, "softmax") == pytest.approx(np.array([[0.25, 0.75], [1.0, 0.0]]))
    assert activate(logits, "sigmoid") == pytest.approx(np.array([[0.5, 0.75], [1.0, 0.5]]))
    assert activate(logits, "none") is logits


def classifier(output: Classification, spec: TensorSpec) -> Any:
    return read_for_vectors(output, (tensor((1, 4)),), (spec,))


def test_the_best_labels_come_first_and_nameless_ones_never() -> None:
    reader = classifier(Classification(labels=("background", "", "cat", "dog"), top=2), tensor((1, 4)))
    found = reader.read((np.array([[0.1, 0.9, 0.2, 0.6]], np.float32),), rows(1))
    assert [(finding.label, round(finding.score, 3)) for finding in found] == [("dog", 0.6), ("cat", 0.2)]
    assert found[0].channel is None


def test_each_channel_gets_its_own_labels() -> None:
    reader = classifier(Classification(labels=("ok", "bad"), top=1, activation="softmax"), tensor((1, 2)))
    found = reader.read((np.array([[5, 0], [0, 5], [3, 0]], np.float32),), rows(3, channels=3))
    assert [(finding.label, finding.channel) for finding in found] == [("ok", 0), ("bad", 1), ("ok", 2)]


def test_scores_stay_within_0_and_1() -> None:
    reader = classifier(Classification(labels=("a", "b")), tensor((1, 2)))
    found = reader.read((np.array([[1.7, -0.3]], np.float32),), rows(1))
    assert [finding.score for finding in found] == [1.0, 0.0]


@pytest.mark.parametrize(("error", "raw"), [("mse", 2.5), ("mae", 1.5), ("max", 2.0)])
def test_a_reconstruction_error_is_in_feature_units(error: Any, raw: float) -> None:
    output = Reconstruction(threshold=2.5, error=error, label="odd")
    reader = read_for_vectors(output, (tensor((1, 2)),), (tensor((1, 2), "int8", 0.5, 0),))
    # Dequantized the answer is [1, 2], the sample is [0, 0].
    (finding,) = reader.read((np.array([[2, 4]], np.int8),), rows(1, 2))
    assert finding.raw_score == pytest.approx(raw)
    assert (finding.label, finding.threshold) == ("odd", 2.5)
    assert finding.score == pytest.approx(squash(raw, 2.5))


def test_channels_are_scored_each_for_itself_the_worst_first() -> None:
    reader = read_for_vectors(Regression(threshold=2.0), (tensor((1, 4)),), (tensor((1, 1)),))
    found = reader.read((np.array([[1.0], [4.0], [2.0]], np.float32),), rows(3, channels=3))
    assert [(finding.channel, finding.score) for finding in found] == [
        (1, 0.75),
        (2, 0.5),
        (0, pytest.approx(0.2929, abs=1e-4)),
    ]


def test_the_number_of_labels_must_be_that_of_the_answers() -> None:
    with pytest.raises(ModelError, match=r"expected \(1, 3\) for the 3 labels of the manifest, the model has \(1, 4\)"):
        classifier(Classification(labels=("a", "b", "c")), tensor((1, 4)))


def test_an_autoencoder_must_answer_as_much_as_it_is_given() -> None:
    with pytest.raises(ModelError, match=r"expected \(1, 4\) for the 4 values of the input, the model has \(1, 5\)"):
        read_for_vectors(Reconstruction(threshold=1), (tensor((1, 4)),), (tensor((1, 5)),))


def test_a_score_is_one_number() -> None:
    with pytest.raises(ModelError, match=r"expected \(1, 1\) for the 1 score"):
        read_for_vectors(Regression(threshold=1), (tensor((1, 4)),), (tensor((1, 2)),))


def test_one_output_is_expected() -> None:
    with pytest.raises(ModelError, match="a regression model has one output tensor, this one has 2"):
        read_for_vectors(Regression(threshold=1), (tensor((1, 4)),), (tensor((1, 1)), tensor((1, 1))))


@pytest.mark.parametrize("threshold", [0.0, -1.0])
def test_a_threshold_must_be_positive(threshold: float) -> None:
    with pytest.raises(ModelError, match="must be greater than 0"):
        read_for_vectors(Regression(threshold=threshold), (tensor((1, 4)),), (tensor((1, 1)),))
