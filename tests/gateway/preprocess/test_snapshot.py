"""Evidence small enough to travel."""

import io

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from gateway.preprocess.snapshot import JPEG, NPY, snapshot_of
from gateway.values import Box, Frame, Window


def test_a_frame_is_cut_to_its_box_with_a_margin_and_made_small() -> None:
    image = np.zeros((1000, 2000, 3), dtype=np.uint8)
    image[:, 1000:] = 255
    snapshot = snapshot_of(Frame("c", 1, 0, 0, image), Box(0.6, 0.2, 0.9, 0.6), max_side=200, quality=80)
    assert snapshot is not None
    assert snapshot.content_type == JPEG
    assert max(snapshot.width or 0, snapshot.height or 0) == 200
    decoded = cv2.imdecode(np.frombuffer(snapshot.data, np.uint8), cv2.IMREAD_COLOR)
    assert decoded is not None
    assert decoded.shape[:2] == (snapshot.height, snapshot.width)
    assert decoded.min() > 200  # the box and its margin lie in the white half


def test_a_small_frame_is_not_enlarged() -> None:
    snapshot = snapshot_of(Frame("c", 1, 0, 0, np.zeros((30, 40, 3), np.uint8)), None, max_side=200, quality=80)
    assert snapshot is not None
    assert (snapshot.width, snapshot.height) == (40, 30)


def travelled(samples: NDArray[np.float32]) -> NDArray[np.floating]:
    """What the cloud reads of a window."""
    snapshot = snapshot_of(Window("s", 1, 0, 0, 1.0, samples), None, max_side=200, quality=80)
    assert snapshot is not None
    assert snapshot.content_type == NPY
    read: NDArray[np.floating] = np.load(io.BytesIO(snapshot.data), allow_pickle=False)
    return read


def test_a_window_travels_as_a_numpy_file_of_half_the_size() -> None:
    samples = np.arange(6, dtype=np.float32).reshape(3, 2)
    read = travelled(samples)
    assert read.tolist() == samples.tolist()
    assert read.dtype == np.float16


@pytest.mark.parametrize(
    "values",
    [
        pytest.param([101325.0, 101310.0, 25001.0], id="pascals, beyond the range"),
        pytest.param([-70000.0, 0.0, 70000.0], id="raw counts, beyond the range"),
        pytest.param([1013.05, 1013.10, 1013.15], id="hectopascals, between two steps"),
        pytest.param([4001.0, 4003.0, 4005.0], id="counts, between two steps"),
        pytest.param([20.1, 20.1, 20.1], id="a constant that is none of the steps"),
        pytest.param([float("nan"), 1.0, 2.0], id="not a number"),
    ],
)
def test_what_happened_in_a_window_is_the_same_in_the_cloud(values: list[float]) -> None:
    samples = np.array(values, np.float32).reshape(3, 1)
    read = travelled(samples)
    np.testing.assert_array_equal(read, samples)
    assert read.dtype == np.float32


def test_one_channel_that_needs_it_takes_the_others_along() -> None:
    samples = np.array([[1013.25, 0.0], [1013.30, 1.0]], np.float32)
    np.testing.assert_array_equal(travelled(samples), samples)


def test_an_acceleration_with_noise_travels_in_half_the_size_with_little_lost() -> None:
    samples = np.random.default_rng(1).normal(0.0, 2.0, (256, 3)).astype(np.float32)
    read = travelled(samples)
    assert read.dtype == np.float16
    assert np.abs(read - samples).max() < np.ptp(samples) / 1000


def test_control_in_half_precision_alone_a_pressure_is_infinite_or_a_flat_line() -> None:
    with np.errstate(over="ignore"):
        assert np.isinf(np.array([101325.0], np.float32).astype(np.float16)).all()
    assert np.ptp(np.array([1013.05, 1013.10, 1013.15], np.float32).astype(np.float16)) == 0.0
