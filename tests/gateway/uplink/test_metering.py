"""Budgets and windows on the way to the cloud: what is counted, what waits, what flows."""

import json
import random
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest

from gateway.config import Broker, Budget, Cloud, Feature, FeatureMetering, LinkWindow, Metering, Period
from gateway.metering.ledger import Ledger
from gateway.metering.meter import Meter
from gateway.uplink.gate import is_metered
from gateway.uplink.uplink import Uplink
from gateway.wire.messages import Event, ModelRef, PipelineStatus
from tests.gateway.uplink.mosquitto import Mosquitto
from tests.gateway.uplink.peer import Peer
from tests.gateway.uplink.waiting import running, until
from tests.simulators.byte_relay import ByteRelay
from tests.simulators.record_store import MemoryStore
from tests.simulators.scripted_broker import Script, ScriptedBroker
from tests.simulators.settable_clocks import SettableClocks

NOON = int(datetime(2026, 11, 21, 12, tzinfo=UTC).timestamp()) * 1_000_000_000
NIGHT = [LinkWindow(open="0 2 * * *", minutes=60)]
BODY = json.dumps({"text": "0123456789abcdef" * 20}).encode()
PICTURE = bytes(range(256)) * 16


@pytest.fixture
def machine() -> SettableClocks:
    return SettableClocks(wall_ns=NOON)


@pytest.fixture
def mosquitto(tmp_path: Path) -> Iterator[Mosquitto]:
    broker = Mosquitto(tmp_path)
    broker.start()
    yield broker
    broker.stop()


def meter_for(machine: SettableClocks, directory: Path, settings: Metering) -> Meter:
    ledger = Ledger(directory / "link-usage.json")
    return Meter(settings, ZoneInfo("UTC"), ledger, clocks=machine.clocks())


def limited(feature: Feature, size: int, per: Period = "day") -> Metering:
    return Metering(features={feature: FeatureMetering(budget=Budget(bytes=size, per=per))})


def uplink_for(store: MemoryStore, meter: Meter, *brokers: Broker, **more: object) -> Uplink:
    cloud = Cloud(brokers=list(brokers), ack_timeout_seconds=2.0, batch_records=20, **more)  # type: ignore[arg-type]
    return Uplink(cloud, "gw", "sluice", store, meter=meter)


def bridge() -> ScriptedBroker:
    return ScriptedBroker(Script(is_bridge=True))


def put_noise(store: MemoryStore) -> None:
    """Four hundred events that no compression makes small."""
    noise = random.Random(7)
    for seq in range(400):
        store.put("event", 1, body=json.dumps({"n": seq, "noise": noise.randbytes(100).hex()}).encode())


def event(name: str) -> Event:
    return Event(
        phase="new",
        event_id=name,
        gateway="gw",
        pipeline="door",
        source="camera",
        rule="person",
        label="person",
        score=0.9,
        peak_score=0.9,
        model=ModelRef(name="m", version="1"),
        at="2026-01-01T00:00:00.000Z",
        started_at="2026-01-01T00:00:00.000Z",
        captured_at_ns=1,
    )


@pytest.mark.net
@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
async def test_every_byte_of_mqtt_is_counted_once_for_what_it_was(
    protocol: str, machine: SettableClocks, mosquitto: Mosquitto, tmp_path: Path
) -> None:
    meter = meter_for(machine, tmp_path, limited("records", 10_000_000))
    store, peer = MemoryStore(), Peer(mosquitto.url)
    store.put("event", 300, body=BODY)
    store.put("bulk", 20, blob=PICTURE)
    async with ByteRelay(mosquitto.port) as relay, running(peer.run()):
        await until(lambda: peer.is_up)
        broker = Broker(url=relay.url, protocol=protocol)  # type: ignore[arg-type]
        uplink = uplink_for(store, meter, broker, publish_events=True)
        async with running(uplink.run()):
            uplink.publish_event(event("shown"))
            await until(lambda: store.empty)
        network = uplink.status().network
    usage = meter.usage()
    everything = [*usage.features.values(), usage.protocol]
    assert sum(each.sent_bytes for each in everything) == relay.up
    assert sum(each.received_bytes for each in everything) == relay.down
    assert usage.features["snapshots"].sent_bytes > 20 * len(PICTURE)
    assert usage.features["telemetry"].sent_bytes > 300
    assert usage.features["records"].received_bytes > 0  # the bridge's acknowledgements
    assert usage.protocol.sent_bytes < 2000
    # Nothing stays set aside: the size of each packet was known exactly.
    records = usage.features["records"]
    assert meter.room("records") == 10_000_000 - records.sent_bytes - records.received_bytes
    # The network carries more than MQTT counts, and less than half as much again for batches.
    assert relay.up < network.sent < 1.5 * relay.up + 20_000


