"""The bridge as a process, a real mosquitto, and a device whose own code judges twins."""

from pathlib import Path

import paho.mqtt.publish
import paho.mqtt.subscribe
import pytest

from cloud_bridge.config import Store
from cloud_bridge.twins.database import open_fleet
from cloud_bridge.twins.desired import Change, apply_changes
from gateway.wire.messages import ModelRef, Twin, decode, encode
from tests.simulators.bridge_process import BridgeProcess
from tests.simulators.mosquitto import BINARY, Mosquitto
from tests.simulators.ota_device import OtaDevice
from tests.simulators.ota_fleet import OtaFleet
from tests.simulators.waiting import wait_for

pytestmark = [
    pytest.mark.net,
    pytest.mark.timeout(300),
    pytest.mark.skipif(BINARY is None, reason="mosquitto is not installed: apt-get install mosquitto"),
]

OLD, NEW = ModelRef(name="detector", version="1.0.0"), ModelRef(name="detector", version="1.1.0")
TOPIC = "sluice/v1/gw-1/twin/desired"


def retained(broker: Mosquitto) -> bytes:
    found = paho.mqtt.subscribe.simple(TOPIC, hostname="127.0.0.1", port=broker.port)  # type: ignore[no-untyped-call]
    return bytes(found.payload)


@pytest.mark.parametrize(
    "foreign",
    [encode(Twin(version=1, fencing_token=7, at="")), b'{"schema":1,"fencing_token":-5}'],
    ids=["recorded long ago", "nothing that a device reads"],
)
def test_what_somebody_leaves_in_the_place_of_a_twin_is_replaced(tmp_path: Path, foreign: bytes) -> None:
    device = OtaDevice("gw-1", "camera", OLD)
    with Mosquitto(tmp_path) as broker, OtaFleet(broker.port, [device]):
        bridge = BridgeProcess(tmp_path, broker.url)
        bridge.file.write_text(bridge.file.read_text() + "rollout: {enabled: true}\n")
        bridge.start(wait=False)
        try:
            database = open_fleet(Store(url=bridge.store))
            with database.transaction() as tx:
                token = apply_changes(tx, [Change("gw-1", "camera", NEW, 0)], 1_790_000_000 * 10**9)
            database.close()
            wait_for(lambda: device.model == NEW, seconds=120, what="the device runs what it was assigned")
            wait_for(lambda: device.book.fencing_token == token, what="and has its token")
            paho.mqtt.publish.single(TOPIC, foreign, qos=1, retain=True, hostname="127.0.0.1", port=broker.port)
            wait_for(lambda: device.refused, what="the device refuses it")
            wait_for(lambda: not device.refusal, seconds=60, what="the bridge's own twin comes again")
            assert decode(retained(broker), Twin).fencing_token == token
            wait_for(lambda: "twin_told_again" in bridge.log.read_text(), what="that is in the log")
        finally:
            bridge.kill()
    assert device.refused == 1
