"""Devices that are not there, models that cannot be used, configurations full of mistakes: clear, and on their own."""

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from gateway.wire.manifest import Classification, ImageInput, Plain, Regression, WindowInput
from hil.loopback.children import free_port
from hil.loopback.rig import Rig, eventually
from tests.e2e.conftest import Site, sites
from tests.e2e.flow import goes_on, logged, settle, status_of, statuses
from tests.e2e.releases import BRIGHT, LOUD, constant, loud, mean
from tests.gateway.inference.graphs import custom
from tests.gateway.inference.manifests import shared, write_release
from tests.simulators.camera_rtsp import RtspCamera

UNUSABLE = {
    "truncated": ("bytes", "install the release again"),
    "forged": ("sha256", "install the release again"),
    "no-model": ("cannot be loaded",),
    "misshapen": ("the manifest's features make (1, 2400)", "the model has (1, 8)"),
    "unknown-op": ("custom operation MadeUp", "convert the model without it"),
    "absent": ("not found", "models.directories"),
}
"""What the status of a pipeline must say, by the release it uses."""


def gateway_command(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the gateway's command line."""
    return subprocess.run(
        [sys.executable, "-m", "gateway", *arguments], capture_output=True, text=True, timeout=30, check=False
    )


def write_unusable(models: Path) -> None:
    """Write the releases of `UNUSABLE` but the one that is absent."""
    file = loud(models, "truncated")
    file.write_bytes(file.read_bytes()[:-100])
    file = loud(models, "forged")
    file.write_bytes(bytes(reversed(file.read_bytes())))
    loud(models, "no-model", b"TFL3 or so it says" * 100)
    loud(models, "misshapen", mean(8))
    loud(models, "unknown-op", custom("MadeUp", 2400))


def on_motor(model: str) -> dict[str, Any]:
    return {"source": "loud", "model": model, "interest": {"measure_every_seconds": 1.0}}


@pytest.fixture(scope="module")
def troubled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    """A running site whose pipelines cannot work, each for a reason of its own, beside two that can."""
    folder = tmp_path_factory.mktemp("troubled")
    with contextmanager(sites)(folder) as site:
        write_unusable(folder / "models")
        password = folder / "password"
        password.write_text("hunter2")
        password.chmod(0o600)
        refusing = {
            "device": f"rtsp://127.0.0.1:{free_port()}/stream",
            "username": "me",
            "password_file": str(password),
        }
        cameras = {
            "no-device": {"type": "camera", "device": "/dev/video99"},
            "refusing": {"type": "camera", **refusing},
        }
        pipelines = {name: on_motor(name) for name in UNUSABLE}
        pipelines |= {f"on-{name}": {"source": name, "model": BRIGHT} for name in cameras}
        pipelines["wrong-kind"] = on_motor(BRIGHT)
        pipelines["wrong-width"] = {"source": "machine", "model": LOUD}
        # With each try in the log, which otherwise tells only of the first.
        rig = site(sources=cameras, pipelines=pipelines, gateway={"log": {"level": "debug", "format": "json"}})
        rig.start()
        yield rig


@pytest.mark.parametrize("pipeline", UNUSABLE)
def test_a_model_that_cannot_be_used_fails_its_pipeline_with_a_remedy(troubled: Rig, pipeline: str) -> None:
    eventually(lambda: statuses(troubled)[pipeline]["state"] == "failed", "the pipeline fails")
    status = statuses(troubled)[pipeline]
    for words in (pipeline, *UNUSABLE[pipeline]):
        assert words in status["last_error"]
    assert status["inferences"] == 0
    assert status_of(troubled)["components"][f"pipeline-{pipeline}"] == status["last_error"]


@pytest.mark.parametrize(
    ("pipeline", "words"),
    [
        ("on-no-device", ("/dev/video99 is not there", "ls /dev/video*")),
        ("on-refusing", ("rtsp://127.0.0.1:", "does not answer")),
        ("wrong-kind", ("gives samples", "wants pictures", "choose another")),
        ("wrong-width", ("wants 3 channels", "choose another")),
    ],
)
def test_a_source_that_gives_nothing_usable_degrades_its_pipeline(
    troubled: Rig, pipeline: str, words: tuple[str, ...]
) -> None:
    eventually(lambda: statuses(troubled)[pipeline]["state"] == "degraded", "the pipeline is degraded")
    status = statuses(troubled)[pipeline]
    for each in words:
        assert each in status["last_error"]
    assert status["inferences"] == 0
    assert status["dropped"].get("wrong-source", 0) > 0 or status["source_state"] == "lost"
    assert "hunter2" not in troubled.gateway.log.read_text()


def test_the_other_pipelines_go_on_and_nothing_is_lost(troubled: Rig) -> None:
    for pipeline in ("motor", "machine"):
        goes_on(troubled, pipeline)
        assert statuses(troubled)[pipeline]["state"] == "running"
    shown = gateway_command("status", "--json", "--config", str(troubled.gateway_file))
    assert shown.returncode == 0
    assert {each["pipeline"] for each in json.loads(shown.stdout)["pipelines"]} >= set(UNUSABLE)
    # A source that stays lost is told once, however often it is tried.
    eventually(lambda: len(logged(troubled, "component_failed_again")) >= len(UNUSABLE), "they are tried again")
    lost = [entry["source"] for entry in logged(troubled, "source_lost")]
    assert lost.count("no-device") == lost.count("refusing") == 1
    assert len(logged(troubled, "pipeline_infers_nothing")) == 2
    assert all("exception" not in entry for entry in logged(troubled, "component_failed_again"))
    settle(troubled)


def test_a_model_file_repaired_while_running_is_picked_up(site: Site, tmp_path: Path) -> None:
    rig = site(pipelines={"repaired": on_motor("repaired")})
    file = loud(tmp_path / "models", "repaired")
    whole = file.read_bytes()
    file.write_bytes(whole[:50])
    rig.start()
    eventually(lambda: statuses(rig)["repaired"]["state"] == "failed", "the pipeline fails")
    file.write_bytes(whole)
    eventually(lambda: statuses(rig)["repaired"]["state"] == "running", "the pipeline runs")
    goes_on(rig, "repaired")
    assert statuses(rig)["repaired"]["last_error"] is None
    eventually(lambda: "pipeline-repaired" not in status_of(rig)["components"], "it is not called failed any more")
    settle(rig)


def test_reference_models_that_need_what_is_not_here_say_what_to_do(site: Site, tmp_path: Path) -> None:
    unknown_op = shared("models/coral/model_invoking_error.tflite").read_bytes()
    for_tpu = shared("models/coral/mobilenet_v1_0.25_128_quant_edgetpu.tflite").read_bytes()
    models = tmp_path / "models"
    three = WindowInput(samples=1, hop_samples=1, channels=3, rate_hz=3200.0, features=Plain())
    write_release(models, {"cpu-int8": unknown_op}, three, Regression(threshold=1.0), name="fake-op")
    picture = ImageInput(height=128, width=128)
    labels = Classification(labels=tuple(f"class {number}" for number in range(1001)))
    write_release(models, {"edgetpu": for_tpu}, picture, labels, name="for-tpu")
    write_release(models, {"cpu-int8": for_tpu}, picture, labels, name="not-for-cpu")
    rig = site(pipelines={name: on_motor(name) for name in ("fake-op", "for-tpu", "not-for-cpu")})
    rig.start()
    goes_on(rig, "motor")
    for name, words in {
        "fake-op": ("custom operation fake-op-double", "convert the model without it"),
        "for-tpu": ("for-tpu 1.0.0 cannot run here", "edgetpu"),
        "not-for-cpu": ("compiled for the Edge TPU", "cpu-int8 artefact"),
    }.items():
        eventually(lambda name=name: statuses(rig)[name]["state"] == "failed", f"{name} fails")  # type: ignore[misc]
        for each in words:
            assert each in statuses(rig)[name]["last_error"]
    settle(rig)


def test_a_lost_camera_is_told_once_when_it_goes_and_once_when_it_returns(site: Site) -> None:
    camera = RtspCamera()
    try:
        rig = site(
            sources={"gate": {"type": "camera", "device": camera.url, "timeout_seconds": 1.0}},
            pipelines={"gate": {"source": "gate", "model": BRIGHT}},
        )
        rig.start()
        goes_on(rig, "gate")
        camera.unplug()
        eventually(lambda: statuses(rig)["gate"]["state"] == "degraded", "the camera is missed")
        for _ in range(2):  # attempts to open it again
            goes_on(rig, "motor", 30)
        assert len(logged(rig, "source_lost")) == 1
        camera.plug()
        goes_on(rig, "gate")
        assert statuses(rig)["gate"]["state"] == "running"
        assert len(logged(rig, "source_lost")) == len(logged(rig, "source_returned")) == 1
        settle(rig)
    finally:
        camera.unplug()


# ---- configuration -------------------------------------------------------------------------------

TEN_MISTAKES = """\
gateway:
  id: dock-7
  state_directory: state
  time_zone: Mars/Olympus
sources:
  gate:
    type: camera
    device: /dev/video0
    fps: 500
    pasword_file: secret
  motor:
    type: vibration
pipelines:
  door:
    source: gates
    model: vibration-anomaly
    rules:
      - {name: somebody, min_score: 1.5}
      - {name: somebody, zone: yard}
cloud:
  brokers:
    - {url: "mqtt://bridge.example.com"}
metrics:
  port: 99999
log: {level: loud}
vault: {level: software}
"""

PLACES = {
    (4, "gateway.time_zone"),
    (9, "sources.gate.fps"),
    (10, "sources.gate.pasword_file"),
    (12, "sources.motor.type"),
    (15, "pipelines.door.source"),
    (18, "pipelines.door.rules[0].min_score"),
    (19, "pipelines.door.rules[1].zone"),
    (22, "cloud.brokers[0].url"),
    (24, "metrics.port"),
    (25, "log.level"),
}


def test_ten_mistakes_are_ten_lines_with_place_and_remedy(tmp_path: Path) -> None:
    file = tmp_path / "gateway.yaml"
    file.write_text(TEN_MISTAKES)
    checked = gateway_command("config", "validate", "--json", str(file))
    assert checked.returncode == 1
    problems = json.loads(checked.stdout)["problems"]
    assert {(problem["line"], problem["path"]) for problem in problems} >= PLACES
    for problem in problems:
        assert problem["message"]
        assert problem["remedy"] or "must" in problem["message"] or "expected" in problem["message"].lower(), problem
    told = gateway_command("config", "validate", str(file))
    assert told.returncode == 1
    lines = told.stdout.splitlines()
    for line, path in PLACES:
        assert any(each.startswith(f"{file}:{line}:") and path in each for each in lines)

    refused = gateway_command("run", "--config", str(file))
    assert refused.returncode == 4
    for each in lines:
        if ": error: " in each:
            assert each in refused.stderr
    assert "Traceback" not in refused.stderr
    assert not (tmp_path / "state").exists()


def test_the_same_configuration_without_mistakes_is_accepted(tmp_path: Path) -> None:
    file = tmp_path / "gateway.yaml"
    file.write_text(
        "gateway: {id: dock-7, state_directory: state}\n"
        "vault: {level: software}\n"
        "sources: {machine: {type: health}}\n"
        "pipelines: {machine: {source: machine, model: vibration-anomaly}}\n"
    )
    checked = gateway_command("config", "validate", str(file))
    assert checked.returncode == 0, checked.stdout


def test_a_state_directory_that_cannot_be_made_is_a_mistake_of_the_configuration(site: Site, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    rig = site(gateway={"gateway": {"state_directory": str(tmp_path / "file" / "state")}})
    refused = gateway_command("run", "--config", str(rig.gateway_file))
    assert refused.returncode == 4
    assert "state_directory" in refused.stderr
    assert "Traceback" not in refused.stderr


def test_a_constant_answer_is_no_event(site: Site, tmp_path: Path) -> None:
    """The control of this file: what a healthy but calm pipeline looks like."""
    loud(tmp_path / "models", "deaf", constant(2400, 0.0))
    rig = site(pipelines={"deaf": {**on_motor("deaf"), "rules": [{"name": "anomaly", "min_score": 0.5}]}})
    rig.start()
    goes_on(rig, "deaf", 20)
    status = statuses(rig)["deaf"]
    assert status["state"] == "running"
    assert status["open_events"] == 0
    assert status["last_error"] is None
    settle(rig)
