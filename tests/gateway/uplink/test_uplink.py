import asyncio
import json
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import get_args

import pytest
from structlog.testing import capture_logs

from gateway.config import Broker, Cloud
from gateway.errors import ConfigError
from gateway.uplink.delivery import Delivery
from gateway.uplink.status import Partition
from gateway.uplink.uplink import Uplink
from gateway.uplink.withholding import Withholding
from gateway.wire.batch import unpack
from gateway.wire.messages import Availability, Event, ModelRef, RecordClass, Withheld, decode, record_digest
from tests.gateway.uplink.waiting import running, until
from tests.simulators import scripted_broker as wire
from tests.simulators.record_store import MemoryStore
from tests.simulators.scripted_broker import Published, Script, ScriptedBroker

EPOCH = "0123456789abcdef"


def cloud(*brokers: ScriptedBroker, **more: object) -> Cloud:
    given = {"ack_timeout_seconds": 1.0, "batch_records": 50, **more}
    return Cloud(brokers=[Broker(url=broker.url) for broker in brokers], **given)  # type: ignore[arg-type]


def uplink_for(store: MemoryStore, *brokers: ScriptedBroker, **more: object) -> Uplink:
    return Uplink(cloud(*brokers, **more), "gw", "sluice", store, version="1.2.3")


def bridge(**knobs: object) -> ScriptedBroker:
    return ScriptedBroker(Script(is_bridge=True, **knobs))  # type: ignore[arg-type]


def committed(broker: ScriptedBroker, name: RecordClass) -> list[int]:
    return sorted(seq for _, _, each, seq in broker.rows if each == name)


async def test_a_backlog_is_delivered_in_order_and_leaves_the_store() -> None:
    store = MemoryStore()
    for name in get_args(RecordClass):
        store.put(name, 333)
    async with bridge() as broker:
        uplink = uplink_for(store, broker)
        async with running(uplink.run()):
            await until(lambda: store.empty)
            status = uplink.status()
        for name in get_args(RecordClass):
            assert broker.order[name] == list(range(1, 334))
        assert status.partition is Partition.HEALTHY
        assert status.link.state == "connected"
        assert {each.confirmed for each in status.classes.values()} == {333}
        sizes = {name: sum(map(len, broker.payloads(f"records/{name}"))) for name in get_args(RecordClass)}
        assert {name: each.sent_bytes for name, each in status.classes.items()} == sizes


async def test_records_are_delivered_and_let_go_while_the_pool_of_all_is_full() -> None:
    never = threading.Event()
    loop = asyncio.get_running_loop()
    loop.set_default_executor(ThreadPoolExecutor(1))
    waiting = loop.run_in_executor(None, never.wait, 60)
    store = MemoryStore()
    store.put("event", 333)
    async with bridge() as broker:
        async with running(uplink_for(store, broker).run()):
            await until(lambda: store.empty)
        assert broker.order["event"] == list(range(1, 334))
    assert not waiting.done()
    never.set()
    await waiting


async def test_a_commit_is_sent_at_once_when_it_is_announced() -> None:
    store = MemoryStore()
    async with bridge() as broker:
        uplink = uplink_for(store, broker)
        async with running(uplink.run()):
            await until(lambda: uplink.status().link.state == "connected")
            await asyncio.sleep(0.3)
            reads = store.reads
            began = asyncio.get_running_loop().time()
            store.put("event", 1)
            await asyncio.to_thread(uplink.notify, ["event"])
            await until(lambda: store.empty)
            assert asyncio.get_running_loop().time() - began < 1.0
            assert store.reads <= reads + 3
            reads = store.reads
            await asyncio.sleep(1.2)
            assert store.reads == reads  # nothing is polled


async def test_blobs_travel_with_their_records() -> None:
    store = MemoryStore()
    store.put("bulk", 3, blob=b"\xff\xd8picture")
    async with bridge() as broker:
        async with running(uplink_for(store, broker).run()):
            await until(lambda: store.empty)
        assert [body[-9:] for body in broker.rows.values()] == [b"\xff\xd8picture"] * 3


@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
async def test_the_content_type_is_told_where_the_protocol_can(protocol: str) -> None:
    store = MemoryStore()
    store.put("event", 50)
    async with bridge() as broker:
        brokers = [Broker(url=broker.url, protocol=protocol)]  # type: ignore[arg-type]
        async with running(Uplink(Cloud(brokers=brokers), "gw", "sluice", store).run()):
            await until(lambda: store.empty)
        (records,) = [message for message in broker.published if "/records/" in message.topic]
        expected = {wire.CONTENT_TYPE: [b"application/json+zlib"]} if protocol == "5" else {}
        assert records.properties == expected
        assert records.qos == 1


