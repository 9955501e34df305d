"""A provisioned device watches, tells the cloud, and loses nothing when the link or the power goes."""

import pytest

from hil.rig import models
from hil.rig.documented import reachable
from hil.rig.rig import Rig
from hil.tests.test_boot import listening

pytestmark = [pytest.mark.hil, pytest.mark.timeout(3600)]


@pytest.mark.lg_feature("stick")
def test_a_claim_on_a_stick_makes_the_device_a_gateway_of_its_fleet(rig: Rig) -> None:
    rig.reach("running")
    devices = {each["gateway"]: each for each in rig.cloud.ask("identity", "devices")}
    assert rig.gateway in devices
    identity = rig.device.gateway("identity", "status")
    assert identity["state"] == "valid"
    assert identity["spiffe_id"].endswith(f"/{rig.gateway}")


@pytest.mark.lg_feature("sensor")
def test_an_anomaly_of_the_sensor_is_committed_in_the_bridge(rig: Rig) -> None:
    rig.reach("running")
    assert not [each for each in rig.cloud.events(rig.gateway, "temperature") if each["label"] == "anomaly"]
    rig.shift_sensor(25.0)
    try:
        event = rig.event("temperature", "anomaly", seconds=300.0)
    finally:
        rig.shift_sensor(0.0)
    assert event["gateway"] == rig.gateway


@pytest.mark.lg_feature(["camera", "camera-scene"])
def test_what_the_camera_sees_is_committed_in_the_bridge(rig: Rig) -> None:
    rig.reach("running")
    assert not rig.cloud.events(rig.gateway, "light")
    rig.show("bright")
    event = rig.event("light", models.LABEL, seconds=300.0)
    assert event["gateway"] == rig.gateway


def test_a_provisioned_device_listens_to_nothing_but_what_the_documentation_lists(rig: Rig) -> None:
    rig.reach("running")
    assert listening(rig) <= reachable(with_key=False)


def test_the_gateway_does_not_run_as_root(rig: Rig) -> None:
    rig.reach("running")
    process = rig.device.run("systemctl show -P MainPID gateway.service").strip()
    assert rig.device.run(f"stat -c %U /proc/{process}") == "sluice"


@pytest.mark.lg_feature(["camera", "camera-scene"])
def test_what_happens_while_the_link_is_cut_arrives_when_it_is_back(rig: Rig) -> None:
    rig.reach("running")
    rig.cut_cloud()
    rig.show("bright")
    rig.until(
        lambda: rig.device.pipelines().get("light", {}).get("open_events", 0) > 0, "the device sees it", seconds=120.0
    )
    assert not rig.cloud.events(rig.gateway, "light")
    rig.mend_cloud()
    rig.event("light", models.LABEL, seconds=300.0)


@pytest.mark.lg_feature("power-cut")
def test_the_device_comes_back_by_itself_after_a_power_cut(rig: Rig) -> None:
    rig.reach("running")
    before = {(each["epoch"], each["seq"]) for each in rig.cloud.ask("records", "--limit", "1000") if "seq" in each}
    rig.cut_power()
    rig.power_on()
    rig.device.eventually("systemctl is-active -q gateway.service", "the gateway runs", seconds=600.0)
    rig.until(lambda: len(rig.cloud.ask("records", "--limit", "1000")) > len(before), "records go on", seconds=300.0)
    after = {(each["epoch"], each["seq"]) for each in rig.cloud.ask("records", "--limit", "1000") if "seq" in each}
    assert before <= after
    assert rig.device.failed_units() == []
