"""The bridge under a fleet: a backlog of two hundred gateways after a restart, in bounded time and memory."""

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cloud_bridge.store.sqlite import SqliteReader
from tests.simulators.bridge_process import BridgeProcess
from tests.simulators.fleet import Fleet, Load
from tests.simulators.mosquitto import BINARY, Mosquitto

pytestmark = [
    pytest.mark.net,
    pytest.mark.skipif(BINARY is None, reason="mosquitto is not installed: apt-get install mosquitto"),
]

MAX_RSS_MIB = 300
SECONDS = 60.0


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Mosquitto]:
    with Mosquitto(tmp_path) as running:
        yield running


def resident_mib(bridge: BridgeProcess) -> float:
    assert bridge._process is not None
    status = Path(f"/proc/{bridge._process.pid}/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def check(bridge: BridgeProcess, load: Load) -> None:
    reader = SqliteReader(bridge.database)
    try:
        assert reader.counts().records == load.gateways * load.records
        assert {stream.mark for stream in reader.streams()} == {load.records}
        # What was captured in 2023 has no hours any more once retention has looked.
        assert reader.check(hours_from_s=time.time_ns() // 10**9) == []
    finally:
        reader.close()


async def restarted_under(load: Load, broker: Mosquitto, bridge: BridgeProcess) -> tuple[Fleet, float]:
    """Kill the bridge while the fleet sends, start it again, and wait until everything is acknowledged."""
    fleet = Fleet(broker.port, load)
    draining = asyncio.get_running_loop().create_task(fleet.drain(SECONDS * 2))
    async with asyncio.timeout(SECONDS):
        while fleet.waiting > load.gateways * load.records * 0.8:
            await asyncio.sleep(0.01)
    bridge.kill()
    bridge.start()  # in this thread: the process ends with the thread that began it
    started = asyncio.get_running_loop().time()
    await draining
    return fleet, asyncio.get_running_loop().time() - started


def test_a_fleet_drains_through_a_bridge_that_is_killed_meanwhile(tmp_path: Path, broker: Mosquitto) -> None:
    load = Load(gateways=40, records=300, batch_records=50, resend_seconds=1.0)
    bridge = BridgeProcess(tmp_path, broker.url, workers=2, expiry=1)
    bridge.start()
    try:
        fleet, seconds = asyncio.run(restarted_under(load, broker, bridge))
        assert fleet.waiting == 0
        assert seconds < SECONDS
        assert resident_mib(bridge) < MAX_RSS_MIB
        assert bridge.stop() == 0
    finally:
        bridge.kill()
    check(bridge, load)


@pytest.mark.slow
def test_two_hundred_gateways_with_a_thousand_records_each_drain_within_a_minute(
    tmp_path: Path, broker: Mosquitto
) -> None:
    load = Load(gateways=200, records=1000)
    bridge = BridgeProcess(tmp_path, broker.url, workers=2, expiry=1)
    bridge.start()
    try:
        fleet, seconds = asyncio.run(restarted_under(load, broker, bridge))
        peak = resident_mib(bridge)
        resent = sum(gateway.resent for gateway in fleet.gateways)
        print(f"drained {seconds:.1f} s after the restart; peak {peak:.0f} MiB; {resent} batches sent again")
        assert seconds <= SECONDS
        assert peak < MAX_RSS_MIB
        assert bridge.stop() == 0
    finally:
        bridge.kill()
    check(bridge, load)


def test_a_fleet_comes_back_to_a_broker_that_was_killed(tmp_path: Path, broker: Mosquitto) -> None:
    load = Load(gateways=30, records=400, batch_records=20, resend_seconds=1.0)
    bridge = BridgeProcess(tmp_path, broker.url, expiry=1)
    bridge.start()

    async def scenario() -> Fleet:
        fleet = Fleet(broker.port, load)
        draining = asyncio.get_running_loop().create_task(fleet.drain(SECONDS))
        async with asyncio.timeout(SECONDS):
            while fleet.waiting > load.gateways * load.records * 0.9:
                await asyncio.sleep(0.01)
        broker.kill()
        broker.start()
        await draining
        return fleet

    try:
        fleet = asyncio.run(scenario())
        assert all(gateway.connects >= 2 for gateway in fleet.gateways if gateway.connects)
        assert bridge.stop() == 0
    finally:
        bridge.kill()
    check(bridge, load)


def test_memory_does_not_grow_with_what_waits_in_the_broker(tmp_path: Path, broker: Mosquitto) -> None:
    """While the store is stopped short of a commit, the bridge holds what it announced, and no more."""
    load = Load(gateways=30, records=2000, batch_records=100, window=20)
    bridge = BridgeProcess(tmp_path, broker.url, expiry=1)
    bridge.start()

    async def scenario() -> None:
        fleet = Fleet(broker.port, load)
        await fleet.drain(SECONDS)

    try:
        before = resident_mib(bridge)
        asyncio.run(scenario())
        assert resident_mib(bridge) - before < 150
        assert bridge.stop() == 0
    finally:
        bridge.kill()
    check(bridge, load)
