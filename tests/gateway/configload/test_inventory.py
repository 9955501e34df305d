"""What `gateway config validate` finds in manifests and on the disk, and what does not stop a gateway from starting."""

from pathlib import Path

import pytest

from gateway.configload import Problem, load, read
from gateway.doctor.models import check_models
from tests.simulators.clips import write_video
from tests.simulators.releases import write_release

CONFIG = """\
gateway: {id: dock-7, state_directory: state}
vault: {level: software}
models: {directories: [models]}
sources: {cam: {type: camera, device: door.avi}}
pipelines:
  door:
    source: cam
    model: cat-finder
    rules: [{name: someone, labels: [a, b]}]
cloud: {brokers: [{url: "mqtts://bridge.example.net"}]}
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    write_release(tmp_path / "models", "cat-finder", "1.0.0")
    write_video(tmp_path / "door.avi", frames=3)
    file = tmp_path / "gateway.yaml"
    file.write_text(CONFIG)
    return file


def changed(file: Path, old: str, new: str) -> list[Problem]:
    assert old in CONFIG
    file.write_text(CONFIG.replace(old, new))
    return read(file, take_stock=True).problems


def test_a_complete_configuration_has_no_problems(file: Path) -> None:
    assert read(file, take_stock=True).problems == []


@pytest.mark.parametrize(
    ("old", "new", "path", "remedy"),
    [
        ("model: cat-finder", "model: cat-fnider", "pipelines.door.model", "did you mean `cat-finder`?"),
        ("model: cat-finder", "model: cat-finder@2.0.0", "pipelines.door.model", "did you mean `cat-finder`?"),
        ("labels: [a, b]", "labels: [c]", "pipelines.door.rules[0].labels[0]", "it knows a, b"),
        ("device: door.avi", "device: dor.avi", "sources.cam.device", "name a file"),
    ],
)
def test_what_is_named_and_not_there_is_told_with_its_place(
    file: Path, old: str, new: str, path: str, remedy: str
) -> None:
    (problem,) = changed(file, old, new)
    assert (problem.path, problem.severity) == (path, "error")
    assert problem.remedy.startswith(remedy)
    # A gateway starts all the same: the other pipelines do not wait for this one.
    assert load(file).gateway.id == "dock-7"
    assert read(file, require_files=False).problems == []


@pytest.mark.parametrize(
    ("model", "remedy"),
    [
        ("cat-finder@2.0.0", "`cloud-bridge rollout create`"),
        ("cat-fnider", "did you mean `cat-finder`? `cloud-bridge rollout create`"),
        ("forklift", "`cloud-bridge rollout create`"),
    ],
)
def test_a_model_that_can_come_over_the_air_is_a_warning_that_says_what_brings_it(
    file: Path, model: str, remedy: str
) -> None:
    (file.parent / "root.json").write_text("{}")
    text = CONFIG.replace("model: cat-finder", f"model: {model}") + "ota: {root_file: root.json}\n"
    file.write_text(text)
    reading = read(file, take_stock=True)
    (problem,) = [one for one in reading.problems if one.path.startswith("pipelines.")]
    assert (problem.path, problem.severity) == ("pipelines.door.model", "warning")
    assert f"no release of `{model}` that may run is here" in problem.message
    assert problem.remedy.startswith(remedy)
    assert reading.config is not None
    (told,) = check_models(reading.config)
    assert (told.check, told.verdict) == (f"model {model}", "warning")
    assert "pipeline door waits" in told.found


def test_a_label_beside_others_that_the_model_knows_is_a_warning(file: Path) -> None:
    (problem,) = changed(file, "labels: [a, b]", "labels: [a, c]")
    assert (problem.path, problem.severity) == ("pipelines.door.rules[0].labels[1]", "warning")
    assert problem.remedy.startswith("it knows a, b")
