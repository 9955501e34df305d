"""A float SSD detector to full int8, and how far its answers are from those of the float file. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema
from numpy.typing import NDArray

from cloud_bridge.training.flatbuffer import head_tensors, prepared_for_quantization
from cloud_bridge.training.quantize import to_int8

LOGIT_RANGE: Final = (-8.0, 4.0)
"""Beyond it a class is sure (0.0003, 0.98). Uncut, the logits of empty places (-20) coarsen the steps of all others."""

ENCODING_RANGE: Final = (-16.0, 16.0)
"""Encodings of boxes that hold nothing reach -80; those of boxes with a score above 0.2 stay within 13."""

_SAME_OBJECT_IOU: Final = 0.5


@dataclass(frozen=True, slots=True)
class Detected:
    """One box: left, top, right, bottom in fractions of the frame."""

    label: str
    score: float
    box: tuple[float, float, float, float]


Detections = Sequence[Detected]  # of one frame


@dataclass(frozen=True, slots=True)
class Agreement:
    """How two detectors agree over some frames.

    `f1` counts a box that one has at or above the threshold and the other does not, even if it missed it by a hair;
    `f1_with_slack` only one that the other does not have at or above the threshold less the slack.
    """

    f1: float
    f1_with_slack: float
    mean_score: float  # of the reference's boxes that were matched
    mean_score_candidate: float
    boxes: int  # the reference's at or above the threshold
    unconfirmed: int  # of both together, those that count against `f1_with_slack`


def quantized(
    model: bytes, samples: Sequence[NDArray[np.float32]], *, boxes: str, logits: str, input_name: str
) -> bytes:
    """Return the full int8 model: weights, activations, input and outputs.

    Args:
        model: a float or half-float .tflite with two outputs.
        samples: prepared inputs, (1, height, width, channels), that show what the detector will see.
        boxes: name of the output with the box encodings.
        logits: name of the output with the class logits.
        input_name: of the graph.
    """
    prepared = prepared_for_quantization(model)
    limits = dict.fromkeys(head_tensors(prepared, boxes), ENCODING_RANGE)
    limits |= dict.fromkeys(head_tensors(prepared, logits), LOGIT_RANGE)
    return _without_idle_buffers(to_int8(prepared, input_name, samples, limits))


def agreement(
    reference: Sequence[Detections], candidate: Sequence[Detections], *, threshold: float, slack: float
) -> Agreement:
    """Compare the boxes of two detectors, frame by frame.

    Args:
        reference: boxes of each frame, down to `threshold - slack`.
        candidate: the same of the other.
        threshold: the score from which a box counts.
        slack: how far below the threshold the partner of a box may be for `f1_with_slack`.
    """
    pairs: list[tuple[Detected, Detected]] = []
    boxes = boxes_candidate = confirmed = 0
    for ours, theirs in zip(reference, candidate, strict=True):
        certain, certain_candidate = at_least(ours, threshold), at_least(theirs, threshold)
        boxes += len(certain)
        boxes_candidate += len(certain_candidate)
        pairs += matches(certain, certain_candidate)
        confirmed += len(matches(certain, at_least(theirs, threshold - slack)))
        confirmed += len(matches(certain_candidate, at_least(ours, threshold - slack)))
    both = boxes + boxes_candidate
    matched = max(len(pairs), 1)
    return Agreement(
        f1=2 * len(pairs) / both if both else 1.0,
        f1_with_slack=confirmed / both if both else 1.0,
        mean_score=sum(one.score for one, _ in pairs) / matched,
        mean_score_candidate=sum(other.score for _, other in pairs) / matched,
        boxes=boxes,
        unconfirmed=both - confirmed,
    )


def at_least(detections: Detections, score: float) -> list[Detected]:
    """Return the boxes at or above a score, best first."""
    return sorted((one for one in detections if one.score >= score), key=lambda one: -one.score)


def matches(ours: Detections, theirs: Detections) -> list[tuple[Detected, Detected]]:
    """Pair boxes of the same label that overlap by half (intersection over union); each is used once."""
    left = list(theirs)
    pairs = []
    for one in ours:
        overlaps = [iou(one.box, other.box) if other.label == one.label else 0.0 for other in left]
        best = max(range(len(left)), key=overlaps.__getitem__, default=-1)
        if best >= 0 and overlaps[best] >= _SAME_OBJECT_IOU:
            pairs.append((one, left.pop(best)))
    return pairs


def iou(a: tuple[float, float, float, float], b: tuple[float, float, float, float]) -> float:
    """Return the intersection of two boxes over their union."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    both = width * height
    return both / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - both)


def _without_idle_buffers(data: bytes) -> bytes:
    """Drop the buffers that nothing refers to any more: the half-float weights and the uncorrected ones."""
    model: Any = schema.ModelT.InitFromObj(schema.Model.GetRootAs(data, 0))
    tensors = [tensor for graph in model.subgraphs for tensor in graph.tensors]
    metadata = model.metadata or []
    used = sorted({0, *(int(part.buffer) for part in (*tensors, *metadata))})  # buffer 0 is the empty one
    moved = {old: new for new, old in enumerate(used)}
    model.buffers = [_inlined(model.buffers[old], data) for old in used]
    for part in (*tensors, *metadata):
        part.buffer = moved[int(part.buffer)]
    builder = flatbuffers.Builder(len(data))
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def _inlined(buffer: Any, data: bytes) -> Any:
    """Take in a buffer that lies behind the flatbuffer, as the quantizer writes the larger ones."""
    if buffer.offset > 1:
        buffer.data = np.frombuffer(data[buffer.offset : buffer.offset + buffer.size], np.uint8)
        buffer.offset = buffer.size = 0
    return buffer
