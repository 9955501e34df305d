"""A whole model: checks at load, and inference."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from gateway.errors import InferenceError, ModelError
from gateway.inference.backend import Tensors
from gateway.inference.model import Model
from gateway.wire.manifest import (
    Classification,
    Detection,
    ImageInput,
    LogMel,
    Plain,
    Reconstruction,
    Regression,
    Standardised,
    WindowInput,
)
from tests.gateway.inference.graphs import dense
from tests.gateway.inference.manifests import digest, frame, load, open_cpu, window, write_release
from tests.simulators.runtime import ScriptedBackend, tensor

FOUR = WindowInput(samples=4, hop_samples=2, rate_hz=1, features=Plain(), per_channel=True)
SUM = dense(np.ones((1, 4), np.float32), np.zeros(1, np.float32))
ONES = np.ones((4, 1), np.float32)


def sums(batch: NDArray[Any]) -> Tensors:
    return (batch.astype(np.float32).sum(axis=1, keepdims=True),)


def scripted(
    tmp_path: Path, backend: ScriptedBackend, spec: Any = FOUR, *, max_batch: int = 1, output: Any = None
) -> Model:
    output = output or Regression(threshold=4.0)
    write_release(tmp_path, {"cpu-int8": b"any"}, spec, output, max_batch=max_batch)
    return load(tmp_path, backends=(backend,))


def adder(**knobs: Any) -> ScriptedBackend:
    return ScriptedBackend(**{"inputs": (tensor((1, 4)),), "outputs": (tensor((1, 1)),), "answer": sums, **knobs})


def test_an_inference_says_where_it_comes_from(tmp_path: Path) -> None:
    model = open_cpu(tmp_path, SUM, FOUR, Regression(threshold=4.0))
    answer = model.infer(window(ONES, sequence=3))
    assert (answer.source, answer.sequence, answer.captured_at_ns, answer.received_ns) == ("sensor", 3, 1_000, 2_000)
    assert (answer.model.name, answer.model.version, answer.model.digest) == ("probe", "1.0.0", digest(SUM))
    assert answer.anomaly
    assert answer.findings[0].score == pytest.approx(0.5)
    assert answer.findings[0].channel == 0
    assert 0 < answer.invoke_ns < 1e9
    assert model.latency.invoke_ns == answer.invoke_ns
    assert model.latency.prepare_ns > 0
    assert model.info.backend == "litert-cpu"


def test_a_classifier_is_no_anomaly_detector(tmp_path: Path) -> None:
    content = dense(np.eye(4, dtype=np.float32), np.zeros(4, np.float32))
    model = open_cpu(tmp_path, content, FOUR, Classification(labels=("a", "b", "c", "d")))
    assert not model.infer(window(ONES)).anomaly


def test_the_bytes_of_overlapping_windows_count_once(tmp_path: Path) -> None:
    model = open_cpu(tmp_path, SUM, FOUR, Regression(threshold=4.0))
    assert [model.infer(window(ONES, sequence=n)).raw_bytes for n in (1, 2, 3)] == [16, 8, 8]


def test_a_frame_counts_with_all_its_bytes(tmp_path: Path) -> None:
    content = dense(np.ones((2, 12), np.float32), np.zeros(2, np.float32))
    backend = ScriptedBackend(
        inputs=(tensor((1, 2, 2, 3), "uint8"),),
        outputs=(tensor((1, 2)),),
        answer=lambda batch: (np.zeros((len(batch), 2), np.float32),),
    )
    write_release(tmp_path, {"cpu-int8": content}, ImageInput(height=2, width=2), Classification(labels=("a", "b")))
    answer = load(tmp_path, backends=(backend,)).infer(frame(np.zeros((20, 30, 3), np.uint8)))
    assert answer.raw_bytes == 1800


def test_channels_run_as_one_batch_where_the_release_allows_it(tmp_path: Path) -> None:
    backend = adder()
    model = scripted(tmp_path, backend, max_batch=4)
    sample = window(np.arange(12, dtype=np.float32).reshape(4, 3))
    found = model.infer(sample).findings
    assert [(finding.channel, finding.raw_score) for finding in found] == [(2, 26.0), (1, 22.0), (0, 18.0)]
    assert [len(batch) for batch in backend.sessions[0].batches] == [1, 4, 3]  # two warm-ups, one run
    assert model.batch_fill(sample) == 1.0


def test_more_channels_than_a_batch_may_have_run_in_even_batches(tmp_path: Path) -> None:
    backend = adder()
    model = scripted(tmp_path, backend, max_batch=2)
    sample = window(np.arange(20, dtype=np.float32).reshape(4, 5))
    found = model.infer(sample).findings
    assert sorted(finding.channel or 0 for finding in found) == [0, 1, 2, 3, 4]
    assert [len(batch) for batch in backend.sessions[0].batches[2:]] == [2, 2, 2]
    assert model.batch_fill(sample) == pytest.approx(5 / 6)


def test_a_device_that_takes_single_rows_gets_single_rows(tmp_path: Path) -> None:
    backend = adder(fixed_batch=True)
    model = scripted(tmp_path, backend, max_batch=8)
    assert len(model.infer(window(np.ones((4, 3), np.float32))).findings) == 3
    assert {len(batch) for batch in backend.sessions[0].batches} == {1}


def test_batches_on_the_real_runtime_give_what_single_rows_give(tmp_path: Path) -> None:
    sample = window(np.arange(12, dtype=np.float32).reshape(4, 3))
    single = open_cpu(tmp_path / "single", SUM, FOUR, Regression(threshold=4.0))
    batched = open_cpu(tmp_path / "batched", SUM, FOUR, Regression(threshold=4.0), max_batch=3)
    assert single.infer(sample).findings == batched.infer(sample).findings


def test_a_batch_the_model_does_not_really_take_is_found_out_at_load(tmp_path: Path) -> None:
    backend = adder(answer=lambda batch: (np.zeros((1, 1), np.float32),))
    with pytest.raises(ModelError, match="max_batch 4: 4 rows gave outputs of"):
        scripted(tmp_path, backend, max_batch=4)


def test_stacked_spectrogram_frames_are_one_answer(tmp_path: Path) -> None:
    mel = LogMel(mels=4, fft_samples=64, hop_samples=32, stack=2)
    spec = WindowInput(samples=512, hop_samples=512, rate_hz=1000, features=mel)
    backend = ScriptedBackend(
        inputs=(tensor((1, 8)),), outputs=(tensor((1, 8)),), answer=lambda batch: (np.zeros_like(batch),)
    )
    model = scripted(tmp_path, backend, spec, max_batch=32, output=Reconstruction(threshold=100.0))
    (finding,) = model.infer(window(np.random.default_rng(1).normal(size=(512, 1)).astype(np.float32), 1000)).findings
    (batch,) = backend.sessions[0].batches[2:]
    assert batch.shape == (14, 8)
    assert finding.raw_score == pytest.approx(float((batch.astype(np.float64) ** 2).mean()))
    assert finding.channel is None


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_an_answer_that_is_not_finite_is_an_error_and_never_a_finding(tmp_path: Path, bad: float) -> None:
    answers = iter([0.0, bad, 1.0])
    backend = adder(answer=lambda batch: (np.full((len(batch), 1), next(answers), np.float32),))
    model = scripted(tmp_path, backend)
    with pytest.raises(InferenceError, match="not finite"):
        model.infer(window(ONES))
    assert model.infer(window(ONES)).findings[0].raw_score == 1.0


def test_a_model_with_a_nan_weight_never_finds_anything(tmp_path: Path) -> None:
    model = open_cpu(
        tmp_path, dense(np.full((1, 4), np.nan, np.float32), np.zeros(1, np.float32)), FOUR, Regression(threshold=1.0)
    )
    with pytest.raises(InferenceError, match="not finite"):
        model.infer(window(ONES))


def test_a_sample_of_the_wrong_kind_is_refused_and_the_next_is_not(tmp_path: Path) -> None:
    model = open_cpu(tmp_path, SUM, FOUR, Regression(threshold=4.0))
    with pytest.raises(InferenceError, match="source camera"):
        model.infer(frame(np.zeros((4, 4, 3), np.uint8)))
    model.infer(window(ONES))


def test_an_excluded_window_stays_out_of_the_baseline(tmp_path: Path) -> None:
    features = Standardised(baseline_windows=1, clip=100.0, floor=1.0)
    spec = WindowInput(samples=4, hop_samples=4, rate_hz=1, features=features, per_channel=True)
    scores = []
    for name, excluded in (("kept", False), ("excluded", True)):
        model = open_cpu(tmp_path / name, SUM, spec, Regression(threshold=4.0))
        model.infer(window(ONES))
        model.infer(window(ONES * 10))
        if excluded:
            model.exclude_last()
        scores.append(model.infer(window(ONES * 10)).findings[0].raw_score)
    assert scores == [0.0, 36.0]


FIVE = WindowInput(samples=5, hop_samples=5, rate_hz=1, features=Plain())


@pytest.mark.parametrize(
    ("spec", "output", "message"),
    [
        (FIVE, Regression(threshold=1), r"make \(1, 5\), the model has \(1, 4\)"),
        (ImageInput(height=2, width=2), Regression(threshold=1), r"says \(1, 2, 2, 3\), the model has \(1, 4\)"),
        (FOUR, Classification(labels=("a", "b")), r"expected \(1, 2\) .* the model has \(1, 1\)"),
        (FOUR, Reconstruction(threshold=1), r"expected \(1, 4\) .* the model has \(1, 1\)"),
        (FOUR, Detection(labels=("a",)), r"expected boxes .* the model has \(1, 1\)"),
    ],
)
def test_a_model_that_is_not_what_its_manifest_says_is_refused(
    tmp_path: Path, spec: Any, output: Any, message: str
) -> None:
    with pytest.raises(ModelError, match=rf"model probe 1\.0\.0, cpu-int8\.tflite: .*{message}"):
        open_cpu(tmp_path, SUM, spec, output)


def test_a_refused_model_gives_its_session_back(tmp_path: Path) -> None:
    backend = adder(outputs=(tensor((1, 1)), tensor((1, 1))), answer=lambda batch: (batch[:, :1], batch[:, :1]))
    with pytest.raises(ModelError, match="one output tensor"):
        scripted(tmp_path, backend)
    assert backend.sessions[0].closed


def test_two_inputs_are_one_too_many(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="expected one input tensor, found 2"):
        scripted(tmp_path, adder(inputs=(tensor((1, 4)), tensor((1, 4)))))


def test_the_runtime_never_sees_a_byte_of_a_file_that_is_not_the_releases(tmp_path: Path) -> None:
    folder = write_release(tmp_path, {"cpu-int8": SUM}, FOUR, Regression(threshold=1.0))
    content = bytearray(SUM)
    content[-1] ^= 1
    (folder / "cpu-int8.tflite").write_bytes(content)
    backend = adder()
    with pytest.raises(ModelError, match="is not the file of this release"):
        load(tmp_path, backends=(backend,))
    assert backend.loaded == []


@pytest.mark.parametrize("cut", [0.2, 0.5, 0.9])
def test_a_truncated_or_garbage_file_with_the_right_digest_is_an_error(tmp_path: Path, cut: float) -> None:
    with pytest.raises(ModelError, match="cannot be loaded"):
        open_cpu(tmp_path / "short", SUM[: int(len(SUM) * cut)], FOUR, Regression(threshold=1.0))
    with pytest.raises(ModelError, match="cannot be loaded"):
        open_cpu(tmp_path / "garbage", bytes(reversed(SUM)), FOUR, Regression(threshold=1.0))
