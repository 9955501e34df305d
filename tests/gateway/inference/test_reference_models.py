"""Published models through the whole of `Model`: release on disk, checks, preparation, runtime, meaning."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gateway.errors import ModelError
from gateway.preprocess.window import Windower
from gateway.values import SampleBlock
from gateway.wire.manifest import Classification, Detection, ImageInput, Plain, Reconstruction, WindowInput
from tests.gateway.inference.manifests import load, open_cpu, picture, shared, window, write_release

CLASSIFIERS = [
    ("models/coral/mobilenet_v2_1.0_224_quant.tflite", "data/images/grace_hopper.bmp", 224),
    ("models/coral/mobilenet_v2_1.0_224_quant.tflite", "data/images/cat.bmp", 224),
    ("models/coral/mobilenet_v2_1.0_224_quant.tflite", "data/images/parrot.jpg", 224),
    ("models/tflite-support/mobilenet_v1_0.25_224_quant.tflite", "data/images/burger.jpg", 224),
    ("models/coral/mobilenet_v1_0.25_128_quant.tflite", "data/images/parrot.jpg", 128),
]
SSD = "models/tflite-support/coco_ssd_mobilenet_v1_1.0_quant_2018_06_29.tflite"
AD01 = "models/mlcommons-tiny/ad01_int8.tflite"
AD_FEATURES = "data/anomaly/ad_normal_id_01_00000000_hist_librosa.bin"
AD_INPUT = WindowInput(samples=5, hop_samples=1, channels=128, rate_hz=31.25, features=Plain())


def case_of(model: str, given: str | None = None) -> dict[str, Any]:
    cases = json.loads(shared("data/golden.json").read_text())["cases"]
    found: dict[str, Any] = next(c for c in cases if c["model"] == model and given in (None, c.get("input")))
    return found


def labels(path: str, count: int) -> tuple[str, ...]:
    """Read labels as `number name` or one a line; unnamed numbers are ""."""
    names = [""] * count
    for number, line in enumerate(shared(path).read_text().splitlines()):
        head, _, rest = line.partition(" ")
        if rest and head.isdigit():
            names[int(head)] = rest.strip()
        else:
            names[number] = line.strip()
    return tuple(names)


@pytest.mark.parametrize(("model", "image", "side"), CLASSIFIERS)
def test_a_mobilenet_names_the_picture(tmp_path: Path, model: str, image: str, side: int) -> None:
    case = case_of(model, image)
    names = labels("data/labels/imagenet_labels.txt", 1001)
    # The graph takes (pixel - 128) / 128, which its input tensor's own quantization undoes: uint8 pixels as they are.
    spec = ImageInput(height=side, width=side, interpolation="area", mean=(128.0,), scale=(128.0,))
    ready = open_cpu(tmp_path, shared(model).read_bytes(), spec, Classification(labels=names))
    best = ready.infer(picture(shared(image))).findings[0]
    assert best.label == names[case["top1"]["index"]]
    assert case["top1"]["name"] in best.label
    assert best.score == pytest.approx(case["top1"]["score"], abs=case["tolerance"]["score"])


def test_coco_ssd_finds_the_cats_and_the_dog(tmp_path: Path) -> None:
    case = case_of(SSD)
    names = labels("data/labels/coco_labels.txt", 90)
    spec = ImageInput(height=300, width=300, mean=(128.0,), scale=(128.0,))
    ready = open_cpu(tmp_path, shared(SSD).read_bytes(), spec, Detection(labels=names, min_score=0.5))
    found = ready.infer(picture(shared(case["input"]))).findings
    assert len(found) == len(case["expected"])
    width, height = case["image_size"]
    for finding, expected in zip(found, case["expected"], strict=True):
        assert finding.label == expected["name"]
        assert finding.score == pytest.approx(expected["score"], abs=case["tolerance"]["score"])
        assert finding.box is not None
        box = finding.box
        corner_and_size = (
            box.left * width,
            box.top * height,
            (box.right - box.left) * width,
            (box.bottom - box.top) * height,
        )
        assert corner_and_size == pytest.approx(expected["xywh"], abs=case["tolerance"]["box_px"])


def test_a_letterboxed_detector_answers_in_fractions_of_the_frame(tmp_path: Path) -> None:
    names = labels("data/labels/coco_labels.txt", 90)
    spec = ImageInput(height=300, width=300, mean=(128.0,), scale=(128.0,), fit="letterbox", pad=128)
    ready = open_cpu(tmp_path, shared(SSD).read_bytes(), spec, Detection(labels=names, min_score=0.5))
    boxes = [finding.box for finding in ready.infer(picture(shared("data/images/cats_and_dogs.jpg"))).findings]
    # The big cat of the golden case, (605, 161) to (992, 600) of 1200 x 600, whatever it is taken for when it is that
    # small; in fractions of the letterboxed picture it would end at y = 0.75.
    assert any(b is not None and b.left > 0.45 and b.right < 0.9 and b.bottom > 0.95 and b.top < 0.4 for b in boxes)


def test_the_pipelines_minimum_score_replaces_the_manifests(tmp_path: Path) -> None:
    spec = ImageInput(height=300, width=300, mean=(128.0,), scale=(128.0,))
    names = labels("data/labels/coco_labels.txt", 90)
    contents = {"cpu-int8": shared(SSD).read_bytes()}
    write_release(tmp_path, contents, spec, Detection(labels=names, min_score=0.3))  # type: ignore[arg-type] # literal key
    frame = picture(shared("data/images/cats_and_dogs.jpg"))
    assert len(load(tmp_path, min_score=0.6).infer(frame).findings) == 2
    assert len(load(tmp_path).infer(frame).findings) > 4


def test_ad01_scores_a_toy_car_as_its_makers_did(tmp_path: Path) -> None:
    case = case_of(AD01)
    ready = open_cpu(tmp_path, shared(AD01).read_bytes(), AD_INPUT, Reconstruction(threshold=12.0))
    frames = np.fromfile(shared(AD_FEATURES), dtype="<f4").reshape(200, 128)
    windows = Windower(samples=5, hop=1, channels=128).push(SampleBlock("car", 0, 0, 31.25, frames))
    answers = [ready.infer(one) for one in windows]
    assert len(answers) == 196
    assert all(answer.anomaly for answer in answers)
    scores = [answer.findings[0].raw_score or 0.0 for answer in answers]
    assert np.mean(scores) == pytest.approx(case["anomaly_score"], abs=case["tolerance"]["score"])
    assert sum(answer.raw_bytes for answer in answers) == frames.nbytes  # windows overlap, bytes count once


def test_the_float_ad01_scores_a_little_lower(tmp_path: Path) -> None:
    content = shared("models/mlcommons-tiny/ad01_fp32.tflite").read_bytes()
    write_release(tmp_path, {"cpu-float": content}, AD_INPUT, Reconstruction(threshold=12.0))
    ready = load(tmp_path)
    frames = np.fromfile(shared(AD_FEATURES), dtype="<f4").reshape(200, 128)
    windows = Windower(samples=5, hop=1, channels=128).push(SampleBlock("car", 0, 0, 31.25, frames))
    scores = [ready.infer(one).findings[0].raw_score or 0.0 for one in windows]
    assert np.mean(scores) == pytest.approx(case_of(AD01)["float_model_score"], abs=0.01)


@pytest.mark.parametrize(("image", "expected"), [("face.jpg", "person"), ("cat.bmp", "no person")])
def test_visual_wake_words_tells_whether_somebody_is_there(tmp_path: Path, image: str, expected: str) -> None:
    content = shared("models/mlcommons-tiny/vww_96_int8.tflite").read_bytes()
    spec = ImageInput(height=96, width=96, scale=(255.0,))
    ready = open_cpu(tmp_path, content, spec, Classification(labels=("no person", "person"), top=1))
    (best,) = ready.infer(picture(shared(f"data/images/{image}"))).findings
    assert best.label == expected


def test_the_keyword_spotter_and_the_wake_word_run_on_plain_windows(tmp_path: Path) -> None:
    kws = WindowInput(samples=49, hop_samples=49, channels=10, rate_hz=50, features=Plain())
    names = tuple(f"word-{n}" for n in range(12))
    content = shared("models/mlcommons-tiny/kws_ref_model.tflite").read_bytes()
    ready = open_cpu(tmp_path / "kws", content, kws, Classification(labels=names, top=12))
    findings = ready.infer(window(np.zeros((49, 10), np.float32), 50)).findings
    assert sum(finding.score for finding in findings) == pytest.approx(1.0, abs=0.05)

    wake = WindowInput(samples=30, hop_samples=30, channels=40, rate_hz=50, features=Plain())
    content = shared("models/mlcommons-tiny/str_ww_ref_model.tflite").read_bytes()
    ready = open_cpu(tmp_path / "wake", content, wake, Classification(labels=("marvin", "silence", "other")))
    assert len(ready.infer(window(np.zeros((30, 40), np.float32), 50)).findings) == 3


def test_the_cifar_resnet_runs(tmp_path: Path) -> None:
    content = shared("models/mlcommons-tiny/pretrainedResnet_quant.tflite").read_bytes()
    spec = ImageInput(height=32, width=32)
    names = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
    ready = open_cpu(tmp_path, content, spec, Classification(labels=names))
    assert len(ready.infer(picture(shared("data/images/cat.bmp"))).findings) == 3


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("models/coral/model_invoking_error.tflite", "custom operation fake-op-double"),
        ("models/coral/mobilenet_v1_0.25_128_quant_edgetpu.tflite", "install libedgetpu.so.1"),
    ],
)
def test_a_custom_operation_is_named_with_its_remedy(tmp_path: Path, model: str, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        open_cpu(tmp_path, shared(model).read_bytes(), ImageInput(height=128, width=128), Classification(labels=("a",)))


def test_a_model_of_another_shape_names_both_shapes(tmp_path: Path) -> None:
    content = shared("models/mlcommons-tiny/vww_96_int8.tflite").read_bytes()
    with pytest.raises(ModelError, match=r"manifest says \(1, 300, 300, 3\), the model has \(1, 96, 96, 3\)"):
        open_cpu(tmp_path, content, ImageInput(height=300, width=300), Classification(labels=("a", "b")))