async def test_presence_is_retained_with_a_will_and_ends_with_stopped() -> None:
    async with bridge() as broker:
        uplink = uplink_for(MemoryStore(), broker)
        async with running(uplink.run()):
            await until(lambda: broker.payloads("availability"))
            (connect,) = broker.connects
            assert connect.will_topic == "sluice/v1/gw/availability/gateway"
            assert connect.will_retain
            assert decode(connect.will_payload, Availability).state == "offline"
            assert broker.subscriptions == ["sluice/v1/gw/availability/gateway", "sluice/v1/gw/ack/+"]
        states = [decode(payload, Availability) for payload in broker.payloads("availability")]
        assert [each.state for each in states] == ["online", "stopped"]
        assert states[0].version == "1.2.3"
        await until(lambda: broker.goodbyes == 1)
        assert uplink.status().link.state == "stopped"


# ---- faults ------------------------------------------------------------------------------------------


async def everything_arrives(broker: ScriptedBroker, store: MemoryStore, expected: int, **more: object) -> Uplink:
    uplink = uplink_for(store, broker, **more)
    async with running(uplink.run()):
        await until(lambda: store.empty, 25.0, "all is delivered")
    assert len(committed(broker, "event")) == expected
    return uplink


async def test_a_lost_ack_resends_and_loses_nothing() -> None:
    store = MemoryStore()
    store.put("event", 200)
    async with bridge(lose_next_acks=4) as broker:
        uplink = await everything_arrives(broker, store, 200)
        assert broker.duplicates > 0
        assert uplink.status().classes["event"].resent_batches >= 1


async def test_batches_the_broker_took_and_lost_are_sent_again() -> None:
    store = MemoryStore()
    store.put("event", 500)
    async with bridge(lose_next_batches=3) as broker:
        await everything_arrives(broker, store, 500)
        assert sorted(broker.order["event"]) == list(range(1, 501))


async def lying_broker(on_puback: Callable[[ScriptedBroker, MemoryStore], Callable[[Published], None]]) -> set[int]:
    """Run a script in which the broker answers for batches that it loses; return the rows that never arrive."""
    store = MemoryStore()
    store.put("event", 500)
    async with bridge(lose_next_batches=3) as broker:
        broker.on_puback = on_puback(broker, store)
        async with running(uplink_for(store, broker).run()):
            await until(lambda: store.empty, 25.0)
        return set(range(1, 501)) - set(committed(broker, "event"))


async def test_a_lying_broker_costs_nothing_because_only_the_bridge_confirms() -> None:
    assert await lying_broker(lambda broker, store: lambda message: None) == set()


async def test_deleting_on_puback_would_lose_records_under_the_same_script() -> None:
    """The negative control: with the usual shortcut the same script loses data."""

    def delete_on_puback(broker: ScriptedBroker, store: MemoryStore) -> Callable[[Published], None]:
        def taken(message: Published) -> None:
            if "/records/" in message.topic:
                batch = unpack(message.payload).batch
                store.acknowledge("event", batch.epoch, batch.records[-1].seq)

        return taken

    assert await lying_broker(delete_on_puback)


async def test_a_connection_lost_mid_stream_is_made_again_and_nothing_is_lost() -> None:
    store = MemoryStore()
    store.put("event", 1000)
    async with bridge(close_after_publishes=5) as broker:
        await everything_arrives(broker, store, 1000)
        assert len(broker.connects) > 1


async def test_a_broker_that_is_down_at_start_is_waited_for() -> None:
    store = MemoryStore()
    store.put("event", 10)
    broker = bridge()
    await broker.start()
    await broker.stop()
    uplink = uplink_for(store, broker)
    async with running(uplink.run()):
        await until(lambda: uplink.status().link.state == "waiting")
        assert uplink.partition is Partition.PARTITIONED
        assert "refused" in uplink.status().link.reason.lower()
        await broker.start()
        await until(lambda: store.empty, 20.0)
    await broker.stop()


async def test_a_broker_that_stays_away_is_not_asked_in_a_hot_loop() -> None:
    async with ScriptedBroker(Script(close_at_once=True)) as broker:
        uplink = uplink_for(MemoryStore(), broker)
        async with running(uplink.run()):
            await asyncio.sleep(4.0)
        assert 2 <= len(broker.connect_times) <= 12


