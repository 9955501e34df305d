"""The Edge TPU's way in, against a stand-in for its library: what is loaded, listed, refused and reported.

The stand-in computes nothing; that a real device answers right is for the hardware tests.
"""

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from structlog.testing import capture_logs

from gateway.config import Pipeline
from gateway.errors import BackendUnavailableError, ConfigError, InferenceError
from gateway.inference.backend import ModelFile
from gateway.inference.bundle import ReleaseStore
from gateway.inference.edgetpu import Device, EdgeTpuBackend, check_device_string, list_devices, matching
from gateway.inference.litert import LiteRtBackend
from gateway.inference.plain import MemoryWeights, open_plain
from gateway.inference.select import load_model
from gateway.preprocess.preparation import preparation_for
from gateway.wire.manifest import Classification, ImageInput, Plain, WindowInput
from tests.gateway.inference.graphs import custom, dense
from tests.gateway.inference.manifests import digest, frame, shared, window, write_release

SOURCE = Path(__file__).parents[2] / "simulators" / "edgetpu_standin.c"
FOUR = WindowInput(samples=4, hop_samples=4, rate_hz=1, features=Plain())
LABELS = Classification(labels=("a", "b", "c", "d"))
CPU_MODEL = dense(np.eye(4, dtype=np.float32), np.zeros(4, np.float32))


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The stand-in, compiled."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("needs a C compiler to build the stand-in for libedgetpu (Debian: gcc)")
    built = tmp_path_factory.mktemp("standin") / "libedgetpu-standin.so"
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", str(built), str(SOURCE)], check=True)
    return str(built)


@pytest.fixture(autouse=True)
def _defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    for knob in ("STANDIN_DEVICES", "STANDIN_DEVICES_FILE", "STANDIN_FAIL_OPEN", "STANDIN_LOG"):
        monkeypatch.delenv(knob, raising=False)


def model_file(content: bytes) -> ModelFile:
    return ModelFile("probe 1.0.0", "probe_edgetpu.tflite", "edgetpu", digest(content), MemoryWeights(content))


def test_without_the_library_the_reason_names_it_and_the_package(capfd: pytest.CaptureFixture[str]) -> None:
    backend = EdgeTpuBackend(library="libedgetpu-that-is-not-there.so.1")
    availability = backend.probe()
    assert not availability.available
    assert "libedgetpu-that-is-not-there.so.1" in availability.reason
    assert "install the Edge TPU runtime" in availability.reason
    with pytest.raises(BackendUnavailableError, match="install the Edge TPU runtime"):
        backend.load(model_file(custom("edgetpu-custom-op")), 1)
    assert "Exception ignored" not in capfd.readouterr().err


def test_a_library_of_another_kind_is_no_edge_tpu_runtime() -> None:
    with pytest.raises(BackendUnavailableError, match="edgetpu_list_devices"):
        list_devices("libc.so.6")


