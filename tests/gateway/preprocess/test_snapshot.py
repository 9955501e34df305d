"""Evidence small enough to travel."""

import io

import cv2
import numpy as np

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


def test_a_window_travels_as_a_numpy_file() -> None:
    samples = np.arange(6, dtype=np.float32).reshape(3, 2)
    snapshot = snapshot_of(Window("s", 1, 0, 0, 1.0, samples), None, max_side=200, quality=80)
    assert snapshot is not None
    assert snapshot.content_type == NPY
    assert np.load(io.BytesIO(snapshot.data), allow_pickle=False).tolist() == samples.tolist()
