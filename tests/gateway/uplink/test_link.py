import asyncio
import threading

import paho.mqtt.client as paho
import pytest
from paho.mqtt.enums import MQTTErrorCode
from structlog.testing import capture_logs

from gateway.config import Broker
from gateway.uplink.exchange import ConnectionLostError, ConnectOptions, Ending, Incoming, Outgoing, Terms
from gateway.uplink.link import MqttClient
from tests.gateway.uplink.waiting import running, until
from tests.simulators.scripted_broker import Script, ScriptedBroker


class Owner:
    def __init__(self) -> None:
        self.ups: list[Terms] = []
        self.downs: list[Ending] = []

    def link_up(self, terms: Terms) -> None:
        self.ups.append(terms)

    def link_down(self, ending: Ending) -> None:
        self.downs.append(ending)

    def parting(self) -> None:
        return


def client_for(owner: Owner, *brokers: ScriptedBroker) -> MqttClient:
    given = [Broker(url=broker.url) for broker in brokers]
    return MqttClient(given, ConnectOptions("one"), owner, draw=lambda: 0.1)


async def test_subscriptions_are_made_again_after_every_connect() -> None:
    owner, heard = Owner(), list[Incoming]()
    async with ScriptedBroker() as broker:
        client = client_for(owner, broker)
        client.subscribe("a/#", heard.append)
        async with running(client.run()):
            await until(lambda: owner.ups)
            broker.cut()
            await until(lambda: len(owner.ups) == 2 and len(broker.subscriptions) == 2)
            broker.send("a/b", b"1")
            await until(lambda: heard)
        assert heard == [Incoming("a/b", b"1", retained=False)]
        assert len(owner.downs) == 2  # the cut, and the end


async def test_a_refused_subscription_is_told() -> None:
    async with ScriptedBroker(Script(suback=0x87)) as broker:
        client = client_for(Owner(), broker)
        client.subscribe("a/#", lambda _: None)
        async with running(client.run()):
            await until(lambda: "subscription refused: a/#" in client.state.reason)


async def test_a_link_is_called_connected_only_once_the_subscriptions_are_granted() -> None:
    """Who publishes for us as soon as we say that we are there must be heard."""
    async with ScriptedBroker(Script(suback=None)) as broker:
        client = client_for(owner := Owner(), broker)
        client.subscribe("a/#", lambda _: None)
        async with running(client.run()):
            await until(lambda: owner.ups and broker.subscriptions)
            await client.publish(Outgoing("b", b"1"))
            assert (client.state.state, client.terms is not None) == ("connecting", True)
            assert "not granted the subscriptions" in client.state.reason
            broker.script.suback = 1
            broker.cut()
            await until(lambda: client.state.state == "connected" and not client.state.reason)


async def test_a_link_without_subscriptions_is_connected_as_soon_as_the_broker_says_so() -> None:
    async with ScriptedBroker(Script(suback=None)) as broker:
        client = client_for(owner := Owner(), broker)
        async with running(client.run()):
            await until(lambda: owner.ups)
            assert client.state.state == "connected"


async def test_publishing_without_a_connection_fails_at_once() -> None:
    async with ScriptedBroker() as broker:
        with pytest.raises(ConnectionLostError):
            await client_for(Owner(), broker).publish(Outgoing("a", b"1"))


async def test_a_handler_that_fails_does_not_take_the_next_message_with_it() -> None:
    heard: list[bytes] = []

    def take(message: Incoming) -> None:
        if message.payload == b"bad":
            raise ValueError("a bug")
        heard.append(message.payload)

    async with ScriptedBroker() as broker:
        client = client_for(Owner(), broker)
        client.subscribe("#", take)
        complaints: list[object] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context["exception"]))
        async with running(client.run()):
            await until(lambda: broker.subscriptions)
            broker.send("a", b"bad")
            broker.send("a", b"good")
            await until(lambda: heard == [b"good"])
        assert [type(each) for each in complaints] == [ValueError]


async def test_a_network_thread_that_breaks_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    owner = Owner()
    broken = threading.Event()
    inner = paho.Client.loop_misc

    def loop_misc(client: paho.Client) -> MQTTErrorCode:
        if owner.ups and not broken.is_set():
            broken.set()
            raise RuntimeError("a bug in the library")
        return inner(client)

    monkeypatch.setattr(paho.Client, "loop_misc", loop_misc)
    async with ScriptedBroker() as broker:
        client = client_for(owner, broker)
        async with running(client.run()):
            await until(lambda: len(owner.ups) == 2)
        assert "a bug in the library" in owner.downs[0].reason


async def test_a_network_thread_that_hangs_is_left_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.uplink.link.WATCH_SECONDS", 0.3)
    owner = Owner()
    hang = threading.Event()
    inner = paho.Client.loop_misc

    victims: list[paho.Client] = []

    def loop_misc(client: paho.Client) -> MQTTErrorCode:
        if owner.ups and not victims:
            victims.append(client)
            hang.wait(30.0)
        return inner(client)

    monkeypatch.setattr(paho.Client, "loop_misc", loop_misc)
    async with ScriptedBroker() as broker:
        client = client_for(owner, broker)
        async with running(client.run()):
            await until(lambda: len(owner.ups) == 2, 20.0)
            hang.set()
            assert not (await client.publish(Outgoing("a", b"1"))).failed
        assert "hangs" in owner.downs[0].reason


async def test_why_a_broker_is_away_is_logged_when_it_begins_and_when_it_changes_not_at_each_try() -> None:
    owner = Owner()
    async with ScriptedBroker(Script(connack=0x88)) as broker:
        client = client_for(owner, broker)
        with capture_logs() as logs:
            async with running(client.run()):
                await until(lambda: len(broker.connect_times) >= 3, 30.0)
                broker.script.connack = 0x97
                await until(lambda: sum(each["event"] == "mqtt_not_connected" for each in logs) == 2, 30.0)
                broker.script.connack = 0
                await until(lambda: owner.ups, 30.0)
                broker.cut()
                await until(lambda: len(owner.ups) == 2, 30.0)
    told = [each["event"] for each in logs if each["event"] in ("mqtt_not_connected", "mqtt_connected")]
    away, back = "mqtt_not_connected", "mqtt_connected"
    assert told[:6] == [away, away, back, away, back, away][: len(told)]
    assert told.count(back) == 2


async def test_a_name_that_does_not_resolve_is_told_and_tried_again() -> None:
    client = MqttClient([Broker(url="mqtts://nowhere.invalid")], ConnectOptions("one"), Owner(), draw=lambda: 0.1)
    async with running(client.run()):
        await until(lambda: client.state.state == "waiting")
        assert client.state.reason
