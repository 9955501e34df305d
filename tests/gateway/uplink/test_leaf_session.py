"""What leaf sensors publish while the gateway, or only its connection, is away: against mosquitto."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway.config import Broker
from gateway.uplink.announce import Announcer, Hold
from gateway.uplink.exchange import ConnectOptions, Ending, Outgoing, Terms
from gateway.uplink.link import MqttClient
from gateway.uplink.receipts import MOST_UNACKNOWLEDGED
from gateway.values import Done
from tests.gateway.uplink.mosquitto import Mosquitto
from tests.gateway.uplink.waiting import running, until
from tests.simulators.scripted_broker import PINGREQ, ScriptedBroker

pytestmark = pytest.mark.net


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Mosquitto]:
    broker = Mosquitto(tmp_path)
    broker.start()
    try:
        yield broker
    finally:
        broker.kill()


class Leaf:
    """Publishes, with QoS 1."""

    def __init__(self, broker: Mosquitto) -> None:
        self.client = MqttClient([Broker(url=broker.url)], ConnectOptions(client_id="leaf"), self)

    async def say(self, *payloads: bytes, topic: str = "leaf/a") -> None:
        await until(lambda: self.client.terms is not None)
        for payload in payloads:
            await self.client.publish(Outgoing(topic, payload))

    def link_up(self, terms: Terms) -> None: ...
    def link_down(self, ending: Ending) -> None: ...
    def parting(self) -> None: ...


class Gateway:
    """Listens as a gateway does, and says when it is done."""

    def __init__(
        self,
        broker: Mosquitto | ScriptedBroker,
        protocol: str = "5",
        *,
        topic: str = "leaf/+",
        seconds: int = 3600,
        keepalive: int = 30,
    ) -> None:
        settings = Broker(url=broker.url, protocol=protocol, keepalive_seconds=keepalive)  # type: ignore[arg-type]
        self.announcer = Announcer(settings, "gw", "sluice", session_expiry_seconds=seconds)
        self.heard: list[bytes] = []
        self.done: list[Done] = []
        self.announcer.subscribe_holding(topic, "boiler", self._take)

    def _take(self, _topic: str, payload: bytes, hold: Hold) -> None:
        self.heard.append(payload)
        self.done.append(hold("boiler"))

    async def up(self, connects: int = 1) -> None:
        """Wait until the broker has confirmed what it subscribes to: before that a message is nobody's."""
        client = self.announcer._client
        await until(lambda: client.connects >= connects and client.state.state == "connected", what="connected")


@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
async def test_what_was_published_meanwhile_and_what_was_not_done_comes_to_the_next_run(
    broker: Mosquitto, protocol: str
) -> None:
    leaf = Leaf(broker)
    async with running(leaf.client.run()):
        first = Gateway(broker, protocol)
        async with running(first.announcer.run()):
            await first.up()
            await leaf.say(b"0")
            await until(lambda: first.heard == [b"0"])
            await leaf.say(b"1", b"2", b"3")
            await until(lambda: len(first.heard) == 4)
            first.done[0]()
            first.done[2]()  # not acknowledged: what came before it is not done
            await asyncio.sleep(0)
        await leaf.say(b"4")
        second = Gateway(broker, protocol)
        async with running(second.announcer.run()):
            await until(lambda: len(second.heard) == 4)
            assert second.heard == [b"1", b"2", b"3", b"4"]
            for done in second.done:
                done()
            await until(lambda: second.announcer._receipts.unacknowledged == 0)  # type: ignore[union-attr]
        third = Gateway(broker, protocol)
        async with running(third.announcer.run()):
            await third.up()
            await leaf.say(b"5")
            await until(lambda: third.heard == [b"5"])


async def test_control_without_a_session_it_is_gone(broker: Mosquitto) -> None:
    leaf = Leaf(broker)
    async with running(leaf.client.run()):
        first = Gateway(broker, seconds=0)
        async with running(first.announcer.run()):
            await first.up()
            await leaf.say(b"1")
            await until(lambda: first.heard == [b"1"])
        await leaf.say(b"2")
        second = Gateway(broker, seconds=0)
        async with running(second.announcer.run()):
            await second.up()
            await leaf.say(b"3")
            await until(lambda: second.heard[-1:] == [b"3"])
            assert second.heard == [b"3"]


async def test_a_connection_made_anew_brings_what_is_in_hand_not_twice(broker: Mosquitto) -> None:
    leaf, gateway = Leaf(broker), Gateway(broker)
    async with running(leaf.client.run(), gateway.announcer.run()):
        await gateway.up()
        await leaf.say(b"1", b"1", b"2")
        await until(lambda: len(gateway.heard) == 3)
        gateway.announcer._client.reconnect("a test")
        await gateway.up(2)
        await leaf.say(b"3")
        await until(lambda: gateway.heard[-1] == b"3")
        assert gateway.heard == [b"1", b"1", b"2", b"3"]
        for done in gateway.done:
            done()
        await until(lambda: gateway.announcer._receipts.unacknowledged == 0)  # type: ignore[union-attr]
    after = Gateway(broker)
    async with running(leaf.client.run(), after.announcer.run()):
        await after.up()
        await leaf.say(b"4")
        await until(lambda: after.heard == [b"4"])


async def test_a_topic_that_is_not_configured_any_more_is_taken_back(broker: Mosquitto) -> None:
    leaf, before = Leaf(broker), Gateway(broker, topic="leaf/old")
    async with running(leaf.client.run()):
        async with running(before.announcer.run()):
            await before.up()
            await leaf.say(b"0", topic="leaf/old")
            await until(lambda: before.heard == [b"0"])
            before.done[0]()
        await leaf.say(b"1", topic="leaf/old")
        after = Gateway(broker, topic="leaf/new")
        async with running(after.announcer.run()):
            await until(lambda: after.announcer._client._subscriptions.strays == {"leaf/old"})
            await after.up()
            await leaf.say(b"2", topic="leaf/new")
            await until(lambda: after.heard == [b"2"])
            after.done[0]()
            await until(lambda: after.announcer._receipts.unacknowledged == 0)  # type: ignore[union-attr]


async def test_of_a_broker_that_hands_over_all_it_has_no_more_is_read_than_is_dealt_with() -> None:
    """As mosquitto 2.0 does with a gateway that is slower than its leaves: what is not read is not lost."""
    payloads = [b"%06d" % number + bytes(500) for number in range(30_000)]
    async with ScriptedBroker() as broker:
        gateway = Gateway(broker, keepalive=5)
        async with running(gateway.announcer.run()):
            await gateway.up()
            await until(lambda: broker.subscriptions)
            for payload in payloads:
                broker.send("leaf/a", payload, qos=1)
            await until(lambda: len(gateway.heard) >= MOST_UNACKNOWLEDGED)
            pings = broker.packets.count(PINGREQ)
            # Longer than the broker may be silent: it is heard of no more, and the connection is kept.
            await until(lambda: broker.packets.count(PINGREQ) >= pings + 2, 40.0)
            assert len(gateway.heard) < 2 * MOST_UNACKNOWLEDGED
            while len(gateway.heard) < len(payloads):
                done, gateway.done = gateway.done, []
                for each in done:
                    each()
                await until(lambda: gateway.done or len(gateway.heard) == len(payloads), 20.0)
            assert gateway.heard == payloads
            assert gateway.announcer._client.connects == 1
