"""The demo as a person runs it, for a few seconds."""

import json
import os
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest

from tests.simulators import swtpm
from tests.simulators.mosquitto import BINARY

ROOT = Path(__file__).resolve().parents[2]
ASSETS = ROOT / "var" / "demo"
LACKING = swtpm.missing() or ("" if BINARY else "mosquitto is not installed: apt-get install mosquitto")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.net,
    pytest.mark.skipif(bool(LACKING), reason=LACKING),
    pytest.mark.skipif(not (ASSETS / "assets.stamp").exists(), reason="no clip and models: `make demo` fetches them"),
]


def test_the_demo_secures_itself_and_says_how_it_went(tmp_path: Path) -> None:
    here = tmp_path / "var" / "demo"
    here.mkdir(parents=True)
    for name in ("data", "models"):
        (here / name).symlink_to(ASSETS / name)
    for _ in range(2):  # the second time among what the first has left
        run = subprocess.run(
            [sys.executable, "-m", "hil.loopback.demo"],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT), "DURATION": "5"},
            capture_output=True,
            text=True,
            check=False,
            timeout=100,
        )
        assert run.returncode == 0, run.stderr
        (line,) = run.stdout.splitlines()
        document = json.loads(line)
        assert document["lost"] == document["duplicates"] == 0
        security = document["security"]
        assert security["level"] == "tpm"
        assert datetime.fromisoformat(security["certificate_until"]) > datetime.now(UTC)
        assert {label.partition(" ")[0] for label in security["sealed_models"]} == {
            "person-vehicle-detector",
            "process-anomaly",
            "vibration-anomaly",
        }
        for said in ("sealed under the TPM", "boot state loopback-image-1", "certificate until", "mosquitto_sub"):
            assert said in run.stderr
