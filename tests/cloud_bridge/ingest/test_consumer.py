import asyncio
import struct
import threading
from collections.abc import AsyncIterator

import pytest

from cloud_bridge.config import Broker, Ingest
from cloud_bridge.errors import BrokerError, ConfigError
from cloud_bridge.ingest.consumer import Consumer, Link
from cloud_bridge.ingest.incoming import Incoming
from cloud_bridge.metrics import Metrics
from tests.simulators.scripted_broker import (
    PUBACK,
    PUBLISH,
    RECEIVE_MAXIMUM,
    SESSION_EXPIRY,
    Reader,
    Script,
    ScriptedBroker,
    packet,
    properties_of,
    string,
)

TOPIC = "sluice/v1/dock/records/event"


class Broker5(ScriptedBroker):
    """Remembers for which packet ids it got a PUBACK, and sends with the ids it is told."""

    def __init__(self, script: Script | None = None) -> None:
        super().__init__(script)
        self.pubacks: list[int] = []

    def _handle(self, peer: object, kind: int, flags: int, reader: Reader) -> bool:
        if kind == PUBACK:
            self.pubacks.append(int.from_bytes(reader.data[:2], "big"))
        return super()._handle(peer, kind, flags, reader)  # type: ignore[arg-type]  # a private type

    def deliver(self, packet_id: int, topic: str | bytes = TOPIC, payload: bytes = b"x", qos: int = 1) -> None:
        mid = struct.pack("!H", packet_id) if qos else b""
        self.send_raw(packet(PUBLISH, qos << 1, string(topic) + mid + properties_of([]) + payload))


@pytest.fixture
async def broker() -> AsyncIterator[Broker5]:
    async with Broker5() as running:
        yield running


def consumer_of(broker: ScriptedBroker, settings: Ingest | None = None, **options: object) -> Consumer:
    link = Link("bridge", Broker(url=broker.url, **options), None, watches_fleet=True)  # type: ignore[arg-type]  # fields
    return Consumer(link, settings or Ingest(), Metrics())


async def until(condition: object, seconds: float = 8.0) -> None:
    deadline = asyncio.get_running_loop().time() + seconds
    while not condition():  # type: ignore[operator]  # a function
        assert asyncio.get_running_loop().time() < deadline
        await asyncio.sleep(0.01)


async def gathered(consumer: Consumer, count: int) -> list[Incoming]:
    found: list[Incoming] = []
    while len(found) < count:
        more = await asyncio.to_thread(consumer.gather, count, 10**6, 5.0)
        assert more, f"only {len(found)} messages came"
        found += more
    return found


async def stopped(consumer: Consumer) -> None:
    await asyncio.to_thread(consumer.stop)


async def test_it_asks_for_a_session_that_lasts_and_for_no_more_than_it_can_hold(broker: Broker5) -> None:
    consumer = consumer_of(broker, Ingest(receive_maximum=17, session_expiry_seconds=60))
    consumer.start()
    await until(lambda: len(broker.subscriptions) == 3)
    (connect,) = broker.connects
    assert not connect.clean
    assert connect.properties[RECEIVE_MAXIMUM] == [17]
    assert connect.properties[SESSION_EXPIRY] == [60]
    assert broker.subscriptions == [
        "$share/bridge/sluice/v1/+/records/+",
        "sluice/v1/+/availability/+",
        "sluice/v1/+/status/+",
    ]
    await stopped(consumer)
    await until(lambda: broker.goodbyes == 1)


async def test_a_message_is_acknowledged_only_when_told_and_in_the_order_told(broker: Broker5) -> None:
    consumer = consumer_of(broker)
    consumer.start()
    await until(lambda: broker.subscriptions)
    for packet_id in (7, 3, 5):
        broker.deliver(packet_id)
    messages = await gathered(consumer, 3)
    assert [message.packet_id for message in messages] == [7, 3, 5]
    assert broker.pubacks == []
    assert consumer.acknowledge(messages) == 3
    await until(lambda: broker.pubacks == [7, 3, 5])
    await stopped(consumer)


async def test_a_packet_id_of_an_earlier_connection_is_never_acknowledged(broker: Broker5) -> None:
    consumer = consumer_of(broker)
    consumer.start()
    await until(lambda: broker.subscriptions)
    broker.deliver(1, payload=b"first")
    old = await gathered(consumer, 1)
    broker.cut()
    await until(lambda: len(broker.subscriptions) == 6)
    broker.deliver(1, payload=b"another")
    new = await gathered(consumer, 1)
    assert consumer.acknowledge(old) == 0
    await asyncio.sleep(0.1)
    assert broker.pubacks == []
    assert consumer.acknowledge(new) == 1
    await until(lambda: broker.pubacks == [1])
    await stopped(consumer)


