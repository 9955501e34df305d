"""`gateway models`."""

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from gateway.cli import main
from tests.simulators.releases import write_release


@pytest.fixture
def models(tmp_path: Path) -> Path:
    write_release(tmp_path, "cat-finder", "1.0.0")
    write_release(tmp_path, "cat-finder", "1.10.0", b"better weights")
    return tmp_path


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["models", *arguments], env={"SLUICE_CONFIG": ""})


def listed(directory: Path) -> list[dict[str, Any]]:
    output = run("list", "--directory", str(directory), "--json").output
    return [each for each in json.loads(output) if each["name"] == "cat-finder"]


def test_releases_are_listed_with_their_targets(models: Path) -> None:
    assert [each["version"] for each in listed(models)] == ["1.0.0", "1.10.0"]
    assert listed(models)[1]["size_bytes"] == len(b"better weights")
    assert "cat-finder" in run("list", "--directory", str(models)).output


def test_a_broken_manifest_is_listed_as_such(models: Path) -> None:
    (models / "cat-finder" / "1.10.0" / "manifest.json").write_text("{")
    assert "error" in listed(models)[1]
    assert run("list", "--directory", str(models)).exit_code == 0


def test_good_releases_pass_the_check(models: Path) -> None:
    found = run("check", "cat-finder", "cat-finder@1.0.0", "--directory", str(models))
    assert found.exit_code == 0
    assert found.output.count("all digests right") == 2


def test_a_changed_file_fails_the_check(models: Path) -> None:
    (models / "cat-finder" / "1.0.0" / "model.tflite").write_bytes(b"w3ights")
    found = run("check", "cat-finder@1.0.0", "--directory", str(models), "--json")
    assert found.exit_code == 1
    assert json.loads(found.output)[0]["verdict"] == "failed"


def test_an_unknown_model_fails_the_check(models: Path) -> None:
    assert run("check", "dog-finder", "--directory", str(models)).exit_code == 1


def test_the_directories_of_the_configuration_are_searched(
    models: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    file = tmp_path_factory.mktemp("config") / "gateway.yaml"
    file.write_text(
        f"gateway: {{id: a, state_directory: state}}\n"
        f"vault: {{level: software}}\nsources: {{}}\npipelines: {{}}\nmodels: {{directories: ['{models}']}}\n"
    )
    assert run("check", "cat-finder", "--config", str(file)).exit_code == 0
