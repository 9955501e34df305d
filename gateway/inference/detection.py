"""Boxes from detectors: those that end in TFLite_Detection_PostProcess, and bare SSD heads. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf, log, prod, sqrt

import numpy as np
from numpy.typing import NDArray

from gateway.errors import ModelError
from gateway.inference.backend import Tensors, TensorSpec
from gateway.inference.postprocess import PreparedSample, Reader, Reals, best_first, dequantize
from gateway.values import Box, Finding
from gateway.wire.manifest import Detection, SsdAnchors

Anchors = NDArray[np.float32]

_CANDIDATES = 200
"""Boxes that reach non-maximum suppression, at most; the best ones."""

_LOWEST_LAYER_SCALE = 0.1


@dataclass(frozen=True, slots=True)
class PostprocessedReader:
    """The four outputs of TFLite_Detection_PostProcess, in either order in which converters write them."""

    output: Detection
    min_score: float
    boxes: int  # which output
    classes: int
    scores: int
    count: int

    def read(self, outputs: Tensors, prepared: PreparedSample) -> tuple[Finding, ...]:
        """Take the boxes that the model counted, best first."""
        count = int(outputs[self.count].reshape(-1)[0])
        scores = outputs[self.scores].reshape(-1)[:count]
        chosen = np.flatnonzero(scores >= self.min_score)[: self.output.max_boxes]
        corners = outputs[self.boxes].reshape(-1, 4)[chosen][:, [1, 0, 3, 2]]  # from top, left, bottom, right
        classes = outputs[self.classes].reshape(-1)[chosen].astype(np.int64)
        return findings_of(corners, classes, scores[chosen], self.output.labels, prepared)


@dataclass(frozen=True, slots=True)
class SsdReader:
    """Box encodings and class logits of an SSD head. Logit 0 is the background."""

    output: Detection
    min_score: float
    anchors: Anchors
    scales: tuple[float, float, float, float]
    named: NDArray[np.int64]  # columns of the logits whose label is not ""
    boxes: TensorSpec
    logits: TensorSpec
    boxes_at: int
    logits_at: int

    def read(self, outputs: Tensors, prepared: PreparedSample) -> tuple[Finding, ...]:
        """Decode what is above the minimum score; one class for each anchor, suppression within each class."""
        logits = outputs[self.logits_at].reshape(len(self.anchors), -1)
        # Compare in the tensor's own steps: no need to turn 40,000 logits into probabilities. The background, which is
        # high nearly everywhere, stays out.
        lowest = raw_of(logit(self.min_score), self.logits)
        hits = np.unique(np.flatnonzero(logits[:, 1:] >= lowest) // (logits.shape[1] - 1))
        named = logits[hits][:, self.named]
        best = named.max(axis=1)
        chosen = np.argsort(-best.astype(np.float32), kind="stable")[:_CANDIDATES]
        chosen = chosen[best[chosen] >= lowest]
        hits, best, named = hits[chosen], best[chosen], named[chosen]
        scores = 1.0 / (1.0 + np.exp(-np.clip(dequantize(best, self.logits), -80.0, 80.0)))
        classes = self.named[named.argmax(axis=1)] - 1
        encodings = dequantize(outputs[self.boxes_at].reshape(-1, 4)[hits], self.boxes)
        corners = decode_boxes(encodings, self.anchors[hits], self.scales)
        kept = suppress(corners, scores, classes, self.output.iou, self.output.max_boxes)
        return findings_of(corners[kept], classes[kept], scores[kept], self.output.labels, prepared)


def detection_reader(output: Detection, outputs: Sequence[TensorSpec], min_score: float | None) -> Reader:
    """Return the reader for a detector.

    Args:
        output: the manifest's part.
        outputs: the output tensors, with the shapes a run gave them.
        min_score: instead of the manifest's.

    Raises:
        ModelError: the outputs are not what the manifest says.
    """
    lowest = output.min_score if min_score is None else min_score
    if output.layout == "postprocessed":
        return _postprocessed_reader(output, outputs, lowest)
    return _ssd_reader(output, outputs, lowest)


def _postprocessed_reader(output: Detection, outputs: Sequence[TensorSpec], min_score: float) -> PostprocessedReader:
    dimensions = [len(spec.shape) for spec in outputs]
    sizes = [prod(spec.shape) for spec in outputs]
    if dimensions == [3, 2, 2, 1] and sizes[0] == 4 * sizes[1] == 4 * sizes[2] and sizes[3] == 1:
        return PostprocessedReader(output, min_score, boxes=0, classes=1, scores=2, count=3)
    if dimensions == [2, 3, 1, 2] and sizes[1] == 4 * sizes[0] == 4 * sizes[3] and sizes[2] == 1:
        # Models with a signature, as newer converters write them.
        return PostprocessedReader(output, min_score, scores=0, boxes=1, count=2, classes=3)
    raise ModelError(
        "output tensors: expected boxes (1, n, 4), classes (1, n), scores (1, n) and count (1), the model has "
        + _shapes(outputs)
    )


def _ssd_reader(output: Detection, outputs: Sequence[TensorSpec], min_score: float) -> SsdReader:
    if output.anchors is None:
        raise ModelError("output.anchors: needed for the layout raw-ssd")
    anchors = make_anchors(output.anchors)
    wanted_boxes, wanted_logits = (1, len(anchors), 4), (1, len(anchors), len(output.labels) + 1)
    shapes = [spec.shape for spec in outputs]
    if shapes == [wanted_boxes, wanted_logits]:
        boxes_at, logits_at = 0, 1
    elif shapes == [wanted_logits, wanted_boxes]:
        boxes_at, logits_at = 1, 0
    else:
        raise ModelError(
            f"output tensors: expected {wanted_boxes} and {wanted_logits} ({len(anchors)} anchors, "
            f"{len(output.labels)} labels and the background), the model has {_shapes(outputs)}"
        )
    named = np.array([index + 1 for index, label in enumerate(output.labels) if label], dtype=np.int64)
    if not named.size:
        raise ModelError("output.labels: all are empty")
    return SsdReader(
        output=output,
        min_score=min_score,
        anchors=anchors,
        scales=output.anchors.box_coder_scales,
        named=named,
        boxes=outputs[boxes_at],
        logits=outputs[logits_at],
        boxes_at=boxes_at,
        logits_at=logits_at,
    )


def make_anchors(spec: SsdAnchors) -> Anchors:
    """Return the anchors, (n, 4) as centre y, centre x, height, width in fractions of the picture.

    Row by row, then column by column of each feature map, then by aspect ratio, the interpolated square last; the
    scales grow evenly from `min_scale` to `max_scale`. The lowest map has three anchors a cell if it is reduced: a
    square of 0.1, and 2:1 and 1:2. As `multiple_grid_anchor_generator.py` of the TensorFlow object detection API.
    """
    layers = len(spec.feature_maps)
    step = (spec.max_scale - spec.min_scale) / (layers - 1) if layers > 1 else 0.0
    scales = [spec.min_scale + step * layer for layer in range(layers)] + [1.0]
    grids: list[NDArray[np.float64]] = []
    for layer, side in enumerate(spec.feature_maps):
        shapes = _cell_shapes(spec, layer, scales)
        centres = (np.arange(side) + 0.5) / side
        y, x, which = np.meshgrid(centres, centres, np.arange(len(shapes)), indexing="ij")
        sizes = np.array(shapes)[which.reshape(-1)]
        grids.append(np.column_stack((y.reshape(-1), x.reshape(-1), sizes)))
    return np.concatenate(grids).astype(np.float32)


def _cell_shapes(spec: SsdAnchors, layer: int, scales: Sequence[float]) -> list[tuple[float, float]]:
    """Return (height, width) of the anchors of one cell."""
    scale = scales[layer]
    if layer == 0 and spec.reduce_boxes_in_lowest_layer:
        pairs = [(_LOWEST_LAYER_SCALE, 1.0), (scale, 2.0), (scale, 0.5)]
    else:
        pairs = [(scale, ratio) for ratio in spec.aspect_ratios]
        if spec.interpolated_scale_aspect_ratio > 0:
            pairs.append((sqrt(scale * scales[layer + 1]), spec.interpolated_scale_aspect_ratio))
    return [(size / sqrt(ratio), size * sqrt(ratio)) for size, ratio in pairs]


def decode_boxes(encodings: Reals, anchors: Anchors, scales: tuple[float, float, float, float]) -> Reals:
    """Return corners (n, 4) as left, top, right, bottom, cut to the picture, from encodings (n, 4) as y, x, h, w."""
    y_scale, x_scale, h_scale, w_scale = scales
    centre_y = encodings[:, 0] / y_scale * anchors[:, 2] + anchors[:, 0]
    centre_x = encodings[:, 1] / x_scale * anchors[:, 3] + anchors[:, 1]
    # Above e^20 the box is the whole picture anyway, and nothing overflows.
    half_h = np.exp(np.minimum(encodings[:, 2] / h_scale, 20.0)) * anchors[:, 2] / 2
    half_w = np.exp(np.minimum(encodings[:, 3] / w_scale, 20.0)) * anchors[:, 3] / 2
    corners = np.column_stack((centre_x - half_w, centre_y - half_h, centre_x + half_w, centre_y + half_h))
    cut: Reals = np.clip(corners, 0.0, 1.0).astype(np.float32)
    return cut


def suppress(
    corners: Reals, scores: NDArray[np.floating], classes: NDArray[np.int64], iou: float, limit: int
) -> NDArray[np.int64]:
    """Return the indices that non-maximum suppression keeps, best first, at most `limit`.

    Boxes of one class that overlap a better one by more than `iou` (intersection over union) go.
    """
    # Moved apart by class, boxes of different classes never overlap: one pass serves all classes.
    apart = corners.astype(np.float64) + 2.0 * classes[:, None]
    areas = (apart[:, 2] - apart[:, 0]) * (apart[:, 3] - apart[:, 1])
    left, top, right, bottom = apart.T
    overlap_w = np.minimum.outer(right, right) - np.maximum.outer(left, left)
    overlap_h = np.minimum.outer(bottom, bottom) - np.maximum.outer(top, top)
    overlap = np.maximum(overlap_w, 0.0) * np.maximum(overlap_h, 0.0)
    too_close = overlap > iou * (np.add.outer(areas, areas) - overlap)
    alive = np.ones(len(scores), dtype=np.bool_)
    kept: list[int] = []
    for index in np.argsort(-scores, kind="stable").tolist():
        if alive[index] and len(kept) < limit:
            kept.append(index)
            alive &= ~too_close[index]
    return np.array(kept, dtype=np.int64)


def findings_of(
    corners: Reals,
    classes: NDArray[np.int64],
    scores: NDArray[np.floating],
    labels: Sequence[str],
    prepared: PreparedSample,
) -> tuple[Finding, ...]:
    """Name the boxes and map them to the frame; those of a label "" or without an area in the frame are left out."""
    if not len(corners):
        return ()
    findings = []
    for box, index, score in zip(prepared.to_frame(corners).tolist(), classes.tolist(), scores.tolist(), strict=True):
        label = labels[index] if 0 <= index < len(labels) else f"class-{index}"
        left, top, right, bottom = (min(1.0, max(0.0, side)) for side in box)
        if label and left < right and top < bottom:
            findings.append(Finding(label, min(1.0, max(0.0, score)), Box(left, top, right, bottom)))
    return best_first(findings)


def logit(probability: float) -> float:
    """Return what the sigmoid turns into a probability."""
    if probability <= 0:
        return -inf
    return inf if probability >= 1 else log(probability / (1 - probability))


def raw_of(real: float, spec: TensorSpec) -> float:
    """Return a real number in the steps of a tensor."""
    return real / spec.scale + spec.zero_point if spec.scale else real


def _shapes(outputs: Sequence[TensorSpec]) -> str:
    return ", ".join(str(spec.shape) for spec in outputs) or "none"
