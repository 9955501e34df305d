"""A pipeline whose model is on no disk of its device: a rollout brings the first release, and a bad one goes again."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from gateway.wire.manifest import MANIFEST_FILE
from hil.loopback.rig import GATEWAY_ID, Rig, eventually
from hil.loopback.updates import MODEL, Updates
from tests.e2e.flow import goes_on, logged, settle, statuses
from tests.e2e.security.conftest import Secured
from tests.e2e.security.test_updates import site_with_updates

pytestmark = pytest.mark.timeout(300)  # many commands, each of them a process that starts

CELLAR = "cellar"
FIRST = "cellar-anomaly"
SHIPPED = Path(__file__).parents[3] / "gateway" / "models" / MODEL / "1.0.0"


def with_cellar(folder: Path, secured: Secured, updates: Updates) -> Rig:
    """Build a site with a pipeline that names a model which is nowhere."""
    rig = site_with_updates(folder, secured, updates)
    other = {**rig.gateway_settings["pipelines"]["temperature"], "model": f"{FIRST}@1.0.0"}
    rig.gateway_settings["pipelines"][CELLAR] = other
    rig.write()
    return rig


def in_cloud(rig: Rig, *words: str) -> str:
    assert rig.site is not None
    return rig.site.in_cloud(*words)


def give(rig: Rig, folder: Path, version: str, **constraints: float) -> str:
    """Publish a release under the name that the pipeline asks for, and begin its rollout; returns its id."""
    release = folder / "releases" / version
    shutil.copytree(SHIPPED, release)
    manifest = json.loads((SHIPPED / MANIFEST_FILE).read_bytes())
    manifest |= {"name": FIRST, "version": version}
    manifest["constraints"] = {**(manifest.get("constraints") or {}), **constraints}
    (release / MANIFEST_FILE).write_text(json.dumps(manifest))
    in_cloud(rig, "model", "publish", str(release))
    words = ("--model", f"{FIRST}@{version}", "--pipeline", CELLAR, "--waves", "rest", "--json")
    made: dict[str, Any] = json.loads(in_cloud(rig, "rollout", "create", *words))
    assert made["reason"] == "1 devices have the pipeline; 1 of them have no release for it yet"
    return str(made["id"])


def rollout(rig: Rig, made: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(in_cloud(rig, "rollout", "status", made, "--json"))
    return found


def ends(rig: Rig, made: str, phase: str) -> None:
    eventually(lambda: rollout(rig, made)["phase"] == phase, f"the rollout is {phase}", 60)


def reported(rig: Rig) -> dict[str, Any]:
    """Return what the bridge has heard of the device last."""
    lines = in_cloud(rig, "fleet", "list", "--json").splitlines()
    found = next(one for one in map(json.loads, lines) if one["gateway"] == GATEWAY_ID)
    return found["reported"] or {}


def on_the_device(rig: Rig, *words: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "gateway", *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def waits(rig: Rig) -> None:
    """Wait until the device and the bridge say that the pipeline waits for a release."""
    eventually(lambda: statuses(rig)[CELLAR]["waits_for"] == "model", "the status says that it waits")
    eventually(lambda: reported(rig).get("awaiting") == [CELLAR], "the bridge has heard that it waits")
    assert statuses(rig)[CELLAR]["state"] == "starting"
    assert statuses(rig)[CELLAR]["model"] is None
    assert (rig.gateway_updates() or {})["awaiting"] == [CELLAR]


def is_shown_to_wait(rig: Rig) -> None:
    """Look at what people see on the device and at the bridge."""
    assert "waits (model)" in on_the_device(rig, "status", "--config", str(rig.gateway_file)).stdout
    shown = on_the_device(rig, "ota", "status", "--config", str(rig.gateway_file)).stdout
    assert re.search(rf"^{CELLAR} +- +waits for a release ", shown, re.MULTILINE), shown
    assert f"{CELLAR}: waits for a release" in in_cloud(rig, "fleet", "list")


def test_a_first_release_comes_over_the_air_and_a_bad_one_is_taken_away_again(tmp_path: Path, secured: Secured) -> None:
    updates = Updates(tmp_path / "updates")
    rig = with_cellar(tmp_path, secured, updates)
    rig.start(before=updates.prepare)
    pid = rig.gateway.pid
    checked = on_the_device(rig, "config", "validate", str(rig.gateway_file))
    assert checked.returncode == 0, checked.stdout
    assert f"no release of `{FIRST}@1.0.0` that may run is here" in checked.stdout
    assert "cloud-bridge rollout create" in checked.stdout
    waits(rig)
    is_shown_to_wait(rig)
    goes_on(rig, "motor")

    bad = give(rig, tmp_path, "0.9.0", latency_target_ms=0.0001)  # no device keeps that promise
    ends(rig, bad, "halted")
    waits(rig)
    found = rollout(rig, bad)
    assert "latency" in found["reason"]
    assert (found["returned"], found["recovered"], found["awaiting"]) == (1, 1, 1)
    assert "1 of these had nothing, and wait for a release again" in in_cloud(rig, "rollout", "status", bad)
    history = (rig.gateway_updates() or {})["history"]
    assert [(each["what"], each["code"]) for each in history if each["pipeline"] == CELLAR][-1] == (
        "reverted",
        "latency",
    )
    in_cloud(rig, "rollout", "abort", bad)

    good = give(rig, tmp_path, "1.0.0")
    ends(rig, good, "done")
    goes_on(rig, CELLAR)
    assert statuses(rig)[CELLAR]["model"]["version"] == "1.0.0"
    assert rig.gateway.pid == pid, "nothing was restarted"
    assert not logged(rig, "component_failed"), "to wait is no failure"
    eventually(lambda: reported(rig).get("awaiting") == [], "the bridge has heard that it runs")
    assert on_the_device(rig, "config", "validate", str(rig.gateway_file)).returncode == 0
    stored = rig.state_directory / "models" / FIRST / "1.0.0"
    assert [*stored.rglob("*.sealed")]
    assert not [*stored.rglob("*.tflite")], "its weights lie here sealed alone"

    rig.gateway.kill()
    rig.start_gateway()
    goes_on(rig, CELLAR)
    assert statuses(rig)[CELLAR]["model"]["version"] == "1.0.0"
    settle(rig)
