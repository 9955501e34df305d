"""Updates of the system over the air: the better one is kept, each bad one ends on the old slot with its reason told.

Each test begins with a device that runs from slot a, as the factory and its claim have made it.
"""

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


@pytest.mark.lg_feature(["camera", "camera-scene"])
def test_an_updated_device_is_the_same_gateway_and_goes_on_watching(rig: Rig) -> None:
    rig.reach("updated")
    before = len(rig.cloud.ask("identity", "devices"))
    rig.unplug("camera")
    rig.plug("camera")
    rig.show("bright")
    assert rig.event("light", models.LABEL, seconds=300.0)["gateway"] == rig.gateway
    assert len(rig.cloud.ask("identity", "devices")) == before


@pytest.mark.parametrize("kind", ["unhealthy", "panicking"])
def test_a_system_that_is_not_fit_is_left_for_the_old_one_and_the_bridge_hears_why(rig: Rig, kind: Kind) -> None:
    told = given(rig, kind)
    assert told.phase == "reverted"
    assert told.code in {"unhealthy": ("health", "no-boot"), "panicking": ("no-boot",)}[kind]
    assert told.reason
    assert rig.device.booted_slot() == "a"
    rig.device.eventually("systemctl is-active -q gateway.service", "the old system's gateway runs", seconds=300.0)


@pytest.mark.parametrize(
    ("kind", "codes"),
    [("foreign", {"signature"}), ("below-floor", {"floor"}), ("damaged", {"signature", "install"})],
)
def test_a_bundle_that_must_not_be_installed_is_refused_and_the_bridge_hears_why(
    rig: Rig, kind: Kind, codes: set[str]
) -> None:
    told = given(rig, kind)
    assert told.phase in ("refused", "blocked")
    assert told.code in codes
    assert rig.device.booted_slot() == "a"
    assert rig.device.slots()["a"]["boot_status"] == "good"
