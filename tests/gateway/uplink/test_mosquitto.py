"""The same against a real broker: mosquitto, in its own directory and on a free port."""

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway.config import Broker, Cloud, HomeAssistant
from gateway.uplink.announce import Announcer
from gateway.uplink.exchange import Outgoing
from gateway.uplink.homeassistant import discovery_of
from gateway.uplink.status import Partition
from gateway.uplink.uplink import Uplink
from gateway.wire.messages import CLASSES
from tests.gateway.uplink.mosquitto import Mosquitto
from tests.gateway.uplink.peer import Peer
from tests.gateway.uplink.waiting import running, until
from tests.simulators.record_store import MemoryStore

pytestmark = pytest.mark.net


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Mosquitto]:
    broker = Mosquitto(tmp_path)
    try:
        yield broker
    finally:
        broker.kill()


def uplink_for(store: MemoryStore, broker: Mosquitto, protocol: str = "5", gateway_id: str = "gw") -> Uplink:
    brokers = [Broker(url=broker.url, protocol=protocol)]  # type: ignore[arg-type]
    cloud = Cloud(brokers=brokers, batch_records=100, ack_timeout_seconds=1.0)
    return Uplink(cloud, gateway_id, "sluice", store)


@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
async def test_all_classes_arrive_in_order(broker: Mosquitto, protocol: str) -> None:
    broker.start()
    store, peer = MemoryStore(), Peer(broker.url)
    for name in CLASSES:
        store.put(name, 1500)
    async with running(peer.run()):
        await until(lambda: peer.is_up)
        async with running(uplink_for(store, broker, protocol).run()):
            await until(lambda: store.empty, 25.0)
    for name in CLASSES:
        assert peer.order[name] == list(range(1, 1501))


async def test_a_broker_down_at_start_delays_and_loses_nothing(broker: Mosquitto) -> None:
    store, peer = MemoryStore(), Peer(broker.url)
    store.put("event", 1000)
    uplink = uplink_for(store, broker)
    async with running(peer.run(), uplink.run()):
        await until(lambda: uplink.status().link.state == "waiting")
        assert uplink.partition is Partition.PARTITIONED
        broker.start()
        await until(lambda: store.empty, 30.0)
    assert peer.count("event") == 1000


async def test_a_broker_killed_again_and_again_loses_nothing(broker: Mosquitto) -> None:
    broker.start()
    store, peer = MemoryStore(), Peer(broker.url)
    uplink = uplink_for(store, broker)
    async with running(peer.run(), uplink.run()):
        await until(lambda: peer.is_up)
        for _ in range(3):
            store.put("event", 2000)
            uplink.notify(["event"])
            await until(lambda: uplink.status().classes["event"].outstanding_batches, 20.0)
            broker.kill()
            broker.start()
        await until(lambda: store.empty, 60.0)
    assert peer.count("event") == 6000
    assert uplink.status().connects >= 2


async def test_lost_acks_make_duplicates_on_the_way_and_none_in_the_count(broker: Mosquitto) -> None:
    broker.start()
    store, peer = MemoryStore(), Peer(broker.url)
    store.put("event", 1000)
    peer.lose_next_acks = 4
    async with running(peer.run()):
        await until(lambda: peer.is_up)
        async with running(uplink_for(store, broker).run()):
            await until(lambda: store.empty, 30.0)
    assert peer.count("event") == 1000
    assert peer.duplicates > 0


async def test_a_bridge_away_for_a_while_degrades_and_then_gets_everything(broker: Mosquitto) -> None:
    broker.start()
    store, peer = MemoryStore(), Peer(broker.url)
    store.put("event", 3000)
    uplink = uplink_for(store, broker)
    async with running(uplink.run()):
        await until(lambda: uplink.partition is Partition.DEGRADED, 20.0)
        assert store.left("event") == 3000
        async with running(peer.run()):
            await until(lambda: store.empty, 40.0)
            await until(lambda: uplink.partition is Partition.HEALTHY)
    assert peer.count("event") == 3000