@pytest.mark.net
async def test_what_a_broken_connection_did_not_carry_is_not_charged(
    machine: SettableClocks, mosquitto: Mosquitto, tmp_path: Path
) -> None:
    meter = meter_for(machine, tmp_path, limited("records", 50_000_000))
    store, peer = MemoryStore(), Peer(mosquitto.url)
    store.put("event", 4000, body=BODY)
    async with ByteRelay(mosquitto.port) as relay, running(peer.run()):
        await until(lambda: peer.is_up)
        async with running(uplink_for(store, meter, Broker(url=relay.url)).run()):
            for count in (200, 800):
                await until(lambda count=count: peer.count("event") > count)  # type: ignore[misc]
                relay.cut()
            await until(lambda: store.empty, 30)
    usage = meter.usage()
    sent = sum(each.sent_bytes for each in [*usage.features.values(), usage.protocol])
    # What the kernel had taken and the relay never got counts as sent; it is less than a socket buffer a cut.
    assert relay.up <= sent <= relay.up + 3 * 4_000_000
    records = usage.features["records"]
    assert meter.room("records") == 50_000_000 - records.spent_bytes


async def test_a_used_up_budget_holds_records_while_critical_flows(machine: SettableClocks, tmp_path: Path) -> None:
    meter = meter_for(machine, tmp_path, limited("records", 20_000))
    store = MemoryStore()
    put_noise(store)
    async with bridge() as broker:
        uplink = uplink_for(store, meter, Broker(url=broker.url))
        async with running(uplink.run()):
            await until(lambda: "event" in meter.held())
            # What was on its way is answered first.
            await until(lambda: store.left("event") == 400 - max(broker.order["event"], default=0))
            left = store.left("event")
            assert 0 < left < 400
            store.put("critical", 5)
            uplink.notify(["critical"])
            await until(lambda: store.left("critical") == 0)
            assert store.left("event") == left
            spent = meter.usage().features["records"]
            assert spent.sent_bytes <= 20_000 + 5 * 300  # the override is counted beyond the budget
            machine.pass_seconds(12 * 3600)  # midnight
            await until(lambda: store.left("event") < left)
        assert broker.order["event"] == sorted(broker.order["event"])


async def test_without_a_budget_the_same_records_flow(machine: SettableClocks, tmp_path: Path) -> None:
    """The control of the test above."""
    meter = meter_for(machine, tmp_path, Metering())
    store = MemoryStore()
    put_noise(store)
    async with bridge() as broker, running(uplink_for(store, meter, Broker(url=broker.url)).run()):
        await until(lambda: store.empty)
    assert meter.usage().features["records"].sent_bytes > 20_000


async def test_an_event_goes_without_waiting_for_its_picture(machine: SettableClocks, tmp_path: Path) -> None:
    meter = meter_for(machine, tmp_path, limited("snapshots", 3 * len(PICTURE)))
    store = MemoryStore()
    store.put("event", 30)
    store.put("bulk", 30, blob=PICTURE)
    async with bridge() as broker, running(uplink_for(store, meter, Broker(url=broker.url)).run()):
        await until(lambda: store.left("event") == 0 and "bulk" in meter.held())
        assert store.left("bulk") == 28
        store.put("event", 1)
        machine.pass_seconds(12 * 3600)
        await until(lambda: store.left("bulk") == 26)


