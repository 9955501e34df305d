"""A certificate of an hour: waited for, shown, and changed for the next one without losing or repeating anything."""

import asyncio
import ssl
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from gateway.config import Broker, Cloud
from gateway.uplink.endpoint import CredentialsAwaitedError
from gateway.uplink.exchange import ConnectionLostError, ConnectOptions, Ending, Outgoing, Terms
from gateway.uplink.link import MqttClient
from gateway.uplink.uplink import Uplink
from gateway.wire.messages import RecordClass
from hil.loopback.children import free_port
from tests.gateway.uplink.mosquitto import Mosquitto
from tests.gateway.uplink.peer import Peer
from tests.gateway.uplink.waiting import running, until
from tests.simulators.authority import Authority
from tests.simulators.record_store import MemoryStore

GATEWAY = "dock-7"


@dataclass
class Hours:
    """Shows a certificate from a file (`gateway.uplink.endpoint.Access`). Knob: `file`; None: there is none yet."""

    ca_file: Path
    file: Path | None = None
    shown: list[Path] = field(default_factory=list)
    doubts: int = 0

    def awaited(self, broker: Broker) -> str:
        return "waiting for the identity: none yet" if broker.identity and self.file is None else ""

    def context(self, broker: Broker) -> ssl.SSLContext:
        if self.file is None:
            raise CredentialsAwaitedError(self.awaited(broker))
        self.shown.append(self.file)
        context = ssl.create_default_context(cafile=str(self.ca_file))
        context.load_cert_chain(self.file)
        return context

    def doubted(self, broker: Broker) -> None:
        assert broker.identity
        self.doubts += 1


@dataclass
class Site:
    """A broker with a listener for certificates, and one for the test itself."""

    broker: Mosquitto
    url: str
    authority: Authority
    hours: Hours

    def next_hour(self, ends_in: timedelta = timedelta(hours=1)) -> Path:
        number = len(list(self.authority.directory.glob("hour-*.pem")))
        file = self.authority.directory / f"hour-{number}.pem"
        self.authority.issue(file, host=GATEWAY, ends_in=ends_in)
        self.hours.file = file
        return file


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    authority = Authority(tmp_path / "authority", "fleet")
    server = tmp_path / "server.pem"
    authority.issue(server)
    port = free_port()
    broker = Mosquitto(
        tmp_path,
        f"listener {port} 127.0.0.1",
        f"cafile {authority.ca_file}",
        f"certfile {server}",
        f"keyfile {server}",
        "require_certificate true",
        "use_identity_as_username true",
        "use_username_as_clientid true",
        "user root",
    )
    broker.start()
    try:
        yield Site(broker, f"mqtts://127.0.0.1:{port}", authority, Hours(authority.ca_file))
    finally:
        broker.kill()


@dataclass
class Owner:
    """Notes connections."""

    ups: list[Terms] = field(default_factory=list)
    downs: list[Ending] = field(default_factory=list)

    def link_up(self, terms: Terms) -> None:
        self.ups.append(terms)

    def link_down(self, ending: Ending) -> None:
        self.downs.append(ending)

    def parting(self) -> None:
        return


def client_for(site: Site, owner: Owner) -> MqttClient:
    options = ConnectOptions("sluice-dock-7", identity_client_id=GATEWAY)
    broker = Broker(url=site.url, identity=True)
    return MqttClient([broker], options, owner, access=site.hours, draw=lambda: 0.0)


async def test_without_a_certificate_a_broker_is_not_tried_and_with_one_at_once(site: Site) -> None:
    owner = Owner()
    client = client_for(site, owner)
    with capture_logs() as logs:
        async with running(client.run()):
            await until(lambda: client.state.state == "waiting")
            assert client.state.reason == "waiting for the identity: none yet"
            for _ in range(20):  # woken for nothing, it goes on waiting
                client.renewed()
                await asyncio.sleep(0.01)
            assert site.hours.shown == []
            site.next_hour()
            client.renewed()
            await until(lambda: owner.ups, seconds=2.0)
            assert client.state.state == "connected"
    assert [entry["event"] for entry in logs].count("mqtt_waits_for_identity") == 1


async def test_another_broker_serves_while_there_is_no_certificate(site: Site) -> None:
    owner = Owner()
    brokers = [Broker(url=site.url, identity=True), Broker(url=site.broker.url)]
    client = MqttClient(brokers, ConnectOptions("a"), owner, access=site.hours, fail_back_seconds=0.1)
    async with running(client.run()):
        await until(lambda: owner.ups)
        assert client.broker == brokers[1]
        site.next_hour()
        await until(lambda: client.broker == brokers[0] and len(owner.ups) == 2, what="it goes back to the first")


async def test_a_broker_that_knows_us_by_our_certificate_gets_the_gateway_as_client_id(site: Site) -> None:
    site.next_hour()
    owner = Owner()
    async with running(client_for(site, owner).run()):
        await until(lambda: owner.ups)
        assert owner.ups[0].client_id == GATEWAY


