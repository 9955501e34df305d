"""Samples to batches."""

from dataclasses import dataclass

import numpy as np
import pytest

from gateway.errors import InferenceError, ModelError
from gateway.preprocess.preparation import preparation_for
from gateway.values import Frame, Window
from gateway.wire.manifest import ImageInput, LogBands, Plain, Standardised, WindowInput


@dataclass(frozen=True)
class Tensor:
    shape: tuple[int, ...]
    dtype: str = "float32"
    scale: float = 0.0
    zero_point: int = 0


FRAME = Frame("camera", 1, 0, 0, np.full((20, 40, 3), 100, dtype=np.uint8))
PLAIN = WindowInput(samples=4, hop_samples=4, channels=2, rate_hz=10, features=Plain())


def window(samples: int = 4, channels: int = 2, rate_hz: float = 10) -> Window:
    return Window("sensor", 1, 0, 0, rate_hz, np.ones((samples, channels), dtype=np.float32))


def test_a_frame_becomes_a_batch_of_one() -> None:
    prepared = preparation_for(ImageInput(height=8, width=8, scale=(255.0,)), Tensor((1, 8, 8, 3))).prepare(FRAME)
    assert prepared.tensor.shape == (1, 8, 8, 3)
    assert prepared.channels is None
    assert prepared.reals().shape == (1, 192)
    assert prepared.to_frame(np.array([[0.0, 0.25, 0.5, 1.0]], np.float32)).tolist() == [[0.0, 0.25, 0.5, 1.0]]


def test_a_window_is_quantized_and_takes_the_shape_of_the_tensor() -> None:
    prepared = preparation_for(PLAIN, Tensor((1, 2, 4, 1), "int8", 0.5, 3)).prepare(window())
    assert prepared.tensor.shape == (1, 2, 4, 1)
    assert set(prepared.tensor.ravel().tolist()) == {5}
    assert prepared.reals().shape == (1, 8)
    assert prepared.channels is None


def test_per_channel_takes_any_number_of_channels() -> None:
    spec = WindowInput(samples=4, hop_samples=4, rate_hz=10, features=Plain(), per_channel=True)
    prepared = preparation_for(spec, Tensor((1, 4))).prepare(window(channels=5))
    assert prepared.tensor.shape == (5, 4)
    assert prepared.channels == 5


@pytest.mark.parametrize("shape", [(1, 9, 8, 3), (1, 8, 8, 1), (1, 3, 8, 8), (2, 8, 8, 3)])
def test_a_picture_model_of_another_shape_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ModelError, match=r"the manifest says \(1, 8, 8, 3\), the model has"):
        preparation_for(ImageInput(height=8, width=8), Tensor(shape))


def test_a_window_model_of_another_length_is_refused() -> None:
    with pytest.raises(ModelError, match=r"features make \(1, 8\), the model has \(1, 9\)"):
        preparation_for(PLAIN, Tensor((1, 9)))


def test_an_input_type_that_cannot_be_filled_is_refused() -> None:
    with pytest.raises(ModelError, match="found complex64"):
        preparation_for(PLAIN, Tensor((1, 8), "complex64"))


def test_the_wrong_kind_of_sample_names_the_source() -> None:
    with pytest.raises(InferenceError, match="source sensor: the model wants pictures"):
        preparation_for(ImageInput(height=8, width=8), Tensor((1, 8, 8, 3))).prepare(window())
    with pytest.raises(InferenceError, match="source camera: the model wants samples"):
        preparation_for(PLAIN, Tensor((1, 8))).prepare(FRAME)


@pytest.mark.parametrize("wrong", [window(samples=5), window(channels=3)])
def test_a_window_of_another_shape_is_refused(wrong: Window) -> None:
    with pytest.raises(InferenceError, match=r"wants windows of \(4, 2\)"):
        preparation_for(PLAIN, Tensor((1, 8))).prepare(wrong)


def test_the_rate_matters_where_frequencies_do() -> None:
    bands = LogBands(bands=2, low_hz=1, high_hz=5, mean=(0.0,), scale=(1.0,))
    spec = WindowInput(samples=20, hop_samples=20, rate_hz=10, features=bands)
    preparation = preparation_for(spec, Tensor((1, 2)))
    preparation.prepare(window(20, 1, rate_hz=10.2))
    with pytest.raises(InferenceError, match="gives 20 samples a second, the model was made for 10"):
        preparation.prepare(window(20, 1, rate_hz=20))
    preparation_for(PLAIN, Tensor((1, 8))).prepare(window(rate_hz=20))


def test_a_nan_is_refused_and_does_not_spoil_the_baseline() -> None:
    spec = WindowInput(samples=4, hop_samples=4, channels=2, rate_hz=10, features=Standardised())
    preparation = preparation_for(spec, Tensor((1, 8)))
    preparation.prepare(window())
    broken = window()
    broken.samples[2, 1] = np.nan
    with pytest.raises(InferenceError, match="source sensor: a window holds values that are not finite"):
        preparation.prepare(broken)
    assert (preparation.prepare(window()).tensor == 0).all()
