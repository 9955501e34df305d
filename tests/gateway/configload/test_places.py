"""The outbox is never told to live in a file of something else."""

from pathlib import Path

import pytest

from gateway.configload import Problem, check, read
from gateway.configload.places import outbox_place_problems

TEXT = """\
gateway: {id: dock-7, state_directory: state}
vault: {level: software}
sources:
  cam: {type: camera, device: /dev/video0, username: me, password_file: secrets/camera}
  clip: {type: replay, file: clips/a.mp4}
pipelines:
  door: {source: cam, model: person-detector}
  yard: {source: clip, model: person-detector}
models: {directories: [releases]}
cloud:
  brokers: [{url: "mqtts://bridge.example.net", ca_file: secrets/ca.pem}]
"""


def found(directory: Path, outbox: str) -> list[Problem]:
    file = directory / "gateway.yaml"
    file.write_text(f"{TEXT}outbox: {{file: {outbox}}}\n")
    return [problem for problem in read(file, require_files=False).problems if problem.path == "outbox.file"]


@pytest.mark.parametrize(
    ("outbox", "message"),
    [
        ("gateway.yaml", "this configuration itself"),
        ("state/../gateway.yaml", "this configuration itself"),
        ("secrets/camera", "`sources.cam.password_file`"),
        ("secrets/ca.pem", "`cloud.brokers[0].ca_file`"),
        ("clips/a.mp4", "`sources.clip.file`"),
        ("releases", "`models.directories[0]`"),
        ("state", "`gateway.state_directory`"),
        ("/usr/lib/sluice/release.json", "`os.release_file`"),
        ("/dev/outbox.db", "no place on a disk"),
        ("/proc/1/outbox.db", "no place on a disk"),
        ("/sys/outbox.db", "no place on a disk"),
    ],
)
def test_a_place_that_belongs_to_something_else_is_told(tmp_path: Path, outbox: str, message: str) -> None:
    (problem,) = found(tmp_path, outbox)
    assert message in problem.message
    assert problem.remedy
    assert (problem.severity, problem.line) == ("error", len(TEXT.splitlines()) + 1)


def test_another_name_for_the_same_file_is_seen_through(tmp_path: Path) -> None:
    (tmp_path / "secrets").mkdir()
    (tmp_path / "aliased").symlink_to(tmp_path / "secrets")
    assert "ca_file" in found(tmp_path, "aliased/ca.pem")[0].message


def test_the_file_of_a_camera_is_told(tmp_path: Path) -> None:
    text = TEXT.replace("/dev/video0", "clips/b.mp4").replace(", username: me, password_file: secrets/camera", "")
    problems = check(f"{text}outbox: {{file: clips/b.mp4}}\n", directory=tmp_path, require_files=False)
    assert [(each.path, "`sources.cam.device`" in each.message) for each in problems] == [("outbox.file", True)]


@pytest.mark.parametrize("outbox", ["outbox.db", "state/outbox.db", "/devices/outbox.db", "secrets/camera.db"])
def test_control_a_place_of_its_own_is_accepted(tmp_path: Path, outbox: str) -> None:
    assert found(tmp_path, outbox) == []


def test_without_a_place_there_is_nothing_to_say(tmp_path: Path) -> None:
    file = tmp_path / "gateway.yaml"
    file.write_text(TEXT)
    config = read(file, require_files=False).config
    assert config is not None
    assert list(outbox_place_problems(config, file)) == []