@pytest.mark.parametrize("code", [0x87, 0x86, 0x8A])
async def test_a_refusal_is_told_and_tried_less_than_once_a_second(code: int) -> None:
    store = MemoryStore()
    store.put("event", 10)
    async with ScriptedBroker(Script(connack=code)) as broker:
        uplink = uplink_for(store, broker)
        async with running(uplink.run()):
            await asyncio.sleep(3.0)
            link = uplink.status().link
            assert len(broker.connects) == 1
            assert link.state == "refused"
            assert link.reason
            assert link.since_ns > 0
        assert store.left("event") == 10


@pytest.mark.parametrize("code", [0x80, 0x87, 0x97, 0x99])
async def test_a_refused_batch_stays_is_counted_and_is_not_tried_in_a_hot_loop(code: int) -> None:
    store = MemoryStore()
    store.put("event", 500)
    async with bridge(puback=code) as broker:
        uplink = uplink_for(store, broker)
        async with running(uplink.run()):
            await asyncio.sleep(2.5)
            tries = len(broker.payloads("records"))
            assert 2 <= tries <= 8
            assert store.left("event") == 500
            assert uplink.partition is Partition.DEGRADED
            assert sum(uplink.status().publish_errors.values()) >= 1
            broker.script.puback = 0
            await until(lambda: store.empty, 20.0)


async def test_nobody_listening_is_seen_in_the_counters_and_is_no_success() -> None:
    store = MemoryStore()
    store.put("event", 10)
    async with ScriptedBroker(Script(puback=0x10)) as broker:
        uplink = uplink_for(store, broker)
        async with running(uplink.run()):
            await until(lambda: uplink.partition is Partition.DEGRADED)
            assert uplink.status().publish_errors["No matching subscribers"] >= 1
        assert store.left("event") == 10


async def test_withheld_acks_lead_to_few_small_probes() -> None:
    store = MemoryStore()
    store.put("event", 5000)
    async with bridge(withhold_acks=True) as broker:
        uplink = uplink_for(store, broker, ack_timeout_seconds=0.5)
        async with running(uplink.run()):
            await until(lambda: uplink.partition is Partition.DEGRADED)
            before = sum(len(unpack(each).batch.records) for each in broker.payloads("records"))
            await asyncio.sleep(3.0)
            after = sum(len(unpack(each).batch.records) for each in broker.payloads("records"))
            assert after <= 2 * before
            assert store.left("event") == 5000
            broker.script.withhold_acks = False
            await until(lambda: store.empty, 25.0)
        assert len(committed(broker, "event")) == 5000


async def test_a_broker_that_never_answers_batches_is_left_and_asked_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.uplink.uplink.PUBACK_SECONDS", 0.5)
    store = MemoryStore()
    store.put("event", 100)
    async with ScriptedBroker(Script(withhold_pubacks=True)) as broker:
        uplink = uplink_for(store, broker, ack_timeout_seconds=0.05)
        async with running(uplink.run()):
            await until(lambda: len(broker.connects) >= 2)
            assert store.left("event") == 100
            assert uplink.status().publish_errors["connection lost"] >= 1
            broker.script.withhold_pubacks, broker.script.is_bridge = False, True
            await until(lambda: store.empty, 20.0)
        assert len(committed(broker, "event")) == 100


async def test_a_server_that_takes_one_message_at_a_time_gets_one_at_a_time() -> None:
    store = MemoryStore()
    store.put("event", 300)
    async with bridge(connack_properties=[(wire.RECEIVE_MAXIMUM, 1)]) as broker:
        await everything_arrives(broker, store, 300)


async def test_payloads_are_cut_to_the_servers_maximum_packet_size() -> None:
    store = MemoryStore()
    store.put("event", 300)
    store.put("bulk", 5, blob=bytes(range(256)) * 3)
    async with bridge(connack_properties=[(wire.MAXIMUM_PACKET, 2048)]) as broker:
        await everything_arrives(broker, store, 300)
        assert max(len(message.payload) for message in broker.published) <= 2048 - 64
        assert committed(broker, "bulk") == [1, 2, 3, 4, 5]


