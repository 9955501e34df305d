import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from cloud_bridge.training import release
from cloud_bridge.training.__main__ import SHIPPED, main
from cloud_bridge.training.errors import TrainingError


def test_list_names_every_recipe() -> None:
    result = CliRunner().invoke(main, ["list", "--json"])
    assert result.exit_code == 0
    assert {row["name"] for row in json.loads(result.stdout)} == {"vibration-anomaly", "process-anomaly"}
    assert "vibration-anomaly" in CliRunner().invoke(main, ["list"]).stdout


def test_evaluate_judges_what_ships() -> None:
    result = CliRunner().invoke(main, ["evaluate", "process-anomaly", "--share", "0.1", "--json"])
    assert result.exit_code == 0, result.output
    answer = json.loads(result.stdout)
    assert answer["figures"]["AUC, windows"] > 0.9
    assert answer["sha256"] == release.read(SHIPPED / "process-anomaly" / "1.0.0").artefact.sha256


def test_evaluate_refuses_a_release_that_is_not_intact(tmp_path: Path) -> None:
    place = release.write(release.read(SHIPPED / "process-anomaly" / "1.0.0"), tmp_path)
    (place / "process-anomaly-int8.tflite").write_bytes(b"something else")
    result = CliRunner().invoke(main, ["evaluate", "process-anomaly", "--release", str(place), "--share", "0.1"])
    assert isinstance(result.exception, TrainingError)


@pytest.mark.parametrize(
    "arguments",
    [
        ["train", "nothing", "--out", "x"],
        ["evaluate", "vibration-anomaly", "--share", "2"],
        ["evaluate", "vibration-anomaly", "--share", "nan"],
    ],
)
def test_a_wrong_argument_is_a_usage_error(arguments: list[str]) -> None:
    assert CliRunner().invoke(main, arguments).exit_code == 2
