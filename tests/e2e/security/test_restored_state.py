"""A gateway whose whole state directory is put back after an update: real TPM in software, bridge, registry, broker."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from hil.loopback.rig import Rig, eventually
from hil.loopback.updates import BETTER, Updates
from tests.e2e.security.conftest import Secured
from tests.e2e.security.steps import waits_for_identity
from tests.e2e.security.test_updates import serving, site_with_updates

NEWEST = "1.3.0"


def updated(rig: Rig) -> Mapping[str, Any]:
    return rig.gateway_updates() or {}


def floor(rig: Rig) -> Mapping[str, Any]:
    found: Mapping[str, Any] = updated(rig).get("floor", {})
    return found


def gives(updates: Updates, rig: Rig, version: str) -> None:
    """Publish a release, and wait until it has proved itself."""
    updates.publish(rig, version)

    def proven() -> bool:
        told = [slot["told"] or {} for slot in updated(rig)["pipelines"].values()]
        return any(each.get("phase") == "running" and each["model"]["version"] == version for each in told)

    eventually(proven, f"{version} runs", 90.0)


def put_back_after_an_update(updates: Updates, rig: Rig, copy: Path) -> None:
    """Let the gateway take two releases, and put the state from between the two back, with the bridge away."""
    rig.start(before=updates.prepare)
    waits_for_identity(rig, "valid")
    gives(updates, rig, BETTER)
    rig.gateway.stop(60.0)
    shutil.copytree(rig.state_directory, copy, ignore=shutil.ignore_patterns("*.sock"))
    rig.start_gateway()
    gives(updates, rig, NEWEST)
    rig.gateway.stop(60.0)
    rig.bridge.stop(30.0)
    shutil.rmtree(rig.state_directory)
    shutil.copytree(copy, rig.state_directory)
    rig.start_gateway()


@pytest.mark.timeout(400)
def test_nothing_is_installed_from_it_until_the_bridge_has_attested_the_device(
    tmp_path: Path, secured: Secured
) -> None:
    updates = Updates(tmp_path / "updates")
    rig = site_with_updates(tmp_path, secured, updates, security="tpm")
    put_back_after_an_update(updates, rig, tmp_path / "copy")
    eventually(lambda: floor(rig).get("place") == "refused", "the floor is refused")
    assert floor(rig)["code"] == "floor-restored"
    eventually(lambda: serving(rig) == BETTER, "what ran goes on")
    before = updated(rig)["fencing_token"]
    rig.start_bridge()
    eventually(lambda: floor(rig).get("place") == "tpm", "the floor is set anew", 90.0)
    eventually(lambda: serving(rig) == NEWEST, "the release that the bridge gives runs", 90.0)
    assert updated(rig)["fencing_token"] > before


@pytest.mark.timeout(400)
def test_control_at_level_software_nobody_notices(tmp_path: Path, secured: Secured) -> None:
    updates = Updates(tmp_path / "updates")
    rig = site_with_updates(tmp_path, secured, updates)
    put_back_after_an_update(updates, rig, tmp_path / "copy")
    eventually(lambda: serving(rig) == BETTER, "it runs")
    assert floor(rig)["place"] == "file"
    assert floor(rig)["code"] == ""