async def test_a_record_that_fits_no_packet_is_set_aside_and_its_class_goes_on() -> None:
    store = MemoryStore()
    store.put("bulk", 1, blob=bytes(5000))
    store.put("bulk", 3, blob=bytes(50))
    store.put("event", 20)
    async with bridge(connack_properties=[(wire.MAXIMUM_PACKET, 2048)]) as broker:
        uplink = uplink_for(store, broker)
        async with running(uplink.run()):
            await until(lambda: store.empty)
            assert uplink.status().withheld == {("bulk", "too-large"): 1}
            assert uplink.partition is Partition.HEALTHY
        assert committed(broker, "bulk") == [1, 2, 3, 4]
        told = decode(broker.rows["gw", EPOCH, "bulk", 1], Withheld)
        assert (told.kind, told.reason, told.size_bytes) == (
            "event",
            "too-large",
            5000 + len('{"n": 1, "class": "bulk"}'),
        )
    reason, kept = store.kept["bulk", 1]
    assert (reason, kept.blob) == ("too-large", bytes(5000))


async def test_a_record_once_set_aside_for_its_size_stays_so_with_a_broker_that_would_take_it() -> None:
    store = MemoryStore()
    store.put("bulk", 1, blob=bytes(5000))
    async with bridge(connack_properties=[(wire.MAXIMUM_PACKET, 2048)], lose_next_batches=1000) as broker:
        async with running(uplink_for(store, broker).run()):
            await until(lambda: store.kept and broker.payloads("records/bulk"))
        (first, *_) = broker.payloads("records/bulk")
    async with bridge() as roomy:
        async with running(uplink_for(store, roomy).run()):
            await until(lambda: store.empty)
        assert roomy.payloads("records/bulk") == [first]


async def test_a_record_that_cannot_even_be_told_of_blocks_its_class_alone_and_says_so() -> None:
    store = MemoryStore()
    store.put("bulk", 1, blob=bytes(5000))
    async with bridge(connack_properties=[(wire.MAXIMUM_PACKET, 160)]) as broker:
        uplink = uplink_for(store, broker)
        async with running(uplink.run()):
            await until(lambda: uplink.status().blocked)
            assert "record 1 of class bulk" in uplink.status().blocked
            assert uplink.partition is Partition.DEGRADED
            assert store.left("bulk") == 1


async def test_a_record_that_cannot_be_set_aside_is_not_replaced_and_its_class_alone_waits() -> None:
    store = MemoryStore()
    store.put("bulk", 1, blob=bytes(5000))
    store.keeps = False
    async with bridge(connack_properties=[(wire.MAXIMUM_PACKET, 2048)]) as broker:
        uplink = uplink_for(store, broker)
        with capture_logs() as logs:
            async with running(uplink.run()):
                await until(lambda: store.refusals >= 1)
                store.put("event", 20)
                uplink.notify(["event"])
                await until(lambda: store.refusals >= 2 and not store.left("event"))
                status = uplink.status()
                assert status.blocked == "class bulk waits: no room to set it aside"
                assert status.blocked_classes == {"bulk"}
                assert status.partition is Partition.DEGRADED
                assert store.left("bulk") == 1
                store.keeps = True
                await until(lambda: store.empty)
                assert uplink.status().blocked == ""
        told = [entry["event"] for entry in logs if entry["event"] in ("record_not_set_aside", "class_goes_on")]
        assert told == ["record_not_set_aside", "class_goes_on"]
        assert not [entry for entry in logs if entry["event"] == "store_unreadable"]


async def test_a_class_that_waits_for_room_goes_on_when_the_broker_takes_more() -> None:
    store = MemoryStore()
    store.put("bulk", 3, blob=bytes(5000))
    store.keeps = False
    async with bridge(connack_properties=[(wire.MAXIMUM_PACKET, 2048)]) as broker:
        uplink = uplink_for(store, broker)
        async with running(uplink.run()):
            await until(lambda: uplink.status().blocked)
            broker.script.connack_properties = []
            await broker.stop()
            await broker.start()
            await until(lambda: store.empty)
            assert store.kept == {}
            assert uplink.status().blocked == ""


async def test_rows_before_one_that_cannot_be_set_aside_are_delivered() -> None:
    store = MemoryStore()
    store.put("event", 5)
    store.put("event", 1, body=b"}")
    store.put("event", 5)
    store.keeps = False
    async with bridge() as broker:
        uplink = uplink_for(store, broker)
        async with running(uplink.run()):
            await until(lambda: store.left("event") == 6 and uplink.status().blocked)
        assert committed(broker, "event") == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("body", [b'{"n": 2, "cla', b"", b"\x00" * 30, b'{"n": \xff}', b'{"n": "\xff"}', b"{}}"])