async def test_a_broker_that_hangs_is_noticed_and_left(broker: Mosquitto) -> None:
    broker.start()
    store = MemoryStore()
    cloud = Cloud(brokers=[Broker(url=broker.url, keepalive_seconds=5)])
    uplink = Uplink(cloud, "gw", "sluice", store)
    async with running(uplink.run()):
        await until(lambda: uplink.status().link.state == "connected")
        broker.pause()
        try:
            await until(lambda: uplink.partition is Partition.PARTITIONED, 12.0, "silence of 1.5 keepalives is noticed")
        finally:
            broker.resume()
        await until(lambda: uplink.partition is Partition.HEALTHY, 20.0)


async def test_two_gateways_with_one_id_do_not_fight_in_a_hot_loop(broker: Mosquitto) -> None:
    broker.start()
    one, other = uplink_for(MemoryStore(), broker), uplink_for(MemoryStore(), broker)

    def reasons() -> str:
        return one.status().link.reason + other.status().link.reason

    async with running(one.run(), other.run()):
        began = asyncio.get_running_loop().time()
        await until(lambda: "does another client use the id" in reasons(), 30.0)
        await asyncio.sleep(2.0)
        seconds = asyncio.get_running_loop().time() - began
        assert one.status().connects + other.status().connects <= 6 + 2 * seconds


async def test_discovery_stays_on_the_broker_and_comes_again_on_birth_and_goes_when_switched_off(
    broker: Mosquitto,
) -> None:
    broker.start()
    settings = HomeAssistant(enabled=True)
    on = discovery_of(settings, "gw", "sluice", pipelines={}, sources={}, version="1")
    off = discovery_of(HomeAssistant(), "gw", "sluice", pipelines={}, sources={}, version="1")
    site = Broker(url=broker.url)
    heard: list[bytes] = []
    home = Announcer(site, "home-assistant", "other")  # stands for Home Assistant: listens, and says that it is born
    home.subscribe(on.topic, lambda _, payload: heard.append(payload))
    async with running(Announcer(site, "gw", "sluice", discovery=on).run()), running(home.run()):
        await until(lambda: len(heard) == 1)  # retained, or fresh
        assert json.loads(heard[0])["device"]["identifiers"] == ["sluice_gw"]
        speaker = Peer(broker.url)
        async with running(speaker.run()):
            await until(lambda: speaker.is_up)
            await until(lambda: home.status().link.state == "connected")
            await speaker.client.publish(Outgoing(settings.birth_topic, b"online"))
            await until(lambda: len(heard) == 2)
    heard.clear()
    late = Announcer(site, "home-assistant", "other")
    late.subscribe(on.topic, lambda _, payload: heard.append(payload))
    async with running(late.run()):
        await until(lambda: len(heard) == 1)  # it outlives the gateway's connection
        async with running(Announcer(site, "gw", "sluice", discovery=off).run()):
            await until(lambda: heard[-1] == b"")
    heard.clear()
    async with running(Announcer(site, "probe", "sluice").run(), late.run()):
        await until(lambda: late.status().link.state == "connected")
        await asyncio.sleep(0.3)
        assert heard == []


@pytest.mark.parametrize(("protocol", "soon"), [("5", True), ("3.1.1", False)])
async def test_a_bridge_that_comes_after_the_broker_gets_critical_records_without_the_time_out_of_an_ack(
    broker: Mosquitto, protocol: str, *, soon: bool
) -> None:
    """As after a broker has lost its sessions. The second is the control: there the broker cannot say it has nobody."""
    broker.start()
    store, peer = MemoryStore(), Peer(broker.url)
    store.put("critical", 3)
    brokers = [Broker(url=broker.url, protocol=protocol)]  # type: ignore[arg-type]
    uplink = Uplink(Cloud(brokers=brokers, ack_timeout_seconds=60.0), "gw", "sluice", store)
    async with running(uplink.run()):
        await until(lambda: uplink.status().classes["critical"].sent_records >= 3)
        if soon:
            await until(lambda: uplink.partition is Partition.DEGRADED)
        async with running(peer.run()):
            await until(lambda: peer.is_up)
            if soon:
                await until(lambda: store.empty, 8.0)
                await until(lambda: uplink.partition is Partition.HEALTHY)
            else:
                with pytest.raises(AssertionError):
                    await until(lambda: store.empty, 8.0)
