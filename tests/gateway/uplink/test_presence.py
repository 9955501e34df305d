"""Two connections of one gateway to one broker: it is there as long as one of them is."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway.config import Broker
from gateway.uplink.exchange import ConnectOptions, Ending, Incoming, Terms
from gateway.uplink.link import MqttClient
from gateway.uplink.presence import GatewayPresence
from gateway.wire.messages import Availability, decode
from tests.gateway.uplink.mosquitto import Mosquitto
from tests.gateway.uplink.waiting import running, until
from tests.simulators.byte_relay import ByteRelay

pytestmark = pytest.mark.net


class Onlooker:
    """Somebody who looks at the topic."""

    def __init__(self, url: str) -> None:
        self.client = MqttClient([Broker(url=url)], ConnectOptions(client_id="onlooker"), self)
        self.states: list[str] = []
        self.client.subscribe("sluice/v1/gw/availability/gateway", self._see)

    def _see(self, message: Incoming) -> None:
        self.states.append(decode(message.payload, Availability).state)

    def link_up(self, terms: Terms) -> None:
        return

    def link_down(self, ending: Ending) -> None:
        return

    def parting(self) -> None:
        return


class Mute(GatewayPresence):
    """A presence that never contradicts."""

    def is_denied_by(self, payload: bytes) -> bool:
        return False


@pytest.fixture
def mosquitto(tmp_path: Path) -> Iterator[Mosquitto]:
    broker = Mosquitto(tmp_path)
    broker.start()
    yield broker
    broker.stop()


def client(url: str, name: str, kind: type[GatewayPresence] = GatewayPresence) -> MqttClient:
    presence = kind("gw", "sluice", "1.0", lambda: 1)
    return MqttClient([Broker(url=url)], ConnectOptions(client_id=name), Onlooker(url), presence=presence)


async def test_the_will_of_one_connection_is_contradicted_by_the_other(mosquitto: Mosquitto) -> None:
    onlooker = Onlooker(mosquitto.url)
    async with ByteRelay(mosquitto.port) as relay, running(onlooker.client.run()):
        local, cloud = client(mosquitto.url, "gw-local"), client(relay.url, "gw")
        async with running(local.run()):
            await until(lambda: onlooker.states == ["online"])
            async with running(cloud.run()):
                await until(lambda: onlooker.states == ["online"] * 2)
                relay.cut()
                await until(lambda: "offline" in onlooker.states and onlooker.states[-1] == "online")
                await until(lambda: cloud.connects == 2 and cloud.state.state == "connected")
            # Its farewell is contradicted too: the gateway is still there by the other connection.
            await until(lambda: "stopped" in onlooker.states and onlooker.states[-1] == "online")
        await until(lambda: onlooker.states[-1] == "stopped")


async def test_without_the_contradiction_the_farewell_of_one_would_stand(mosquitto: Mosquitto) -> None:
    """The control."""
    onlooker = Onlooker(mosquitto.url)
    async with running(onlooker.client.run(), client(mosquitto.url, "gw-local", Mute).run()):
        await until(lambda: onlooker.states == ["online"])
        async with running(client(mosquitto.url, "gw", Mute).run()):
            await until(lambda: len(onlooker.states) == 2)
        await until(lambda: onlooker.states[-1] == "stopped")
        # Long enough for the contradiction of the test above to come.
        probe = Onlooker(mosquitto.url)
        async with running(probe.client.run()):
            await until(lambda: probe.states)
        assert onlooker.states[-1] == probe.states[-1] == "stopped"


def test_what_cannot_be_read_is_contradicted() -> None:
    presence = GatewayPresence("gw", "sluice", "1.0", lambda: 1)
    assert presence.is_denied_by(b"offline")
    assert presence.is_denied_by(presence.offline())
    assert presence.is_denied_by(presence.stopped())
    assert not presence.is_denied_by(presence.online())
