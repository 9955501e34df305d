"""Updates of the system over the air: the better one is kept, each bad one ends on the old slot with its reason told.

Each test begins with a device that runs from slot a, as the factory and its claim have made it.
"""

import re

import pytest

from hil.rig import models
from hil.rig.bundles import Kind
from hil.rig.rig import Rig
from hil.rig.site import Told

pytestmark = [pytest.mark.hil, pytest.mark.lg_feature("a-b"), pytest.mark.timeout(7200)]


def given(rig: Rig, kind: Kind) -> Told:
    """Give a bundle of a kind to a device that runs; returns how it ended in the device's words."""
    rig.reach("running")
    assert rig.device.booted_slot() == "a"
    rig.changed()
    return rig.site.ended(rig.site.publish(rig.site.bundle(kind)))


def test_an_update_over_the_air_runs_from_the_other_slot_and_is_kept(rig: Rig) -> None:
    rig.reach("updated")
    assert rig.device.booted_slot() == "b"
    assert rig.device.release()["version"] == "0.1.1"
    assert rig.device.slots()["b"]["boot_status"] == "good"
    told = rig.site.told("0.1.1")
    assert told is not None
    assert told.fetched_bytes < told.full_bytes / 4  # of two releases that are nearly alike


@pytest.mark.lg_feature(["camera", "camera-scene"])
def test_an_updated_device_is_the_same_gateway_and_goes_on_watching(rig: Rig) -> None:
    rig.reach("updated")
    before = len(rig.cloud.ask("identity", "devices"))
    rig.unplug("camera")
    rig.plug("camera")
    rig.show("bright")
    assert rig.event("light", models.LABEL, seconds=300.0)["gateway"] == rig.gateway
    assert len(rig.cloud.ask("identity", "devices")) == before


def test_a_system_whose_gateway_does_not_run_is_left_for_the_old_one_and_the_bridge_hears_why(rig: Rig) -> None:
    rig.reach("running")
    rig.changed()
    version = rig.site.publish(rig.site.bundle("unhealthy"))
    rig.device.eventually(
        "grep -q rauc.slot=b /proc/cmdline && systemctl is-active -q multi-user.target",
        "the new system boots",
        seconds=1800.0,
    )
    # systemd's own boot assessment would call it good now, and count no more: the boot is complete.
    assert re.search(r"sluice-b\+\d+-\d+\.conf", rig.device.run("ls /efi/loader/entries"))
    told = rig.site.ended(version)
    assert (told.phase, told.code) == ("reverted", "health")
    assert "does not answer" in told.reason
    is_back_on_the_old_one(rig)


def test_a_system_that_panics_is_left_for_the_old_one_and_the_bridge_hears_why(rig: Rig) -> None:
    told = given(rig, "panicking")
    assert (told.phase, told.code) == ("reverted", "no-boot")
    assert "tries to boot are used up" in told.reason
    is_back_on_the_old_one(rig)


def is_back_on_the_old_one(rig: Rig) -> None:
    assert rig.device.booted_slot() == "a"
    rig.device.eventually("systemctl is-active -q gateway.service", "the old system's gateway runs", seconds=300.0)


@pytest.mark.parametrize(
    ("kind", "codes"),
    [("foreign", {"signature"}), ("below-floor", {"floor"}), ("damaged", {"signature", "refused"})],
)
def test_a_bundle_that_must_not_be_installed_is_refused_and_the_bridge_hears_why(
    rig: Rig, kind: Kind, codes: set[str]
) -> None:
    told = given(rig, kind)
    assert told.phase in ("refused", "blocked")
    assert told.code in codes
    assert rig.device.booted_slot() == "a"
    assert rig.device.slots()["a"]["boot_status"] == "good"
