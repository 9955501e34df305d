"""Boxes."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from gateway.errors import ModelError
from gateway.inference.detection import decode_boxes, detection_reader, make_anchors, suppress
from gateway.preprocess.image import Geometry, geometry_for
from gateway.values import Box
from gateway.wire.manifest import Detection, ImageInput, SsdAnchors
from tests.simulators.runtime import tensor


@dataclass(frozen=True)
class Sample:
    geometry: Geometry | None = None
    channels: int | None = None

    @property
    def tensor(self) -> NDArray[Any]:
        return np.zeros((1, 300, 300, 3), np.uint8)

    @property
    def reals(self) -> Callable[[], NDArray[np.float32]]:
        return lambda: np.zeros((1, 270_000), np.float32)

    def to_frame(self, boxes: NDArray[np.float32]) -> NDArray[np.float32]:
        return self.geometry.to_frame(boxes) if self.geometry else boxes


ANCHORS = SsdAnchors()
POSTPROCESSED = (tensor((1, 3, 4)), tensor((1, 3)), tensor((1, 3)), tensor((1,)))
BOXES = np.array([[[0.1, 0.2, 0.3, 0.4], [0.0, 0.0, 1.0, 1.0], [0.5, 0.5, 0.6, 0.6]]], np.float32)  # y x y x
CLASSES = np.array([[1, 0, 2]], np.float32)
SCORES = np.array([[0.9, 0.6, 0.2]], np.float32)
COUNT = np.array([3], np.float32)
THREE = Detection(labels=("person", "car", ""), min_score=0.5)


def near(box: Box | None, *sides: float) -> bool:
    return box is not None and np.allclose((box.left, box.top, box.right, box.bottom), sides, atol=1e-4)


def test_the_usual_grid_has_1917_anchors() -> None:
    anchors = make_anchors(ANCHORS)
    assert anchors.shape == (1917, 4)
    # The first cell of the lowest map: a square of 0.1, then 2:1 and 1:2 of 0.2, around half a cell.
    assert anchors[0] == pytest.approx([0.5 / 19, 0.5 / 19, 0.1, 0.1])
    assert anchors[1] == pytest.approx([0.5 / 19, 0.5 / 19, 0.2 / 2**0.5, 0.2 * 2**0.5])
    assert anchors[2] == pytest.approx([0.5 / 19, 0.5 / 19, 0.2 * 2**0.5, 0.2 / 2**0.5])
    # The next cell is to the right.
    assert anchors[3, :2] == pytest.approx([0.5 / 19, 1.5 / 19])
    # The first of the second map, and the interpolated square that ends its cell.
    assert anchors[1083] == pytest.approx([0.05, 0.05, 0.35, 0.35])
    assert anchors[1088] == pytest.approx([0.05, 0.05, (0.35 * 0.5) ** 0.5, (0.35 * 0.5) ** 0.5])
    # The very last: the square between 0.95 and 1.
    assert anchors[-1] == pytest.approx([0.5, 0.5, 0.95**0.5, 0.95**0.5])


def test_zero_encodings_are_the_anchors() -> None:
    anchors = make_anchors(ANCHORS)[[1083]]
    corners = decode_boxes(np.zeros((1, 4), np.float32), anchors, ANCHORS.box_coder_scales)
    assert corners[0] == pytest.approx([0.0, 0.0, 0.225, 0.225])  # cut at the picture's edge


def test_encodings_move_and_stretch() -> None:
    anchor = np.array([[0.5, 0.5, 0.2, 0.4]], np.float32)
    encoding = np.array([[1.0, -1.0, 5 * np.log(2), 5 * np.log(0.5)]], np.float32)
    corners = decode_boxes(encoding, anchor, ANCHORS.box_coder_scales)
    # Centre y 0.5 + 0.1 * 0.2, x 0.5 - 0.1 * 0.4; height 0.4, width 0.2.
    assert corners[0] == pytest.approx([0.36, 0.32, 0.56, 0.72])


def test_absurd_encodings_do_not_overflow() -> None:
    anchor = np.array([[0.5, 0.5, 0.2, 0.4]], np.float32)
    corners = decode_boxes(np.full((1, 4), 1e6, np.float32), anchor, ANCHORS.box_coder_scales)
    assert np.isfinite(corners).all()


def ssd(
    hits: dict[int, dict[int, float]],
    *,
    labels: tuple[str, ...] = ("person", "car"),
    quantized: bool = False,
    **more: Any,
) -> Any:
    """Read an SSD head that is silent but for some logits: anchor to column to logit."""
    output = Detection(labels=labels, layout="raw-ssd", anchors=ANCHORS, **more)
    logits = np.full((1, 1917, len(labels) + 1), -10.0, np.float32)
    for anchor, columns in hits.items():
        for column, value in columns.items():
            logits[0, anchor, column] = value
    encodings = np.zeros((1, 1917, 4), np.float32)
    specs = [tensor(encodings.shape), tensor(logits.shape)]
    outputs: tuple[NDArray[Any], ...] = (encodings, logits)
    if quantized:
        specs = [tensor(encodings.shape, "int8", 0.1, 0), tensor(logits.shape, "int8", 0.1, -20)]
        outputs = (encodings.astype(np.int8), np.clip(np.rint(logits / 0.1) - 20, -128, 127).astype(np.int8))
    return detection_reader(output, specs, None).read(outputs, Sample())


@pytest.mark.parametrize("quantized", [False, True])
def test_a_raw_head_is_decoded(quantized: bool) -> None:
    (found,) = ssd({1083 + 6 * 55: {2: 2.0}}, quantized=quantized)  # row 5, column 5 of the 10 x 10 map
    assert found.label == "car"
    assert found.score == pytest.approx(0.8808, abs=1e-3)
    assert near(found.box, 0.55 - 0.175, 0.55 - 0.175, 0.55 + 0.175, 0.55 + 0.175)


def test_the_background_is_never_found() -> None:
    assert ssd({1500: {0: 9.0}}) == ()


def test_an_anchor_has_one_class_the_best_that_has_a_name() -> None:
    assert [finding.label for finding in ssd({1500: {1: 1.0, 2: 2.0}})] == ["car"]
    assert [finding.label for finding in ssd({1500: {1: 1.0, 2: 2.0}}, labels=("person", ""))] == ["person"]


def test_what_is_below_the_minimum_score_is_not_found() -> None:
    assert ssd({1500: {1: -0.9}}, min_score=0.3) == ()
    assert len(ssd({1500: {1: -0.8}}, min_score=0.3)) == 1


def test_overlapping_boxes_of_one_class_are_thinned_those_of_two_are_not() -> None:
    square, interpolated = 1083 + 6 * 55, 1083 + 6 * 55 + 5
    assert [f.score for f in ssd({square: {1: 2.0}, interpolated: {1: 3.0}})] == [pytest.approx(0.9526, abs=1e-3)]
    assert len(ssd({square: {1: 2.0}, interpolated: {2: 3.0}})) == 2


def test_no_more_boxes_than_asked_for() -> None:
    everywhere = {anchor: {1: 1.0 + anchor / 1000} for anchor in range(0, 1083, 3)}
    assert len(ssd(everywhere, max_boxes=7, iou=0.9)) == 7


@given(st.integers(0, 2**32 - 1), st.floats(0.1, 0.9))
@settings(max_examples=50, deadline=None)
def test_suppression_keeps_what_plain_suppression_keeps(seed: int, limit: float) -> None:
    rng = np.random.default_rng(seed)
    centres, sizes = rng.uniform(0.2, 0.8, (30, 2)), rng.uniform(0.05, 0.4, (30, 2))
    corners = np.clip(np.hstack((centres - sizes / 2, centres + sizes / 2)), 0, 1).astype(np.float32)
    scores, classes = rng.uniform(0, 1, 30).astype(np.float32), rng.integers(0, 3, 30)
    kept: list[int] = []
    for index in np.argsort(-scores):
        if all(classes[index] != classes[k] or _iou(corners[index], corners[k]) <= limit for k in kept):
            kept.append(int(index))
    assert suppress(corners, scores, classes, limit, 1000).tolist() == kept


def _iou(one: NDArray[np.float32], two: NDArray[np.float32]) -> float:
    a, b = one.astype(np.float64), two.astype(np.float64)
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    overlap = max(width, 0) * max(height, 0)
    return float(overlap / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - overlap))


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (2, 0, 3, 1)])
def test_postprocessed_outputs_are_read_in_both_orders(order: tuple[int, ...]) -> None:
    specs = [POSTPROCESSED[index] for index in order]
    outputs = tuple((BOXES, CLASSES, SCORES, COUNT)[index] for index in order)
    first, second = detection_reader(THREE, specs, None).read(outputs, Sample())
    assert (first.label, second.label) == ("car", "person")
    assert near(first.box, 0.2, 0.1, 0.4, 0.3)
    assert first.score == pytest.approx(0.9)


def test_only_as_many_boxes_as_the_model_counted() -> None:
    reader = detection_reader(THREE, POSTPROCESSED, None)
    assert len(reader.read((BOXES, CLASSES, SCORES, np.array([1], np.float32)), Sample())) == 1
    assert reader.read((BOXES, CLASSES, SCORES, np.array([0], np.float32)), Sample()) == ()


def test_a_nameless_class_is_left_out_and_an_unknown_one_gets_its_number() -> None:
    reader = detection_reader(THREE, POSTPROCESSED, 0.1)
    outputs = (BOXES, np.array([[2, 77, 1]], np.float32), SCORES, COUNT)
    assert [finding.label for finding in reader.read(outputs, Sample())] == ["class-77", "car"]


def test_boxes_are_told_in_fractions_of_the_frame() -> None:
    letterboxed = geometry_for(ImageInput(height=300, width=300, fit="letterbox"), 300, 600)
    reader = detection_reader(THREE, POSTPROCESSED, None)
    boxes = np.array([[[0.25, 0.0, 0.5, 0.5], [0.0, 0.0, 0.2, 1.0], [0, 0, 0, 0]]], np.float32)
    found = reader.read((boxes, CLASSES, SCORES, COUNT), Sample(letterboxed))
    assert len(found) == 1  # the second lies in the padding
    assert near(found[0].box, 0.0, 0.0, 0.5, 0.5)


@pytest.mark.parametrize(
    "shapes", [[(1, 10, 4), (1, 10)], [(1, 10, 4), (1, 10), (1, 9), (1,)], [(1, 10), (1, 10), (1, 10), (1,)]]
)
def test_other_outputs_are_no_postprocessed_detections(shapes: list[tuple[int, ...]]) -> None:
    with pytest.raises(ModelError, match=r"expected boxes \(1, n, 4\)"):
        detection_reader(THREE, [tensor(shape) for shape in shapes], None)


def test_a_raw_head_must_fit_the_anchors_and_the_labels() -> None:
    output = Detection(labels=("a", "b"), layout="raw-ssd", anchors=ANCHORS)
    with pytest.raises(ModelError, match=r"expected \(1, 1917, 4\) and \(1, 1917, 3\) .* \(1, 1917, 24\)"):
        detection_reader(output, [tensor((1, 1917, 4)), tensor((1, 1917, 24))], None)
    detection_reader(output, [tensor((1, 1917, 3)), tensor((1, 1917, 4))], None)