async def _more(*heard: Counter[bytes]) -> None:
    goals = [sum(each.values()) + 20 for each in heard]
    await until(lambda: all(sum(each.values()) > goal for each, goal in zip(heard, goals, strict=True)))


async def _connects(owner: Owner, times: int) -> None:
    await until(lambda: len(owner.ups) == times, what=f"connection {times}")


async def _traffic(site: Site, *, renewals: int, gently: bool) -> tuple[Counter[bytes], Counter[bytes], Owner]:
    """Send both ways through some changes of the certificate; returns what was heard here and there."""
    site.next_hour()
    owner, peer_owner = Owner(), Owner()
    here, there = Counter[bytes](), Counter[bytes]()
    client = client_for(site, owner)
    client.subscribe("down", lambda message: here.update([message.payload]))
    peer = MqttClient([Broker(url=site.broker.url)], ConnectOptions("peer"), peer_owner)
    peer.subscribe("up", lambda message: there.update([message.payload]))

    async def send_down() -> None:
        for number in range(10**6):
            await peer.publish(Outgoing("down", b"%d" % number))
            await asyncio.sleep(0.002)

    async def send_up() -> None:
        for number in range(10**6):
            while True:
                try:
                    await client.publish(Outgoing("up", b"%d" % number))
                    break
                except ConnectionLostError:
                    await asyncio.sleep(0.002)

    async with running(client.run(), peer.run()):
        await until(lambda: owner.ups and peer_owner.ups)
        await asyncio.sleep(0.1)  # the subscriptions
        async with running(send_down(), send_up()):
            for number in range(renewals):
                await _more(here, there)
                site.next_hour()
                if gently:
                    client.renewed()
                else:
                    client.reconnect("as if the link had broken")
                await _connects(owner, number + 2)
            await _more(here, there)
    return here, there, owner


def _missing(heard: Counter[bytes]) -> list[int]:
    numbers = sorted(int(each) for each in heard)
    return sorted(set(range(numbers[0], numbers[-1] + 1)) - set(numbers))


async def test_over_renewals_nothing_is_lost_or_repeated_in_either_direction(site: Site) -> None:
    here, there, owner = await _traffic(site, renewals=4, gently=True)
    for heard in (here, there):
        assert _missing(heard) == []
        assert max(heard.values()) == 1
    assert [terms.session_present for terms in owner.ups] == [False, True, True, True, True]
    assert {ending.reason for ending in owner.downs[:-1]} == {"the certificate was renewed"}
    assert len(set(site.hours.shown)) == 5


async def test_a_connection_that_is_simply_made_anew_loses_what_came_meanwhile(site: Site) -> None:
    """The control: what the test above is there to find."""
    here, _, owner = await _traffic(site, renewals=4, gently=False)
    assert _missing(here)
    assert not any(terms.session_present for terms in owner.ups)


async def test_an_answer_that_does_not_come_does_not_keep_the_old_certificate_in_use(site: Site) -> None:
    site.next_hour()
    owner = Owner()
    client = client_for(site, owner)
    async with running(client.run()):
        await until(lambda: owner.ups)
        site.broker.pause()
        unanswered = client.publish(Outgoing("up", b"1"))
        await asyncio.sleep(0.1)
        client.renewed()
        await until(lambda: owner.downs, seconds=15.0)
        site.broker.resume()
        with pytest.raises(ConnectionLostError):
            await unanswered
        await until(lambda: len(owner.ups) == 2)


async def test_records_arrive_once_over_renewals(site: Site) -> None:
    site.next_hour()
    store = MemoryStore()
    peer = Peer(site.broker.url)
    uplink = Uplink(Cloud(brokers=[Broker(url=site.url, identity=True)]), GATEWAY, "sluice", store, access=site.hours)
    name: RecordClass = "event"
    async with running(peer.run(), uplink.run()):
        for _ in range(5):
            for _ in range(40):
                store.put(name)
                uplink.notify([name])
                await asyncio.sleep(0.001)
            site.next_hour()
            uplink.renewed()
        await until(lambda: peer.count(name) == 200, what="all records arrive")
        await until(lambda: store.empty)
    assert peer.order["event"] == sorted(peer.order["event"])


async def test_a_broker_that_does_not_believe_the_certificate_is_told_of(site: Site) -> None:
    site.next_hour(ends_in=timedelta(minutes=-1))
    owner = Owner()
    client = client_for(site, owner)
    async with running(client.run()):
        await until(lambda: site.hours.doubts)
        assert not owner.ups
        site.next_hour()
        client.renewed()
        await until(lambda: owner.ups)


async def test_a_broker_that_is_not_there_says_nothing_about_the_certificate(site: Site) -> None:
    """Or a fleet would ask for new certificates, all at once, because of a broker that is down."""
    site.next_hour()
    site.broker.kill()
    client = client_for(site, Owner())
    async with running(client.run()):
        await until(lambda: len(site.hours.shown) > 3)
        assert site.hours.doubts == 0
