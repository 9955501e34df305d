"""Which artefact runs on what."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from structlog.testing import capture_logs

from gateway.config import Pipeline
from gateway.errors import BackendUnavailableError, ConfigError, ModelError
from gateway.inference.backend import Availability
from gateway.inference.bundle import ReleaseStore
from gateway.inference.plain import open_plain
from gateway.inference.select import BackendFailures, default_backends, load_model
from gateway.preprocess.preparation import preparation_for
from gateway.wire.manifest import Plain, Regression, Target, WindowInput
from tests.gateway.inference.graphs import dense
from tests.gateway.inference.manifests import load, write_release
from tests.simulators.runtime import ScriptedBackend, tensor

INPUT = WindowInput(samples=4, hop_samples=4, rate_hz=1, features=Plain())
OUTPUT = Regression(threshold=1.0)


def accelerator(**knobs: Any) -> ScriptedBackend:
    return backend("edgetpu", ("edgetpu",), **knobs)


def cpu(**knobs: Any) -> ScriptedBackend:
    return backend("litert-cpu", ("cpu-int8", "cpu-float"), **knobs)


def backend(name: str, targets: tuple[Target, ...], **knobs: Any) -> ScriptedBackend:
    return ScriptedBackend(
        inputs=(tensor((1, 4)),),
        outputs=(tensor((1, 1)),),
        answer=lambda batch: (np.zeros((len(batch), 1), np.float32),),
        name=name,
        targets=targets,
        **knobs,
    )


def release(tmp_path: Path, *targets: Target) -> None:
    write_release(tmp_path, {target: target.encode() for target in targets}, INPUT, OUTPUT)


def test_auto_prefers_the_accelerator_and_its_own_file(tmp_path: Path) -> None:
    release(tmp_path, "cpu-int8", "edgetpu")
    fast, slow = accelerator(), cpu()
    assert load(tmp_path, backends=(fast, slow)).info.backend == "edgetpu"
    assert Path(fast.loaded[0].weights.path).read_bytes() == b"edgetpu"
    assert slow.loaded == []


def test_the_preferred_artefact_of_a_backend_is_taken(tmp_path: Path) -> None:
    release(tmp_path, "cpu-float", "cpu-int8")
    slow = cpu()
    load(tmp_path, backends=(slow,))
    assert slow.loaded[0].target == "cpu-int8"


def test_without_an_artefact_the_accelerator_is_not_even_asked(tmp_path: Path) -> None:
    release(tmp_path, "cpu-int8")
    fast = accelerator()
    with capture_logs() as logs:
        load(tmp_path, backends=(fast, cpu()))
    assert fast.probes == 0
    assert logs[-1]["passed_over"] == ["edgetpu: needs edgetpu, the release has cpu-int8"]


@pytest.mark.parametrize(
    "knobs",
    [
        {"available": Availability(available=False, reason="it is broken")},
        {"refuse_load": BackendUnavailableError("it is broken")},
        {"refuse_load": ModelError("it is broken")},
    ],
)
def test_auto_falls_back_to_the_cpus_file_and_says_why(tmp_path: Path, knobs: dict[str, Any]) -> None:
    release(tmp_path, "cpu-int8", "edgetpu")
    slow = cpu()
    with capture_logs() as logs:
        model = load(tmp_path, backends=(accelerator(**knobs), slow))
    assert model.info.backend == "litert-cpu"
    assert Path(slow.loaded[0].weights.path).read_bytes() == b"cpu-int8"
    assert logs[-1]["passed_over"] == ["edgetpu: it is broken"]


def test_a_backend_that_was_asked_for_has_no_replacement(tmp_path: Path) -> None:
    release(tmp_path, "cpu-int8", "edgetpu")
    broken = accelerator(available=Availability(available=False, reason="no device"))
    with pytest.raises(BackendUnavailableError, match=r"probe 1\.0\.0 cannot run here: edgetpu: no device"):
        load(tmp_path, backends=(broken, cpu()), backend="edgetpu")


def test_a_release_for_other_hardware_says_what_it_has(tmp_path: Path) -> None:
    release(tmp_path, "tensorrt")
    with pytest.raises(
        BackendUnavailableError, match="litert-cpu: needs cpu-int8 or cpu-float, the release has tensorrt"
    ):
        load(tmp_path, backends=(cpu(),))


def test_the_only_backends_own_error_is_told_unchanged(tmp_path: Path) -> None:
    release(tmp_path, "cpu-int8")
    with pytest.raises(ModelError, match=r"^it is broken$"):
        load(tmp_path, backends=(cpu(refuse_load=ModelError("it is broken")),))


def test_when_all_fail_every_reason_is_told(tmp_path: Path) -> None:
    release(tmp_path, "cpu-int8", "edgetpu")
    fast = accelerator(refuse_load=BackendUnavailableError("no device"))
    slow = cpu(refuse_load=ModelError("wrong shape"))
    with (
        capture_logs() as logs,
        pytest.raises(ModelError, match=r"edgetpu: no device; litert-cpu: wrong shape"),
    ):
        load(tmp_path, backends=(fast, slow))
    assert logs == [], "who tries again and again tells when that begins; the error has it all"


def test_a_backend_that_fails_is_told_when_another_takes_its_place(tmp_path: Path) -> None:
    release(tmp_path, "cpu-int8", "edgetpu")
    with capture_logs() as logs:
        load(tmp_path, backends=(accelerator(refuse_load=ModelError("it is broken")), cpu()))
    assert (logs[0]["event"], logs[0]["backend"]) == ("backend_failed", "edgetpu")


def test_a_backend_that_fails_again_and_again_is_told_when_that_begins_and_when_it_is_over(tmp_path: Path) -> None:
    release(tmp_path, "cpu-int8", "edgetpu")
    failures = BackendFailures()

    def told(*reasons: str | None, remembered: BackendFailures | None = failures) -> list[str]:
        with capture_logs() as logs:
            for reason in reasons:
                refused = ModelError(reason) if reason is not None else None
                load_model(
                    ReleaseStore([tmp_path]),
                    Pipeline(source="a", model="probe"),
                    preparation_for,
                    open_plain,
                    backends=(accelerator(refuse_load=refused), cpu()),
                    failures=remembered,
                )
        return [entry["event"] for entry in logs if entry["event"].startswith("backend_")]

    assert told("broken", "broken", "broken") == ["backend_failed"]
    assert told("broken otherwise") == ["backend_failed"]
    assert told(None, None) == ["backend_works_again"]
    assert told("broken") == ["backend_failed"]
    assert told("broken", "broken", remembered=None) == ["backend_failed"] * 2  # control: nobody remembers


def test_threads_reach_the_runtime(tmp_path: Path) -> None:
    release(tmp_path, "cpu-int8")
    assert load(tmp_path, backends=(cpu(),), threads=3).info.runtime == "scripted, 3 threads"


def test_a_wrong_device_string_is_a_configuration_error() -> None:
    with pytest.raises(ConfigError, match="'gpu'"):
        default_backends(Pipeline(source="s", model="m", device="gpu"))


def test_the_programs_own_backends_run_a_cpu_release(tmp_path: Path) -> None:
    content = dense(np.ones((1, 4), np.float32), np.zeros(1, np.float32))
    write_release(tmp_path, {"cpu-float": content}, INPUT, OUTPUT)
    store = ReleaseStore([tmp_path], packaged=tmp_path / "none")
    model = load_model(store, Pipeline(source="s", model="probe@1.0.0"), preparation_for, open_plain)
    assert model.info.backend == "litert-cpu"