async def test_what_was_queued_when_the_connection_broke_comes_again_and_only_once(broker: Broker5) -> None:
    consumer = consumer_of(broker)
    consumer.start()
    await until(lambda: broker.subscriptions)
    broker.deliver(1, payload=b"old")
    await until(lambda: consumer._inbox.qsize() == 1)
    broker.cut()
    await until(lambda: len(broker.subscriptions) == 6)
    broker.deliver(1, payload=b"again")
    assert [message.payload for message in await gathered(consumer, 1)] == [b"again"]
    await stopped(consumer)


async def test_a_topic_that_is_no_text_is_handed_on_as_bytes(broker: Broker5) -> None:
    consumer = consumer_of(broker)
    consumer.start()
    await until(lambda: broker.subscriptions)
    broker.deliver(1, b"sluice/v1/d\xffck/records/event")
    broker.deliver(2)
    first, second = await gathered(consumer, 2)
    assert (first.topic, second.topic) == (b"sluice/v1/d\xffck/records/event", TOPIC)
    consumer.check()
    await stopped(consumer)


async def test_nothing_is_published_while_disconnected(broker: Broker5) -> None:
    consumer = consumer_of(broker)
    assert not consumer.publish("sluice/v1/dock/ack/event", b"{}")
    consumer.start()
    await until(lambda: consumer.connected)
    assert consumer.publish("sluice/v1/dock/ack/event", b"{}")
    await until(lambda: broker.published)
    assert (broker.published[0].retain, broker.published[0].qos) == (True, 1)
    await stopped(consumer)


async def test_a_broker_that_refuses_is_tried_again_with_rests(broker: Broker5) -> None:
    broker.script.connack = 0x87
    consumer = consumer_of(broker)
    consumer.start()
    await until(lambda: len(broker.connects) == 2)
    assert broker.connect_times[1] - broker.connect_times[0] >= 0.9
    assert not consumer.connected
    broker.script.connack = 0
    await until(lambda: consumer.connected)
    await stopped(consumer)


async def test_a_broker_that_ignores_the_receive_maximum_is_left(broker: Broker5) -> None:
    consumer = consumer_of(broker, Ingest(receive_maximum=3), keepalive_seconds=5)
    consumer.start()
    await until(lambda: broker.subscriptions)
    for packet_id in range(1, 6):
        broker.deliver(packet_id)
    await until(lambda: broker.goodbyes == 1)
    assert len(await gathered(consumer, 3)) == 3
    await stopped(consumer)


async def test_a_3_1_1_broker_gets_a_plain_subscription_and_a_lasting_session(broker: Broker5) -> None:
    consumer = consumer_of(broker, Ingest(subscription="plain"), protocol="3.1.1")
    consumer.start()
    await until(lambda: len(broker.subscriptions) == 3)
    assert (broker.connects[0].level, broker.connects[0].clean) == (4, False)
    assert broker.subscriptions[0] == "sluice/v1/+/records/+"
    await stopped(consumer)


def test_certificates_that_are_not_there_are_a_mistake_of_the_configuration() -> None:
    broker = Broker(url="mqtts://broker.example", ca_file="/nonexistent/ca.pem")  # type: ignore[arg-type]  # a path
    with pytest.raises(ConfigError, match="certificates"):
        Consumer(Link("bridge", broker, None, watches_fleet=True), Ingest(), Metrics())


async def test_a_broker_that_sends_more_than_it_may_is_left_and_asked_again_when_there_is_room(broker: Broker5) -> None:
    consumer = consumer_of(broker, Ingest(receive_maximum=2), keepalive_seconds=3)
    consumer.start()
    await until(lambda: len(broker.subscriptions) == 3)
    for packet_id in (1, 2, 3):
        broker.deliver(packet_id)
    await until(lambda: not consumer.connected)
    await gathered(consumer, 2)
    await until(lambda: _connected_again(consumer))
    assert len(broker.connects) == 2
    broker.deliver(1)
    (again,) = await gathered(consumer, 1)
    assert again.connection == consumer.connection
    await stopped(consumer)


def _connected_again(consumer: Consumer) -> bool:
    consumer.check()  # as the worker does on each of its rounds
    return consumer.connected


async def test_a_network_thread_that_an_error_has_ended_is_told(broker: Broker5) -> None:
    consumer = consumer_of(broker)
    consumer.check()  # the control: nothing has begun
    ended = threading.Thread(target=int)
    ended.start()
    ended.join()
    consumer._network = ended
    with pytest.raises(BrokerError, match="has died"):
        consumer.check()
