"""Pictures to tensors."""

from typing import Any, Literal

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from gateway.errors import InferenceError, ModelError
from gateway.preprocess.image import ImageShaper, geometry_for
from gateway.wire.manifest import ImageInput

Fit = Literal["stretch", "letterbox", "crop"]

INT8 = ("int8", 1 / 255, -128)
UINT8 = ("uint8", 1 / 128, 128)
FLOAT = ("float32", 0.0, 0)


def noise(height: int, width: int, seed: int = 1) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def plainly(image: NDArray[np.uint8], spec: ImageInput, dtype: str, scale: float, zero_point: int) -> NDArray[Any]:
    """The same without tables and buffers, for `stretch`."""
    small = cv2.resize(image, (spec.width, spec.height), interpolation=cv2.INTER_LINEAR).astype(np.float64)
    coloured = small[:, :, ::-1] if spec.colour == "rgb" else small
    reals = (coloured - np.array(spec.mean)) / np.array(spec.scale)
    if dtype == "float32":
        return np.asarray(reals[None], dtype=np.float32)
    limits = np.iinfo(dtype)
    return np.asarray(np.clip(np.rint(reals / scale) + zero_point, limits.min, limits.max)[None], dtype=dtype)


@pytest.mark.parametrize("tensor", [INT8, UINT8, FLOAT, ("int8", 0.0078125, -1), ("int16", 0.0001, 0)])
@pytest.mark.parametrize("mean", [(0.0,), (127.5,), (123.0, 116.0, 103.0)])
@pytest.mark.parametrize("scale", [(255.0,), (127.5,), (58.0, 57.0, 56.0)])
@pytest.mark.parametrize("colour", ["rgb", "bgr"])
def test_every_way_gives_what_the_definition_gives(
    tensor: tuple[str, float, int], mean: tuple[float, ...], scale: tuple[float, ...], colour: Literal["rgb", "bgr"]
) -> None:
    spec = ImageInput(height=20, width=30, mean=mean, scale=scale, colour=colour)
    image = noise(57, 76)
    filled, _ = ImageShaper(spec, *tensor).fill(image)
    assert filled.shape == (1, 20, 30, 3)
    assert filled.dtype == tensor[0]
    assert np.allclose(filled, plainly(image, spec, *tensor), rtol=1e-6, atol=1e-6)


def test_grey_is_one_channel() -> None:
    image = np.full((10, 10, 3), (255, 0, 0), dtype=np.uint8)  # blue
    filled, _ = ImageShaper(ImageInput(height=4, width=4, colour="grey"), *FLOAT).fill(image)
    assert filled.shape == (1, 4, 4, 1)
    assert np.unique(filled).tolist() == [29.0]  # 0.114 of 255


def test_a_second_picture_is_not_mixed_with_the_first() -> None:
    for tensor in (INT8, UINT8, FLOAT):
        shaper = ImageShaper(ImageInput(height=8, width=8, scale=(255.0,)), *tensor)
        shaper.fill(noise(30, 30, seed=1))
        again, _ = shaper.fill(noise(30, 30, seed=2))
        fresh, _ = ImageShaper(ImageInput(height=8, width=8, scale=(255.0,)), *tensor).fill(noise(30, 30, seed=2))
        assert (again == fresh).all()


def test_a_letterbox_keeps_the_proportions_and_pads() -> None:
    spec = ImageInput(height=100, width=100, fit="letterbox", pad=9)
    filled, geometry = ImageShaper(spec, *FLOAT).fill(np.full((50, 200, 3), 200, dtype=np.uint8))
    assert geometry.target == (37, 62, 0, 100)
    assert set(np.unique(filled[0, 37:62])) == {200.0}
    assert set(np.unique(filled[0, :37])) == set(np.unique(filled[0, 62:])) == {9.0}


def test_a_letterbox_pads_anew_when_the_frame_changes_its_proportions() -> None:
    shaper = ImageShaper(ImageInput(height=100, width=100, fit="letterbox", pad=9), *FLOAT)
    shaper.fill(np.full((50, 200, 3), 200, dtype=np.uint8))
    filled, _ = shaper.fill(np.full((200, 50, 3), 77, dtype=np.uint8))
    assert set(np.unique(filled)) == {9.0, 77.0}


def test_a_crop_uses_the_middle() -> None:
    image = np.zeros((100, 300, 3), dtype=np.uint8)
    image[:, 100:200] = 255
    filled, geometry = ImageShaper(ImageInput(height=50, width=50, fit="crop"), *FLOAT).fill(image)
    assert geometry.source == (0, 100, 100, 200)
    assert filled.min() == 255


@given(
    st.sampled_from(["stretch", "letterbox", "crop"]),
    st.integers(8, 2000),
    st.integers(8, 2000),
    st.floats(0.05, 0.45),
    st.floats(0.55, 0.95),
)
@settings(max_examples=200, deadline=None)
def test_boxes_go_back_to_where_they_were_in_the_frame(
    fit: Fit, height: int, width: int, low: float, high: float
) -> None:
    spec = ImageInput(height=300, width=300, fit=fit)
    geometry = geometry_for(spec, height, width)
    top, bottom, left, right = geometry.source
    y0, y1, x0, x1 = geometry.target
    # A box as fractions of the used part of the frame, seen in the model's picture.
    seen = [(x0 + low * (x1 - x0)) / 300, (y0 + low * (y1 - y0)) / 300]
    seen += [(x0 + high * (x1 - x0)) / 300, (y0 + high * (y1 - y0)) / 300]
    back = geometry.to_frame(np.array([seen], dtype=np.float32))[0]
    expected = [(left + low * (right - left)) / width, (top + low * (bottom - top)) / height]
    expected += [(left + high * (right - left)) / width, (top + high * (bottom - top)) / height]
    assert back == pytest.approx(expected, abs=1e-4)


def test_a_box_in_the_padding_is_cut_off_at_the_edge_of_the_frame() -> None:
    geometry = geometry_for(ImageInput(height=100, width=100, fit="letterbox"), 50, 100)
    assert geometry.to_frame(np.array([[0.0, 0.0, 1.0, 1.0]], dtype=np.float32)).tolist() == [[0.0, 0.0, 1.0, 1.0]]


@pytest.mark.parametrize(
    "image",
    [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 4), np.uint8), np.zeros((0, 4, 3), np.uint8)],
)
def test_what_is_no_picture_is_refused(image: NDArray[np.uint8]) -> None:
    with pytest.raises(InferenceError, match="must be"):
        ImageShaper(ImageInput(height=4, width=4), *FLOAT).fill(image)


def test_a_mean_for_two_channels_fits_no_picture() -> None:
    with pytest.raises(ModelError, match=r"input\.mean: expected 1 or 3 values, found 2"):
        ImageShaper(ImageInput(height=4, width=4, mean=(1.0, 2.0)), *FLOAT)


def test_the_real_numbers_are_those_before_quantization() -> None:
    spec = ImageInput(height=6, width=6, mean=(127.5,), scale=(127.5,))
    image = noise(12, 12)
    coarse, fine = ImageShaper(spec, "int8", 0.5, 0), ImageShaper(spec, *FLOAT)
    coarse.fill(image)
    expected, _ = fine.fill(image)
    assert np.allclose(coarse.reals(), expected.reshape(1, -1))