async def test_a_body_that_is_no_json_is_set_aside_and_the_records_around_it_arrive(body: bytes) -> None:
    store = MemoryStore()
    store.put("event", 10)
    store.put("event", 1, body=body)
    store.put("event", 10)
    async with bridge() as broker:
        uplink = uplink_for(store, broker)
        async with running(uplink.run()):
            await until(lambda: store.empty)
            assert uplink.status().withheld == {("event", "unreadable"): 1}
        assert committed(broker, "event") == list(range(1, 22))
        told = decode(broker.rows["gw", EPOCH, "event", 11], Withheld)
        assert (told.reason, told.size_bytes) == ("unreadable", len(body))
    reason, kept = store.kept["event", 11]
    assert (reason, kept.body) == ("unreadable", body)


async def test_a_packet_refused_as_too_large_without_warning_is_made_smaller() -> None:
    store = MemoryStore()
    store.put("event", 300)
    async with bridge() as broker:
        broker.script.refuse_above = 2000
        uplink = uplink_for(store, broker)
        async with running(uplink.run()):
            await until(lambda: store.empty, 30.0)
        assert committed(broker, "event") == list(range(1, 301))


async def test_a_broker_that_cuts_the_connection_at_large_packets_gets_smaller_ones() -> None:
    store = MemoryStore()
    store.put("event", 300, body=b'{"text": "%s"}' % bytes(65 + n * 7 % 26 for n in range(400)))
    async with bridge() as broker:
        broker.script.cut_above = 3000
        uplink = uplink_for(store, broker, batch_records=300)
        async with running(uplink.run()):
            await until(lambda: store.empty, 60.0)
        assert committed(broker, "event") == list(range(1, 301))
        assert store.kept == {}, "a guess is no reason to withhold anything"


def clones() -> tuple[MemoryStore, MemoryStore]:
    """Return two stores of one epoch that have different rows under the same numbers."""
    one, other = MemoryStore(), MemoryStore()
    for store, name in ((one, "one"), (other, "other")):
        for n in range(1, 6):
            store.put("event", 1, body=b'{"n": %d, "device": "%s"}' % (n, name.encode()))
    return one, other


async def sent_by_the_second_of_two_clones(*, digests: bool) -> int:
    """Have one clone deliver, then the other; return how many batches the other has sent."""
    one, other = clones()
    async with bridge() as broker:
        broker.script.tell_digests = digests
        async with running(uplink_for(one, broker).run()):
            await until(lambda: one.empty)
        sent = len(broker.payloads("records/event"))
        async with running(uplink_for(other, broker).run()):
            await until(lambda: other.empty)
        return len(broker.payloads("records/event")) - sent


@pytest.mark.parametrize("digests", [True, False])
async def test_the_mark_of_a_clone_lets_nothing_go_that_was_not_sent(digests: bool) -> None:
    """Also where the bridge does not know any more what it has under that number."""
    assert await sent_by_the_second_of_two_clones(digests=digests) > 0


@pytest.mark.parametrize("digests", [True, False])
async def test_control_a_mark_that_is_not_looked_into_lets_unsent_rows_go(
    monkeypatch: pytest.MonkeyPatch, digests: bool
) -> None:
    monkeypatch.setattr(Withholding, "verdict", lambda *_: "same")
    assert await sent_by_the_second_of_two_clones(digests=digests) == 0


async def left_under_the_mark_of_another(*, digest: str) -> int:
    """Have a mark come for rows that were sent and never answered; return how many are in the store after it."""
    store = MemoryStore()
    store.put("event", 5)
    async with ScriptedBroker(Script(withhold_pubacks=True)) as broker:
        uplink = uplink_for(store, broker)
        async with running(uplink.run()):
            await until(lambda: broker.payloads("records/event"))
            broker.digests["gw", EPOCH, "event", 5] = digest
            broker.acknowledge("gw", EPOCH, "event", 5)
            await asyncio.sleep(0.3)
            return store.left("event")


async def test_rows_on_their_way_stay_under_the_mark_of_a_clone_and_go_under_their_own() -> None:
    """A clone that takes the session over may have had its rows committed while ours are lost in the old connection."""
    store = MemoryStore()
    store.put("event", 5)
    (row,) = store.read("event", 4, 1, 1).rows  # type: ignore[union-attr]
    assert await left_under_the_mark_of_another(digest="00") == 5
    assert await left_under_the_mark_of_another(digest="") == 5
    assert await left_under_the_mark_of_another(digest=record_digest(row.kind, row.body, row.blob)) == 0


async def test_control_a_mark_that_needs_no_proof_frees_rows_that_no_broker_has(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Delivery, "needs_proof", lambda *_: False)
    assert await left_under_the_mark_of_another(digest="00") == 0


