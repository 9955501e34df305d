"""The demo as a person runs it, for a few seconds."""

import json
import os
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

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


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A directory with what the demo has fetched."""
    here = tmp_path / "var" / "demo"
    here.mkdir(parents=True)
    for name in ("data", "models"):
        (here / name).symlink_to(ASSETS / name)
    return tmp_path


def demo(place: Path, seconds: int) -> tuple[dict[str, Any], str]:
    """Run it; returns the closing document and what a person has read."""
    run = subprocess.run(
        [sys.executable, "-m", "hil.loopback.demo"],
        cwd=place,
        env={**os.environ, "PYTHONPATH": str(ROOT), "DURATION": str(seconds)},
        capture_output=True,
        text=True,
        check=False,
        timeout=100 + seconds,
    )
    assert run.returncode == 0, run.stderr
    (line,) = run.stdout.splitlines()
    return json.loads(line), run.stderr


@pytest.mark.timeout(500)
def test_while_it_runs_a_release_is_rolled_out_and_a_bad_one_is_taken_back(place: Path) -> None:
    for seconds in (30, 150):  # as the checks run it; once more, and longer, where the machine had no time for that
        document, read = demo(place, seconds)
        assert document["lost"] == document["duplicates"] == 0
        figures = {name: document[name] for name in ("updates", "rollbacks", "frames_lost_in_swaps")}
        if figures["updates"] + figures["rollbacks"] == 2:
            break
    assert figures == {"updates": 1, "rollbacks": 1, "frames_lost_in_swaps": 0}, read
    assert 0 <= document["max_swap_gap_ms"] < 1000  # how short it is when nothing else runs is what benchmarks tell


@pytest.mark.timeout(400)
def test_the_demo_secures_itself_and_says_how_it_went(place: Path) -> None:
    for _ in range(2):  # the second time among what the first has left
        document, read = demo(place, 5)
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
            assert said in read
