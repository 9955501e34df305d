"""The bridge as a process, with a real mosquitto and an honest device."""

import os
import random
import shutil
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import paho.mqtt.publish
import pytest

from cloud_bridge.store.postgres import PostgresStore
from cloud_bridge.store.sqlite import SqliteReader
from gateway.wire.messages import Availability, PipelineStatus, encode
from tests.simulators.bridge_process import BridgeProcess
from tests.simulators.device import Device
from tests.simulators.mosquitto import BINARY, Mosquitto
from tests.simulators.postgres import PostgresServer
from tests.simulators.samples import AT
from tests.simulators.waiting import wait_for

pytestmark = [
    pytest.mark.net,
    pytest.mark.skipif(BINARY is None, reason="mosquitto is not installed: apt-get install mosquitto"),
]


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Mosquitto]:
    with Mosquitto(tmp_path) as running:
        yield running


@pytest.fixture
def bridge(tmp_path: Path, broker: Mosquitto) -> Iterator[BridgeProcess]:
    process = BridgeProcess(tmp_path, broker.url)
    yield process
    process.kill()


def drained(device: Device, seconds: float = 30.0) -> None:
    wait_for(lambda: device.waiting == 0, seconds=seconds, what="everything is acknowledged")


def lost_and_doubled(bridge: BridgeProcess, *devices: Device) -> tuple[int, int]:
    """Compare what devices have given with what stands in the file."""
    stored = Counter(bridge.keys())
    given = {
        (d.gateway, d.epoch, name, n) for d in devices for name, last in d.given.items() for n in range(1, last + 1)
    }
    assert stored.keys() <= given
    return len(given - stored.keys()), sum(count - 1 for count in stored.values())


def test_records_of_all_classes_arrive_once_and_are_acknowledged(bridge: BridgeProcess, broker: Mosquitto) -> None:
    bridge.start()
    with Device(broker.port) as device:
        device.put("event", 1000)
        device.put("critical", 3)
        device.put("bulk", 1)
        drained(device)
    assert lost_and_doubled(bridge, device) == (0, 0)
    assert bridge.stop() == 0
    reader = SqliteReader(bridge.database)
    assert {s.key.record_class: s.mark for s in reader.streams()} == {"event": 1000, "critical": 3, "bulk": 1}
    assert reader.counts().gaps == 0
    reader.close()


def test_several_workers_share_the_stream_of_one_device(tmp_path: Path, broker: Mosquitto) -> None:
    bridge = BridgeProcess(tmp_path, broker.url, workers=3)
    try:
        bridge.start()
        with Device(broker.port, batch_rows=5) as device:
            device.put("event", 1000)
            drained(device)
        assert bridge.stop() == 0
    finally:
        bridge.kill()
    assert lost_and_doubled(bridge, device) == (0, 0)


def test_a_bridge_that_is_away_for_a_while_catches_up(bridge: BridgeProcess, broker: Mosquitto) -> None:
    with Device(broker.port) as device:
        device.put("event", 300)
        bridge.start()
        drained(device)
        assert bridge.stop() == 0
        device.put("event", 300)
        time.sleep(0.3)  # some of it waits in the broker meanwhile
        bridge.start()
        drained(device)
    assert lost_and_doubled(bridge, device) == (0, 0)


def test_a_broker_that_forgets_everything_costs_nothing(bridge: BridgeProcess, broker: Mosquitto) -> None:
    bridge.start()
    with Device(broker.port) as device:
        for _ in range(3):
            device.put("event", 500)
            wait_for(lambda: device.waiting < 500, seconds=20)
            broker.kill()
            device.put("critical", 5)
            broker.start()
        drained(device)
    assert lost_and_doubled(bridge, device) == (0, 0)


def kill_again_and_again(bridge: BridgeProcess, broker: Mosquitto, times: int, seed: int) -> tuple[int, int]:
    chance = random.Random(seed)
    with Device(broker.port, batch_rows=20) as one, Device(broker.port, "gate", batch_rows=7) as two:
        for _ in range(times):
            bridge.start()
            one.put("event", 400)
            two.put("measure", 150)
            two.put("critical", 10)
            time.sleep(chance.uniform(0.0, 0.12))
            bridge.kill()
        bridge.start()
        try:
            wait_for(lambda: one.waiting + two.waiting == 0, seconds=40, what="everything is acknowledged")
        finally:
            bridge.stop()
        return lost_and_doubled(bridge, one, two)


@pytest.mark.slow
def test_a_bridge_killed_ten_times_loses_nothing_and_doubles_nothing(bridge: BridgeProcess, broker: Mosquitto) -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    assert kill_again_and_again(bridge, broker, 10, seed) == (0, 0)


@pytest.mark.slow
def test_the_control_that_acknowledges_first_loses_records_when_killed(tmp_path: Path, broker: Mosquitto) -> None:
    careless = BridgeProcess(tmp_path, broker.url, module="tests.simulators.careless_bridge")
    try:
        lost, _ = kill_again_and_again(careless, broker, 5, seed=1)
    finally:
        careless.kill()
    assert lost > 0