async def test_a_long_backlog_under_a_mark_without_a_digest_is_sent_once_and_without_pauses() -> None:
    store = MemoryStore()
    store.put("event", 4000)
    async with bridge(tell_digests=False) as broker:
        broker.acknowledge("gw", EPOCH, "event", 3999)
        broker.marks["gw", EPOCH, "event"] = 3999
        uplink = uplink_for(store, broker, ack_timeout_seconds=30.0)
        async with running(uplink.run()):
            await until(lambda: store.empty, 20.0)
            assert uplink.status().classes["event"].resent_batches == 0
        assert committed(broker, "event") == list(range(1, 4001))


async def test_a_conflict_is_told_once_and_shown() -> None:
    store = MemoryStore()
    told: list[tuple[str, int]] = []
    async with bridge() as broker:
        uplink = Uplink(cloud(broker), "gw", "sluice", store, on_conflict=lambda name, n: told.append((name, n)))
        async with running(uplink.run()):
            await until(lambda: broker.subscriptions)
            for epoch, conflicts in ((EPOCH[::-1], 9), (EPOCH, 2), (EPOCH, 2), (EPOCH, 3)):
                broker.acknowledge("gw", epoch, "event", 0, conflicts=conflicts)
            await until(lambda: uplink.status().conflicts == {"event": 3})
        assert told == [("event", 2), ("event", 3)]


async def test_conflicts_of_a_store_that_is_gone_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.uplink.uplink.LOOK_SECONDS", 0.2)
    store = MemoryStore()
    store.put("event", 1)
    told: list[tuple[str, int]] = []
    async with bridge() as broker:
        uplink = Uplink(cloud(broker), "gw", "sluice", store, on_conflict=lambda name, n: told.append((name, n)))
        async with running(uplink.run()):
            await until(lambda: store.empty)
            broker.acknowledge("gw", EPOCH, "event", 1, conflicts=5)
            await until(lambda: uplink.status().conflicts == {"event": 5})
            store.begin_anew("aaaaaaaaaaaaaaaa")
            uplink.notify(["event"])
            await until(lambda: uplink.status().conflicts == {})
            broker.acknowledge("gw", "aaaaaaaaaaaaaaaa", "event", 0, conflicts=1)
            await until(lambda: uplink.status().conflicts == {"event": 1})
        assert told == [("event", 5), ("event", 1)]


async def test_a_mark_ahead_of_the_store_is_handed_to_it_before_anything_is_sent() -> None:
    store = MemoryStore()
    store.put("event", 5)
    store.follows = True
    async with bridge() as broker:
        broker.acknowledge("gw", EPOCH, "event", 50)
        broker.marks["gw", EPOCH, "event"] = 50
        uplink = uplink_for(store, broker)
        async with running(uplink.run()):
            await until(lambda: store.empty)
            assert store.ahead == [("event", EPOCH, 50)]
            broker.acknowledge("gw", EPOCH, "event", 99)  # another device: this one and the bridge have met
            await until(lambda: uplink.status().ignored_acks == 1)
            assert store.ahead == [("event", EPOCH, 50)]
        assert committed(broker, "event") == [51, 52, 53, 54, 55]


async def test_the_mark_of_rows_that_are_not_here_lets_nothing_go_that_was_not_sent() -> None:
    """What was put back is sent once more: an earlier run may have stored it after the loss."""
    store = MemoryStore()
    store.put("event", 5)
    store.jump("event", 45)
    store.put("event", 5)
    async with bridge() as broker:
        broker.acknowledge("gw", EPOCH, "event", 40)
        broker.digests["gw", EPOCH, "event", 40] = "00"
        broker.acknowledge("gw", EPOCH, "event", 40)
        broker.marks["gw", EPOCH, "event"] = 50
        async with running(uplink_for(store, broker).run()):
            await until(lambda: store.empty)
        assert committed(broker, "event") == [1, 2, 3, 4, 5, 51, 52, 53, 54, 55]


async def test_a_session_taken_over_is_not_fought_for() -> None:
    store = MemoryStore()
    store.put("event", 10)
    async with bridge(disconnect_after_publishes=(0, 0x8E, [])) as broker:
        uplink = uplink_for(store, broker)
        async with running(uplink.run()):
            await until(lambda: uplink.status().link.state == "refused")
            await asyncio.sleep(2.0)
            assert len(broker.connects) == 1
            assert "taken over" in uplink.status().link.reason.lower()


