"""`gateway doctor`."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from gateway.cli import main
from gateway.doctor import Diagnosis, examine
from gateway.doctor.devices import Machine
from tests.simulators.clips import write_video
from tests.simulators.releases import write_release

CONFIG = """\
gateway: {id: dock-7, state_directory: state}
vault: {level: software}
sources: {cam: {type: camera, device: door.avi}}
pipelines: {door: {source: cam, model: cat-finder}}
models: {directories: [models]}
metrics: {token_file: secret}
"""


@pytest.fixture
def config_file(tmp_path: Path) -> Path:
    write_release(tmp_path / "models", "cat-finder", "1.0.0")
    write_video(tmp_path / "door.avi", frames=3)
    (tmp_path / "state").mkdir()
    (tmp_path / "secret").write_text("pw")
    (tmp_path / "secret").chmod(0o600)
    file = tmp_path / "gateway.yaml"
    file.write_text(CONFIG)
    return file


def found(config_file: Path | None, root: Path) -> dict[str, Diagnosis]:
    return {each.check: each for each in examine(config_file, Machine(root), environment={})}


def test_all_checks_are_made(config_file: Path) -> None:
    checks = found(config_file, config_file.parent)
    assert list(checks) == [
        "clock", "memory", "temperature", "load", "python", "sqlite", "tpm", "configuration", "udev rules",
        "accelerator", "camera cam", "disk space", "disk writing", "outbox", "vault", "model cat-finder", "brokers",
    ]  # fmt: skip
    assert checks["model cat-finder"].verdict == "ok"
    assert checks["camera cam"].verdict == "ok"
    assert checks["configuration"].verdict == "warning"  # no cloud broker


def test_a_changed_model_fails(config_file: Path) -> None:
    (config_file.parent / "models" / "cat-finder" / "1.0.0" / "model.tflite").write_bytes(b"w3ights")
    assert found(config_file, config_file.parent)["model cat-finder"].verdict == "failed"


def test_a_missing_secret_does_not_hide_the_rest(config_file: Path) -> None:
    (config_file.parent / "secret").unlink()
    checks = found(config_file, config_file.parent)
    assert checks["configuration"].verdict == "failed"
    assert checks["model cat-finder"].verdict == "ok"


def test_without_a_configuration_the_machine_is_examined(tmp_path: Path) -> None:
    checks = found(None, tmp_path)
    assert checks["clock"].verdict in ("ok", "warning")
    assert checks["configuration"].verdict == "skipped"
    assert checks["brokers"].verdict == "skipped"
    assert checks["accelerator"].verdict == "skipped"


def test_an_unusable_configuration_fails(config_file: Path) -> None:
    config_file.write_text(CONFIG.replace("id: dock-7", "id: Dock"))
    assert found(config_file, config_file.parent)["configuration"].verdict == "failed"
    assert found(config_file.parent / "absent", config_file.parent)["configuration"].verdict == "failed"


def test_a_failed_check_is_an_exit_status(config_file: Path) -> None:
    run = CliRunner().invoke(main, ["doctor", "--config", str(config_file)])
    assert run.exit_code == 0, run.output
    config_file.write_text(CONFIG.replace("cat-finder", "dog-finder"))
    run = CliRunner().invoke(main, ["doctor", "--config", str(config_file)])
    assert run.exit_code == 1
    assert "failed" in run.output


def test_programs_get_json(config_file: Path) -> None:
    report = json.loads(CliRunner().invoke(main, ["doctor", "--config", str(config_file), "--json"]).output)
    assert report["verdict"] == "warning"
    assert {"check", "verdict", "found", "remedy"} == set(report["checks"][0])
