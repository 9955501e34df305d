"""LiteRT on the CPU."""

import threading

import numpy as np
import pytest
from structlog.testing import capture_logs

from gateway.errors import BackendUnavailableError, InferenceError, ModelError
from gateway.inference.backend import ModelFile, Session
from gateway.inference.litert import LiteRtBackend
from gateway.inference.plain import MemoryWeights
from gateway.inference.runtime import Runtime, installed_runtime
from tests.gateway.inference.graphs import custom, dense
from tests.gateway.inference.manifests import digest, shared

WEIGHTS = np.array([[1, 2, 3, 4], [0, 0, 0, 1], [-1, 0, 0, 0]], dtype=np.float32)
BIAS = np.array([0, 0, 0.5], dtype=np.float32)


def load(content: bytes, find: Runtime | None = None) -> Session:
    backend = LiteRtBackend((lambda: find) if find else installed_runtime)
    return backend.load(
        ModelFile("probe 1.0.0", "probe.tflite", "cpu-float", digest(content), MemoryWeights(content)), 1
    )


def test_a_session_runs_and_says_what_it_is() -> None:
    session = load(dense(WEIGHTS, BIAS))
    (answer,) = session.run(np.array([[1, 1, 1, 2]], dtype=np.float32))
    assert answer.tolist() == [[14.0, 2.0, -0.5]]
    info = session.info
    assert (info.backend, info.device) == ("litert-cpu", "cpu")
    assert [spec.shape for spec in (*info.inputs, *info.outputs)] == [(1, 4), (1, 3)]
    assert info.inputs[0].dtype == "float32"
    assert (info.total_ops, info.delegated_ops) == (1, 1)  # XNNPACK took it


def test_batches_come_and_go() -> None:
    session = load(dense(WEIGHTS, BIAS))
    for rows in (1, 5, 5, 2, 1):
        batch = np.arange(rows * 4, dtype=np.float32).reshape(rows, 4)
        assert np.allclose(session.run(batch)[0], batch @ WEIGHTS.T + BIAS)


def test_outputs_are_the_callers_to_keep() -> None:
    session = load(dense(WEIGHTS, BIAS))
    (first,) = session.run(np.ones((1, 4), dtype=np.float32))
    session.run(np.zeros((1, 4), dtype=np.float32))
    assert first.tolist() == [[10.0, 1.0, -0.5]]


@pytest.mark.parametrize("batch", [np.zeros((1, 5), np.float32), np.zeros((1, 4), np.int8)])
def test_a_wrong_input_is_an_error_and_the_next_run_is_right(batch: np.ndarray) -> None:
    session = load(dense(WEIGHTS, BIAS))
    with pytest.raises(InferenceError, match=r"probe\.tflite"):
        session.run(batch)
    assert session.run(np.zeros((1, 4), np.float32))[0].tolist() == [[0.0, 0.0, 0.5]]


def test_a_closed_session_runs_no_more() -> None:
    session = load(dense(WEIGHTS, BIAS))
    session.close()
    session.close()
    with pytest.raises(InferenceError, match="closed"):
        session.run(np.zeros((1, 4), np.float32))


@pytest.mark.parametrize("content", [b"", b"no model at all" * 100, dense(WEIGHTS, BIAS)[:200]])
def test_what_is_no_model_is_refused(content: bytes) -> None:
    with pytest.raises(ModelError, match=r"probe 1\.0\.0: probe\.tflite cannot be loaded"):
        load(content)


def test_a_custom_operation_is_named() -> None:
    with pytest.raises(ModelError, match=r"custom operation my-own-op.*convert the model without it"):
        load(custom("my-own-op"))


def test_an_edge_tpu_model_names_the_remedy() -> None:
    with pytest.raises(ModelError, match=r"compiled for the Edge TPU.*install libedgetpu\.so\.1.*cpu-int8"):
        load(custom("edgetpu-custom-op"))


def test_the_probe_tells_the_runtime_or_what_is_missing() -> None:
    assert LiteRtBackend().probe().available
    assert "ai-edge-litert" in LiteRtBackend().probe().reason

    def nothing() -> Runtime:
        raise BackendUnavailableError("no TFLite runtime is installed")

    absent = LiteRtBackend(nothing).probe()
    assert not absent.available
    assert "no TFLite runtime" in absent.reason


def test_an_int8_dynamic_model_on_the_old_runtime_is_warned_about() -> None:
    current = installed_runtime()
    old = Runtime("tflite-runtime", "2.14.0", current.interpreter, current.load_delegate)
    content = shared("models/experiment/digits_w4_dynamic.tflite").read_bytes()
    with capture_logs() as logs:
        load(content, find=old)
    assert [entry["event"] for entry in logs] == ["model_may_answer_nonsense"]
    with capture_logs() as logs:
        load(content)
    assert logs == []


def test_two_sessions_run_in_two_threads_at_once() -> None:
    wrong: list[int] = []

    def work() -> None:
        session = load(dense(WEIGHTS, BIAS))
        for turn in range(200):
            batch = np.full((1, 4), turn, dtype=np.float32)
            if not np.allclose(session.run(batch)[0], batch @ WEIGHTS.T + BIAS):
                wrong.append(turn)

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