def test_devices_are_listed(library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STANDIN_DEVICES", "usb,pci")
    assert [device.kind for device in list_devices(library)] == ["usb", "pci"]
    monkeypatch.setenv("STANDIN_DEVICES", "")
    assert list_devices(library) == []


def test_without_a_device_the_reason_says_what_was_found(library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STANDIN_DEVICES", "")
    assert "no Edge TPU is connected (found: none)" in EdgeTpuBackend(library=library).probe().reason
    monkeypatch.setenv("STANDIN_DEVICES", "usb")
    availability = EdgeTpuBackend("pci:0", library=library).probe()
    assert not availability.available
    assert "no Edge TPU 'pci:0' is connected (found: usb /sys/bus/usb" in availability.reason


@pytest.mark.parametrize(
    ("wanted", "found"), [("", 0), (":1", 1), (":3", None), ("usb", 0), ("usb:1", 2), ("pci", 1), ("pci:1", None)]
)
def test_a_device_string_names_a_device(wanted: str, found: int | None) -> None:
    devices = [Device("usb", "first"), Device("pci", "second"), Device("usb", "third")]
    assert matching(devices, wanted) == (None if found is None else devices[found])


@pytest.mark.parametrize("wrong", ["cpu", "usb0", "usb:", "usb:x", "/dev/apex_0", "pci:0 "])
def test_what_is_no_device_string_is_a_configuration_error(wrong: str) -> None:
    with pytest.raises(ConfigError, match="write usb, usb:0, pci, pci:0"):
        check_device_string(wrong)


def test_a_compiled_model_runs_on_the_delegate_and_says_so(library: str) -> None:
    session = EdgeTpuBackend(library=library).load(model_file(custom("edgetpu-custom-op")), 1)
    assert session.info.backend == "edgetpu"
    assert session.info.fixed_batch
    assert (session.info.total_ops, session.info.delegated_ops) == (1, 1)
    given = np.array([[1, 2, 3, 4]], dtype=np.float32)
    expected = (sum(given.tobytes()) + np.arange(16)).astype(np.uint8)
    assert session.run(given)[0].tobytes() == expected.tobytes()
    with pytest.raises(InferenceError, match="expected an input of"):
        session.run(np.zeros((2, 4), np.float32))


def test_a_model_that_was_not_compiled_is_reported_as_running_on_the_cpu(library: str) -> None:
    with capture_logs() as logs:
        session = EdgeTpuBackend(library=library).load(model_file(CPU_MODEL), 1)
    assert session.info.backend == "litert-cpu"
    assert [entry["event"] for entry in logs] == ["model_not_compiled_for_edgetpu"]


def test_a_device_that_does_not_open_says_what_the_library_said(library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STANDIN_FAIL_OPEN", "device is held by another process")
    with pytest.raises(BackendUnavailableError, match=r"'usb:0' cannot be opened .*held by another process"):
        EdgeTpuBackend("usb:0", library=library).load(model_file(custom("edgetpu-custom-op")), 1)


def test_the_device_string_reaches_the_library(library: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = tmp_path / "log"
    monkeypatch.setenv("STANDIN_LOG", str(log))
    EdgeTpuBackend(library=library).load(model_file(custom("edgetpu-custom-op")), 1)
    EdgeTpuBackend("usb:0", library=library).load(model_file(custom("edgetpu-custom-op")), 1)
    assert log.read_text() == "device=usb:0\n"


@pytest.mark.parametrize(
    ("knobs", "expected", "reason"),
    [
        ({"STANDIN_DEVICES": "usb"}, "edgetpu", None),
        ({"STANDIN_DEVICES": ""}, "litert-cpu", "no Edge TPU is connected"),
        ({"STANDIN_FAIL_OPEN": "firmware did not load"}, "litert-cpu", "firmware did not load"),
    ],
)
def test_auto_takes_the_edge_tpu_or_says_why_not(
    library: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    *,
    knobs: dict[str, str],
    expected: str,
    reason: str | None,
) -> None:
    for knob, value in knobs.items():
        monkeypatch.setenv(knob, value)
    write_release(tmp_path, {"edgetpu": custom("edgetpu-custom-op"), "cpu-float": CPU_MODEL}, FOUR, LABELS)
    with capture_logs() as logs:
        model = load_model(
            ReleaseStore([tmp_path], packaged=tmp_path / "none"),
            Pipeline(source="s", model="probe"),
            preparation_for,
            open_plain,
            backends=(EdgeTpuBackend(library=library), LiteRtBackend()),
        )
    assert model.info.backend == expected
    (told,) = [entry for entry in logs if entry["event"] == "model_loaded"]
    if reason is None:
        assert told["passed_over"] == []
    else:
        assert reason in " ".join(told["passed_over"])
        sample = window(np.array([[0.1], [0.2], [0.9], [0.3]], np.float32))
        assert model.infer(sample).findings[0].label == "c"


def test_a_published_edge_tpu_model_goes_through_the_delegate(library: str, tmp_path: Path) -> None:
    content = shared("models/coral/mobilenet_v1_0.25_128_quant_edgetpu.tflite").read_bytes()
    names = tuple(f"class-{n}" for n in range(1001))
    write_release(tmp_path, {"edgetpu": content}, ImageInput(height=128, width=128), Classification(labels=names))
    model = load_model(
        ReleaseStore([tmp_path], packaged=tmp_path / "none"),
        Pipeline(source="s", model="probe", backend="edgetpu"),
        preparation_for,
        open_plain,
        backends=(EdgeTpuBackend(library=library),),
    )
    assert model.info.backend == "edgetpu"
    assert len(model.infer(frame(np.zeros((64, 64, 3), np.uint8))).findings) == 3


def test_a_device_that_was_out_and_in_again_answers_no_more(
    library: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    devices = tmp_path / "devices"
    devices.write_text("usb 1\n")
    monkeypatch.setenv("STANDIN_DEVICES_FILE", str(devices))
    session = EdgeTpuBackend(library=library).load(model_file(custom("edgetpu-custom-op")), 1)
    session.run(np.zeros((1, 4), np.float32))
    devices.write_text("usb 2\n")
    with pytest.raises(InferenceError):
        session.run(np.zeros((1, 4), np.float32))
    EdgeTpuBackend(library=library).load(model_file(custom("edgetpu-custom-op")), 1).run(np.zeros((1, 4), np.float32))
    devices.write_text("")
    assert not EdgeTpuBackend(library=library).probe().available