async def test_acks_that_are_not_for_us_are_counted_and_change_nothing() -> None:
    store = MemoryStore()
    store.put("event", 100)
    topic = "sluice/v1/gw/ack/event"
    bad = [
        b"not json",
        b'{"epoch":"ffffffffffffffff","mark":100,"at":""}',
        b'{"epoch":"0123456789abcdef","mark":5000,"at":""}',
        b'{"epoch":"0123456789abcdef","mark":-1,"at":""}',
        b"\xff\xfe",
        b"",
    ]
    raw = [wire.publish_packet(5, topic, payload) for payload in bad]
    raw += [wire.publish_packet(5, "sluice/v1/gw/ack/nonsense", b'{"epoch":"0123456789abcdef","mark":1,"at":""}')]
    raw += [wire.publish_packet(5, b"sluice/v1/gw/ack/\xff", b"{}")]
    async with ScriptedBroker(Script(is_bridge=True, withhold_acks=True, on_subscribe_send=raw)) as broker:
        uplink = uplink_for(store, broker)
        async with running(uplink.run()):
            await until(lambda: uplink.status().ignored_acks == 7)
            assert store.left("event") == 100
            assert store.acknowledged == []


async def test_retained_acks_save_sending_what_is_already_committed() -> None:
    store = MemoryStore()
    store.put("event", 100)
    async with bridge() as broker:
        last = store.read("event", 89, 1, 1)
        assert last is not None
        broker.digests["gw", EPOCH, "event", 90] = record_digest(last.rows[0].kind, last.rows[0].body, b"")
        broker.acknowledge("gw", EPOCH, "event", 90)
        broker.marks["gw", EPOCH, "event"] = 90
        async with running(uplink_for(store, broker).run()):
            await until(lambda: store.empty)
        assert committed(broker, "event") == list(range(91, 101))


async def test_an_evicted_gap_does_not_stop_the_rest() -> None:
    store = MemoryStore()
    store.put("measure", 100)
    store.evict("measure", range(1, 41))
    async with bridge() as broker:
        async with running(uplink_for(store, broker).run()):
            await until(lambda: store.empty)
        assert committed(broker, "measure") == list(range(41, 101))


async def test_a_store_that_fails_for_a_while_is_read_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.uplink.uplink.LOOK_SECONDS", 0.2)
    store = MemoryStore()
    store.put("event", 100)
    async with bridge() as broker:
        store.fail = True
        uplink = uplink_for(store, broker)
        async with running(uplink.run()):
            await until(lambda: uplink.status().link.state == "connected")
            await asyncio.sleep(0.5)
            assert broker.payloads("records") == []
            store.fail = False
            await until(lambda: store.empty)