def test_poison_is_kept_for_a_person_and_holds_nobody_up(bridge: BridgeProcess, broker: Mosquitto) -> None:
    bridge.start()
    with Device(broker.port) as device:
        device.publish("sluice/v1/gate/records/event", b"\xde\xad")
        device.publish("sluice/v1/GATE/records/event", b"{}")
        device.publish("sluice/v1/gate/records/secret", b"{}")
        device.put("event", 200)
        drained(device)
    reader = SqliteReader(bridge.database)
    assert reader.counts().dead_letters == {"bad-payload": 1, "bad-topic": 1, "unknown-class": 1}
    reader.close()
    assert lost_and_doubled(bridge, device) == (0, 0)


def test_a_store_that_is_locked_is_waited_for_and_nothing_is_acknowledged_meanwhile(
    bridge: BridgeProcess, broker: Mosquitto
) -> None:
    bridge.start()
    with Device(broker.port, resend_seconds=0.5) as device:
        device.put("event", 100)
        drained(device)
        with closing(sqlite3.connect(bridge.database, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            device.put("event", 100)
            wait_for(lambda: "store_failing" in bridge.log.read_text(), seconds=10)
            assert device.marks["event"] == 100
            other.execute("ROLLBACK")
        drained(device)
    assert lost_and_doubled(bridge, device) == (0, 0)
    assert bridge.log.read_text().count("store_failing") == 1, "told once, when it begins"
    assert bridge.log.read_text().count("store_works_again") == 1


def test_a_store_on_a_full_disk_takes_up_again_when_there_is_room(tmp_path: Path, broker: Mosquitto) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(disk)]
    if os.geteuid() != 0 or subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("a small tmpfs needs root")
    bridge = BridgeProcess(disk, broker.url)
    try:
        bridge.start()
        with Device(broker.port, resend_seconds=0.5) as device:
            device.put("event", 100)
            drained(device)
            ballast = disk / "ballast"
            ballast.write_bytes(b"\0" * (shutil.disk_usage(disk).free - 64 * 1024))
            device.put("event", 400)
            wait_for(lambda: '"store_failing"' in bridge.log.read_text(), seconds=10)
            assert device.waiting > 0
            ballast.unlink()
            drained(device)
        assert lost_and_doubled(bridge, device) == (0, 0)
    finally:
        bridge.kill()
        subprocess.run(["umount", "-l", str(disk)], check=True)


@pytest.mark.slow
def test_two_bridges_on_postgresql_share_the_load_and_one_may_die(
    tmp_path: Path, broker: Mosquitto, postgres: PostgresServer
) -> None:
    url = postgres.make(f"shared{random.randrange(2**32)}")
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    one = BridgeProcess(tmp_path / "one", broker.url, store=url, expiry=1)
    two = BridgeProcess(tmp_path / "two", broker.url, store=url, client_id="two", expiry=1)
    with Device(broker.port, batch_rows=10) as device:
        one.start()
        two.start()
        device.put("event", 2000)
        wait_for(lambda: device.marks["event"] > 200, seconds=30)
        one.kill()
        device.put("event", 500)
        drained(device)
    assert two.stop() == 0
    store = PostgresStore(url)
    assert store.counts().records == 2500
    assert store.streams()[0].mark == 2500
    assert store.counts().gaps == 0
    store.close()


def test_a_gateway_that_was_forgotten_stays_so_though_the_broker_has_retained_what_it_said(
    bridge: BridgeProcess, broker: Mosquitto
) -> None:
    offline = encode(Availability(state="offline", at=AT, version="1"))
    status = encode(PipelineStatus(pipeline="camera", state="running", source_state="streaming", at=AT))

    def shown() -> list[str]:
        reader = SqliteReader(bridge.database)
        try:
            return [state.gateway for state in reader.gateways()] + [one.gateway for one in reader.pipelines()]
        finally:
            reader.close()

    bridge.start()
    for name in ("dock", "gate"):
        for topic, payload in (("availability/gateway", offline), ("status/camera", status)):
            where = f"sluice/v1/{name}/{topic}"
            paho.mqtt.publish.single(where, payload, qos=1, retain=True, port=broker.port)
    wait_for(lambda: shown() == ["dock", "gate", "dock", "gate"], seconds=20)
    forget = [sys.executable, "-m", "cloud_bridge", "fleet", "forget", "dock", "--config", str(bridge.file)]
    refused = subprocess.run(forget, capture_output=True, text=True, timeout=60, check=False)
    assert "was heard of 0.0 h ago" in refused.stderr
    subprocess.run([*forget, "--force"], check=True, timeout=60)
    assert shown() == ["gate", "gate"]
    assert bridge.stop() == 0
    bridge.start()
    with Device(broker.port, "other") as device:  # behind what was retained
        device.put("event", 1)
        drained(device)
        assert shown() == ["gate", "other", "gate"]
    with Device(broker.port) as device:
        device.put("event", 1)
        drained(device)
    assert shown() == ["dock", "gate", "other", "dock", "gate"]  # it is back, with what the broker knows of it
    assert bridge.stop() == 0
