"""`gateway config`."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from gateway.cli import main

GOOD = """\
gateway: {id: dock-7}
vault: {level: software}
sources: {own: {type: health}}
pipelines: {own: {source: own, model: process-anomaly}}
cloud: {brokers: [{url: "mqtts://bridge.example.net", ca_file: ca.pem}]}
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "ca.pem").write_text("certificate")
    file = tmp_path / "gateway.yaml"
    file.write_text(GOOD)
    return file


def test_a_good_file_is_valid(file: Path) -> None:
    run = CliRunner().invoke(main, ["config", "validate", str(file)])
    assert run.exit_code == 0
    assert "no mistakes" in run.output


def test_ten_mistakes_are_told_in_one_go(file: Path) -> None:
    file.write_text("""\
gateway: {id: Dock 7, tiem_zone: UTC}
sources:
  cam: {type: camra, device: /dev/video0}
  own: {type: health, rate_hz: 1000}
  temp: {type: mqtt, topic: a}
pipelines:
  own: {source: onw, model: process-anomaly, threads: "2"}
  cam: {source: cam, rules: [{name: r, min_score: 2}]}
cloud: {brokers: [{url: "mqtt://bridge.example.net", password: hunter2}]}
""")
    run = CliRunner().invoke(main, ["config", "validate", str(file)])
    assert run.exit_code == 1
    errors = [line for line in run.output.splitlines() if ": error: " in line]
    assert len(errors) >= 10
    assert all(line.startswith(f"{file}:") for line in errors)
    assert "hunter2" not in run.output


def test_json_tells_the_same(file: Path) -> None:
    file.write_text(GOOD.replace("id: dock-7", "id: Dock"))
    run = CliRunner().invoke(main, ["config", "validate", str(file), "--json"])
    report = json.loads(run.output)
    assert run.exit_code == 1
    assert report["valid"] is False
    (problem,) = report["problems"]
    assert (problem["line"], problem["column"], problem["path"]) == (1, 15, "gateway.id")


def test_warnings_leave_the_file_valid(file: Path) -> None:
    file.write_text(GOOD[: GOOD.index("cloud:")])
    run = CliRunner().invoke(main, ["config", "validate", str(file)])
    assert run.exit_code == 0
    assert "warning: cloud.brokers" in run.output


def test_a_missing_file_matters_unless_told_otherwise(file: Path) -> None:
    (file.parent / "ca.pem").unlink()
    assert CliRunner().invoke(main, ["config", "validate", str(file)]).exit_code == 1
    assert CliRunner().invoke(main, ["config", "validate", str(file), "--no-files"]).exit_code == 0


def test_the_printed_example_is_valid(tmp_path: Path) -> None:
    example = CliRunner().invoke(main, ["config", "example"]).output
    (tmp_path / "e.yaml").write_text(example)
    assert CliRunner().invoke(main, ["config", "validate", "--no-files", str(tmp_path / "e.yaml")]).exit_code == 0


def test_the_schema_is_json() -> None:
    assert "draft/2020-12" in json.loads(CliRunner().invoke(main, ["config", "schema"]).output)["$schema"]