async def test_records_wait_for_their_window(machine: SettableClocks, tmp_path: Path) -> None:
    meter = meter_for(machine, tmp_path, Metering(features={"records": FeatureMetering(windows=NIGHT)}))
    store = MemoryStore()
    store.put("measure", 50)
    store.put("critical", 1)
    async with bridge() as broker, running(uplink_for(store, meter, Broker(url=broker.url)).run()):
        await until(lambda: store.left("critical") == 0)
        assert store.left("measure") == 50
        machine.pass_seconds(14 * 3600)
        await until(lambda: store.empty)
        store.put("measure", 1)
        machine.pass_seconds(3600)
    assert broker.order["measure"] == list(range(1, 51))


async def test_only_the_metered_broker_of_a_list_is_limited(machine: SettableClocks, tmp_path: Path) -> None:
    meter = meter_for(machine, tmp_path, Metering(features={"records": FeatureMetering(windows=NIGHT)}))
    store = MemoryStore()
    store.put("event", 10)
    async with bridge() as lte, bridge() as ethernet:
        brokers = [Broker(url=lte.url, metered=True), Broker(url=ethernet.url)]
        uplink = uplink_for(store, meter, *brokers)
        async with running(uplink.run()):
            await until(lambda: uplink.status().link.state == "connected")
            await until(lambda: "event" in meter.held())
            assert store.left("event") == 10
            lte.script.close_at_once = True
            uplink._client.reconnect("moved")
            await until(lambda: store.empty)
        assert not meter.usage().metered
        assert lte.rows == {}
        assert len(ethernet.rows) == 10


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ([None], [True]),
        ([None, None], [True, True]),
        ([True, None], [True, False]),
        ([False, None], [False, True]),
        ([False, False], [False, False]),
    ],
)
def test_limits_apply_where_a_broker_says_so_or_everywhere_if_none_does(
    said: list[bool | None], expected: list[bool]
) -> None:
    brokers = [Broker(url="mqtt://127.0.0.1", metered=metered) for metered in said]
    assert [is_metered(broker, brokers) for broker in brokers] == expected


async def test_what_is_only_shown_waits_for_its_window_and_the_latest_status_counts(
    machine: SettableClocks, tmp_path: Path
) -> None:
    meter = meter_for(machine, tmp_path, Metering(features={"telemetry": FeatureMetering(windows=NIGHT)}))
    store = MemoryStore()
    async with bridge() as broker:
        uplink = uplink_for(store, meter, Broker(url=broker.url), publish_events=True)
        async with running(uplink.run()):
            await until(lambda: broker.payloads("availability"))
            for turn in range(3):
                uplink.publish_event(event(f"e{turn}"))
                uplink.publish_status(
                    PipelineStatus(pipeline="door", state="running", source_state="lost", at=str(turn))
                )
            store.put("event", 1)
            uplink.notify(["event"])
            await until(lambda: store.empty)
            assert broker.payloads("/event/") == broker.payloads("/status/") == []
            machine.pass_seconds(14 * 3600)
            await until(lambda: broker.payloads("/status/"))
            assert [json.loads(each)["event_id"] for each in broker.payloads("/event/")] == ["e0", "e1", "e2"]
            assert [json.loads(each)["at"] for each in broker.payloads("/status/")] == ["2"]


async def test_a_record_larger_than_the_whole_budget_goes_when_a_period_begins(
    machine: SettableClocks, tmp_path: Path
) -> None:
    meter = meter_for(machine, tmp_path, limited("snapshots", 1000, "hour"))
    store = MemoryStore()
    store.put("bulk", 3, blob=PICTURE)
    async with bridge() as broker, running(uplink_for(store, meter, Broker(url=broker.url)).run()):
        for left in (2, 1, 0):
            await until(lambda left=left: store.left("bulk") == left)  # type: ignore[misc]
            machine.pass_seconds(3601)
    assert broker.order["bulk"] == [1, 2, 3]