async def test_a_store_opened_anew_under_another_epoch_is_delivered_from_its_start(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("gateway.uplink.uplink.LOOK_SECONDS", 0.2)
    store = MemoryStore()
    store.put("event", 100)
    async with bridge() as broker:
        uplink = uplink_for(store, broker)
        async with running(uplink.run()):
            await until(lambda: store.empty)
            store.begin_anew("aaaaaaaaaaaaaaaa")
            store.put("event", 30)
            uplink.notify(["event"])
            await until(lambda: store.empty)
        epochs = [epoch for _, epoch, _, _ in broker.rows]
        assert (epochs.count(EPOCH), epochs.count("aaaaaaaaaaaaaaaa")) == (100, 30)


# ---- several brokers ---------------------------------------------------------------------------------


async def test_the_next_broker_is_used_while_the_first_is_away_and_the_first_again_when_it_is_back() -> None:
    store = MemoryStore()
    store.put("event", 50)
    first, second = bridge(), bridge()
    await first.start()
    await first.stop()
    async with second:
        uplink = uplink_for(store, first, second, fail_back_seconds=1.0)
        async with running(uplink.run()):
            await until(lambda: store.empty)
            assert uplink.status().link.broker == second.url
            await first.start()
            await until(lambda: uplink.status().link.broker == first.url, 20.0)
            await until(lambda: uplink.status().link.state == "connected", 20.0)
            store.put("event", 50)
            uplink.notify(["event"])
            await until(lambda: store.empty)
        assert committed(first, "event") == list(range(51, 101))
    await first.stop()


@pytest.mark.parametrize("without", [Script(puback=0x10), Script(is_bridge=True, withhold_acks=True)])
async def test_a_broker_behind_which_no_bridge_answers_is_left_for_the_next(
    monkeypatch: pytest.MonkeyPatch, without: Script
) -> None:
    monkeypatch.setattr("gateway.uplink.unanswered.NOBODY_SECONDS", 1.0)
    monkeypatch.setattr("gateway.uplink.unanswered.SILENT_SECONDS", 1.0)
    store = MemoryStore()
    store.put("event", 50)
    async with ScriptedBroker(without) as first, bridge() as second:
        uplink = uplink_for(store, first, second, ack_timeout_seconds=0.2, fail_back_seconds=2.0)
        async with running(uplink.run()):
            await until(lambda: uplink.partition is Partition.DEGRADED)
            assert uplink.status().link.reason
            await until(lambda: store.empty)
            assert uplink.status().link.broker == second.url
            assert committed(second, "event") == list(range(1, 51))
            first.script.puback, first.script.is_bridge, first.script.withhold_acks = 0, True, False
            await until(lambda: uplink.status().link.broker == first.url, 20.0)
            store.put("event", 50)
            uplink.notify(["event"])
            await until(lambda: store.empty, 20.0)


async def test_without_another_broker_nothing_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.uplink.unanswered.NOBODY_SECONDS", 0.1)
    store = MemoryStore()
    store.put("event", 50)
    away = bridge()
    await away.start()
    await away.stop()
    async with ScriptedBroker(Script(puback=0x10)) as first:
        uplink = uplink_for(store, first, away)
        async with running(uplink.run()):
            await until(lambda: uplink.partition is Partition.DEGRADED)
            await asyncio.sleep(2.0)
            assert len(first.connects) == 1
            assert "nobody who takes records" in uplink.status().link.reason


# ---- configuration -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("broker", "word"),
    [
        ({"url": "mqtt://broker.example"}, "allow_plaintext"),
        ({"url": "mqtt://10.0.0.1:1883"}, "in the clear"),
        ({"url": "http://broker.example"}, "mqtts://"),
        ({"url": "mqtts://user:secret@broker.example"}, "password_file"),
        ({"url": "mqtts://broker.example:99999"}, "ort"),
        ({"url": "mqtts://broker.example/path"}, "after the port"),
        ({"url": "mqtts://broker.example", "ca_file": Path("/nowhere/ca.pem")}, "/nowhere/ca.pem"),
        ({"url": "mqtt://localhost", "password_file": Path("/nowhere/password")}, "/nowhere/password"),
        ({"url": "mqtt://localhost", "ca_file": Path("/nowhere/ca.pem")}, "no TLS"),
    ],
)
def test_a_broker_that_cannot_be_used_as_configured_is_refused_with_the_remedy(
    broker: dict[str, object], word: str
) -> None:
    with pytest.raises(ConfigError, match=word) as refusal:
        Uplink(Cloud(brokers=[Broker(**broker)]), "gw", "sluice", MemoryStore())  # type: ignore[arg-type]
    assert "secret" not in str(refusal.value)


def test_an_uplink_without_brokers_is_a_mistake_of_configuration() -> None:
    with pytest.raises(ConfigError, match="no broker"):
        Uplink(Cloud(), "gw", "sluice", MemoryStore())


async def test_the_login_comes_from_the_password_file(tmp_path: Path) -> None:
    secret = tmp_path / "password"
    secret.write_text("pass word\n")
    async with bridge() as broker:
        brokers = [Broker(url=broker.url, username="gw", password_file=secret)]
        async with running(Uplink(Cloud(brokers=brokers), "gw", "sluice", MemoryStore()).run()):
            await until(lambda: broker.connects)
        assert (broker.connects[0].username, broker.connects[0].password) == ("gw", b"pass word")


# ---- the mirror --------------------------------------------------------------------------------------


def events(count: int) -> Iterable[Event]:
    for number in range(count):
        yield Event(
            phase="new",
            event_id=f"e{number}",
            gateway="gw",
            pipeline="dock",
            source="dock",
            rule="intruder",
            label="person",
            score=0.9,
            peak_score=0.9,
            model=ModelRef(name="m", version="1.0.0"),
            at="2026-01-01T00:00:00.000Z",
            started_at="2026-01-01T00:00:00.000Z",
            captured_at_ns=number,
        )


@pytest.mark.parametrize(("mirrored", "expected"), [(True, 5), (False, 0)])
async def test_events_are_shown_on_the_clouds_broker_only_if_wished(mirrored: bool, expected: int) -> None:
    async with bridge() as broker:
        uplink = uplink_for(MemoryStore(), broker, publish_events=mirrored)
        async with running(uplink.run()):
            await until(lambda: uplink.status().link.state == "connected")
            for event in events(5):
                uplink.publish_event(event)
            if expected:
                await until(lambda: len(broker.payloads("event/dock")) == expected)
        shown = [json.loads(payload)["event_id"] for payload in broker.payloads("event/dock")]
        assert shown == [f"e{number}" for number in range(expected)]
