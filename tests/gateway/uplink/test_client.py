import asyncio
import socket
import struct
import subprocess
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from ssl import PROTOCOL_TLS_SERVER, SSLContext

import pytest

from gateway.config import Broker
from gateway.uplink.client import MqttConnection
from gateway.uplink.endpoint import FileAccess, endpoint_of
from gateway.uplink.exchange import (
    ConnectionLostError,
    ConnectionRefusedByBrokerError,
    ConnectOptions,
    Drops,
    Ending,
    Incoming,
    Outgoing,
)
from tests.gateway.uplink.waiting import until
from tests.simulators import scripted_broker as wire
from tests.simulators.scripted_broker import Script, ScriptedBroker

PROTOCOLS = pytest.mark.parametrize("protocol", ["5", "3.1.1"])


class Talk:
    """A connection under test, and what it received."""

    def __init__(
        self, broker: ScriptedBroker, protocol: str = "5", keepalive: int = 30, url: str = "", **options: object
    ) -> None:
        self.received: list[Incoming] = []
        self.drops = Drops()
        given = Broker(url=url or broker.url, protocol=protocol, keepalive_seconds=keepalive)  # type: ignore[arg-type]
        chosen = ConnectOptions(**{"client_id": "one", "connect_timeout_seconds": 2.0, **options})  # type: ignore[arg-type]
        self.connection = MqttConnection(
            given, endpoint_of(given), chosen, self.received.append, self.drops, access=FileAccess()
        )
        self.connection.start()

    async def end(self) -> Ending:
        async with asyncio.timeout(20):
            return await self.connection.closed

    async def close(self) -> None:
        self.connection.stop()
        await self.end()
        await until(lambda: not self.connection.thread_alive, what="the thread ends")


def outgoing(payload: bytes = b"x", **more: object) -> Outgoing:
    return Outgoing("sluice/v1/gw/records/event", payload, **more)  # type: ignore[arg-type]


@PROTOCOLS
async def test_a_message_is_published_with_qos_1_and_answered(protocol: str) -> None:
    async with ScriptedBroker() as broker:
        talk = Talk(broker, protocol)
        terms = await talk.connection.opened
        result = await talk.connection.publish(
            outgoing(
                b"hello", retain=True, content_type="application/json", user_properties={"a": "b"}, expiry_seconds=9
            )
        )
        assert not result.failed
        assert result.code == (0 if protocol == "5" else None)
        (message,) = broker.published
        assert (message.payload, message.qos, message.retain, message.dup) == (b"hello", 1, True, False)
        if protocol == "5":
            assert message.properties == {
                wire.CONTENT_TYPE: [b"application/json"],
                wire.USER_PROPERTY: [("a", "b")],
                wire.EXPIRY: [9],
            }
        assert terms.client_id == "one"
        await talk.close()
        await until(lambda: broker.goodbyes == 1)


@PROTOCOLS
async def test_subscriptions_bring_messages(protocol: str) -> None:
    async with ScriptedBroker() as broker:
        broker.retained["a/b"] = b"kept"
        talk = Talk(broker, protocol)
        await talk.connection.opened
        assert await talk.connection.subscribe(["a/+", "c"]) == (1, 1)
        broker.send("c", b"fresh", qos=1, dup=True)
        await until(lambda: len(talk.received) == 2)
        assert talk.received == [Incoming("a/b", b"kept", True), Incoming("c", b"fresh", False)]
        await until(lambda: wire.PUBACK in broker.packets)
        await talk.close()


@pytest.mark.parametrize("code", [0x80, 0x81, 0x82, 0x84, 0x85, 0x86, 0x87, 0x8A, 0x8C, 0x90, 0x95, 0x9A, 0x9B])
async def test_a_refusal_that_needs_a_person_is_told_as_such(code: int) -> None:
    async with ScriptedBroker(Script(connack=code)) as broker:
        with pytest.raises(ConnectionRefusedByBrokerError) as refusal:
            await Talk(broker).connection.opened
        assert (refusal.value.ending.lane, refusal.value.ending.code) == ("refused", code)
        assert refusal.value.ending.reason


@pytest.mark.parametrize("code", [0x88, 0x89, 0x97, 0x9F])
async def test_a_busy_broker_is_told_from_a_refusal(code: int) -> None:
    async with ScriptedBroker(Script(connack=code)) as broker:
        with pytest.raises(ConnectionRefusedByBrokerError) as refusal:
            await Talk(broker).connection.opened
        assert (refusal.value.ending.lane, refusal.value.ending.code) == ("busy", code)


@pytest.mark.parametrize(
    ("code", "lane"), [(1, "refused"), (2, "refused"), (3, "busy"), (4, "refused"), (5, "refused")]
)
async def test_the_return_codes_of_mqtt_3_are_understood(code: int, lane: str) -> None:
    async with ScriptedBroker(Script(connack=code)) as broker:
        with pytest.raises(ConnectionRefusedByBrokerError) as refusal:
            await Talk(broker, "3.1.1").connection.opened
        assert refusal.value.ending.lane == lane
        assert len(broker.connects) == 1  # paho itself does not try again with something else


@pytest.mark.parametrize("code", [0x9C, 0x9D])
async def test_a_redirect_is_told_and_not_followed(code: int) -> None:
    reference: list[wire.Property] = [(wire.SERVER_REFERENCE, "elsewhere.example:1883")]
    async with ScriptedBroker(Script(connack=code, connack_properties=reference)) as broker:
        with pytest.raises(ConnectionRefusedByBrokerError) as refusal:
            await Talk(broker).connection.opened
        assert "elsewhere.example" in refusal.value.ending.reason
        assert "not followed" in refusal.value.ending.reason


@pytest.mark.parametrize(
    ("code", "lane"),
    [(0x8B, "busy"), (0x8E, "refused"), (0x93, "busy"), (0x97, "busy"), (0x9C, "refused"), (0x9D, "refused")],
)
async def test_a_disconnect_from_the_broker_carries_its_reason(code: int, lane: str) -> None:
    script = Script(disconnect_after_publishes=(0, code, [(wire.SERVER_REFERENCE, "other.example")]))
    async with ScriptedBroker(script) as broker:
        talk = Talk(broker)
        await talk.connection.opened
        with pytest.raises(ConnectionLostError):
            await talk.connection.publish(outgoing())
        ending = await talk.end()
        assert (ending.lane, ending.code) == (lane, code)


@pytest.mark.parametrize(
    ("code", "failed"), [(0x00, False), (0x10, False), (0x80, True), (0x87, True), (0x97, True), (0x99, True)]
)
async def test_the_reason_of_a_puback_is_the_result(code: int, failed: bool) -> None:
    async with ScriptedBroker(Script(puback=code)) as broker:
        talk = Talk(broker)
        await talk.connection.opened
        result = await talk.connection.publish(outgoing())
        assert (result.code, result.failed) == (code, failed)
        assert wire.PUBREL not in broker.packets
        await talk.close()


async def test_no_more_messages_are_under_way_than_the_server_allows() -> None:
    script = Script(connack_properties=[(wire.RECEIVE_MAXIMUM, 1)], withhold_pubacks=True)
    async with ScriptedBroker(script) as broker:
        talk = Talk(broker)
        assert (await talk.connection.opened).receive_maximum == 1
        waiting = [talk.connection.publish(outgoing(bytes([n]))) for n in range(3)]
        await until(lambda: broker.published)
        await asyncio.sleep(0.2)
        assert len(broker.published) == 1
        script.withhold_pubacks = False
        broker.send_raw(wire.packet(wire.PUBACK, 0, broker.published[0].mid.to_bytes(2, "big")))
        await asyncio.gather(*waiting)
        assert [message.payload for message in broker.published] == [b"\0", b"\1", b"\2"]
        await talk.close()


async def test_no_more_messages_are_handed_to_the_library_than_configured() -> None:
    async with ScriptedBroker(Script(withhold_pubacks=True)) as broker:
        talk = Talk(broker, in_flight=4)
        await talk.connection.opened
        waiting = [talk.connection.publish(outgoing()) for _ in range(50)]
        await until(lambda: len(broker.published) == 4)
        await asyncio.sleep(0.2)
        assert len(broker.published) == 4
        broker.cut()
        outcomes = await asyncio.gather(*waiting, return_exceptions=True)
        assert all(isinstance(outcome, ConnectionLostError) for outcome in outcomes)


async def test_a_packet_above_the_servers_limit_is_never_sent() -> None:
    async with ScriptedBroker(Script(connack_properties=[(wire.MAXIMUM_PACKET, 1024)])) as broker:
        talk = Talk(broker)
        await talk.connection.opened
        result = await talk.connection.publish(outgoing(bytes(1024)))
        assert (result.failed, result.code) == (True, 0x95)
        assert not (await talk.connection.publish(outgoing(bytes(900)))).failed
        assert [len(message.payload) for message in broker.published] == [900]
        await talk.close()


async def test_the_servers_own_terms_are_taken() -> None:
    granted: list[wire.Property] = [
        (wire.ASSIGNED_CLIENT_ID, "given"),
        (wire.SERVER_KEEP_ALIVE, 1),
        (wire.MAXIMUM_QOS, 0),
        (wire.RETAIN_AVAILABLE, 0),
    ]
    async with ScriptedBroker(Script(connack_properties=granted)) as broker:
        talk = Talk(broker, client_id="")
        terms = await talk.connection.opened
        assert (terms.client_id, terms.keepalive_seconds) == ("given", 1)
        await talk.connection.publish(outgoing(retain=True))
        await until(lambda: broker.published)  # QoS 0: written is all one knows
        assert (broker.published[0].qos, broker.published[0].retain) == (0, False)
        await until(lambda: broker.pings >= 2, what="pings at the server's interval, not ours of 30 s")
        assert not talk.connection.closed.done()
        await talk.close()


async def test_a_broker_that_stops_answering_pings_is_left_after_one_and_a_half_intervals() -> None:
    script = Script(connack_properties=[(wire.SERVER_KEEP_ALIVE, 2)], answer_pings=False)
    async with ScriptedBroker(script) as broker:
        talk = Talk(broker)
        await talk.connection.opened
        began = asyncio.get_running_loop().time()
        ending = await talk.end()
        assert asyncio.get_running_loop().time() - began < 2 * 1.5 + 1.5
        assert ending.lane == "unreachable"
        await until(lambda: not talk.connection.thread_alive)


@asynccontextmanager
async def thin_link(port: int, bytes_per_second: int) -> AsyncIterator[str]:
    """Stand before a broker and take what clients send at a low rate, with small buffers; 0 takes nothing any more."""
    tasks: set[asyncio.Task[None]] = set()

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, slow: bool) -> None:
        passed = 0
        with suppress(ConnectionError):
            while data := await reader.read(4096):
                writer.write(data)
                await writer.drain()
                passed += len(data)
                while slow and passed > 1000 and not bytes_per_second:
                    await asyncio.sleep(1.0)
                if slow and passed > 1000:
                    await asyncio.sleep(len(data) / bytes_per_second)
        writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        onward_reader, onward = await asyncio.open_connection("127.0.0.1", port)
        for coroutine in (pump(reader, onward, slow=True), pump(onward_reader, writer, slow=False)):
            tasks.add(asyncio.get_running_loop().create_task(coroutine))

    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
    listener.bind(("127.0.0.1", 0))
    server = await asyncio.start_server(serve, sock=listener, limit=8192)
    try:
        yield f"mqtt://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def published_over(bytes_per_second: int) -> Ending | None:
    """Publish one message of 1.2 MB to a broker that expects a ping every 4 s; None if it arrives.

    What the link holds itself, 60 kB, its TCP has answered already: that must pass within the 6 s of silence, with a
    few to spare on a busy machine.
    """
    async with (
        ScriptedBroker(Script(connack_properties=[(wire.SERVER_KEEP_ALIVE, 4)])) as broker,
        thin_link(broker.port, bytes_per_second) as url,
    ):
        talk = Talk(broker, url=url)
        await talk.connection.opened
        publication = talk.connection.publish(outgoing(bytes(1_200_000)))
        await until(lambda: publication.done() or talk.connection.closed.done(), 60.0)
        if talk.connection.closed.done():
            publication.exception()
            return talk.connection.closed.result()
        await talk.close()
        return None


async def test_a_large_message_may_take_longer_than_the_broker_may_be_silent() -> None:
    assert await published_over(100_000) is None


async def test_the_control_that_counts_only_what_it_hears_gives_it_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.uplink.client.LARGE_BYTES", 1 << 40)
    ending = await published_over(100_000)
    assert ending is not None


async def test_a_peer_that_takes_no_more_of_a_large_message_is_left() -> None:
    ending = await published_over(0)
    assert ending is not None
    assert ending.lane in ("unreachable", "busy")


async def test_given_up_in_the_middle_of_traffic_every_message_is_answered() -> None:
    """The network thread takes from the same queues meanwhile."""
    for _ in range(20):
        async with ScriptedBroker() as broker:
            talk = Talk(broker)
            await talk.connection.opened
            waiting = [talk.connection.publish(outgoing()) for _ in range(2000)]
            await asyncio.sleep(0)
            talk.connection.abandon(Ending("busy", "enough"))
            async with asyncio.timeout(10):
                await asyncio.wait(waiting)


async def test_half_a_packet_and_then_silence_is_a_dead_connection() -> None:
    granted: list[wire.Property] = [(wire.SERVER_KEEP_ALIVE, 2)]
    async with ScriptedBroker(Script(connack_properties=granted, half_packet_after_publishes=0)) as broker:
        talk = Talk(broker)
        await talk.connection.opened
        with pytest.raises(ConnectionLostError):
            await talk.connection.publish(outgoing())
        assert (await talk.end()).lane == "unreachable"


async def test_a_broker_that_takes_the_connection_and_says_nothing_is_given_up() -> None:
    async with ScriptedBroker(Script(silent=True)) as broker:
        talk = Talk(broker, connect_timeout_seconds=0.5)
        with pytest.raises(ConnectionRefusedByBrokerError):
            await talk.connection.opened
        assert (await talk.end()).lane == "unreachable"


@PROTOCOLS
async def test_a_packet_of_256_megabytes_is_not_gathered_in_memory(protocol: str) -> None:
    async with ScriptedBroker() as broker:
        talk = Talk(broker, protocol)
        await talk.connection.opened
        broker.send_raw(b"\x30\xff\xff\xff\x7f" + bytes(64))
        ending = await talk.end()
        assert "268435455" in ending.reason


@pytest.mark.parametrize(
    "garbage",
    [
        b"\x20\x02\x00\x00\x00",  # a second CONNACK, then noise
        b"\xf0\x00",  # AUTH out of nowhere
        b"\x00\x00",
        b"\x40\x01\x00",  # a PUBACK without a whole packet id
        b"\x30\x05\x00\x01a\x7f\x00",  # properties longer than the packet
        b"\x30\xff\xff\xff\xff\xff",  # a length of five bytes
        b"\x36\x06\x00\x01a\x00\x01\x00",  # QoS 3
        b"\x90\x03\x00\x01\x00",  # SUBACK for nothing
    ],
)
async def test_garbage_ends_the_connection_at_worst_and_never_the_program(garbage: bytes) -> None:
    async with ScriptedBroker(Script(connack_properties=[(wire.SERVER_KEEP_ALIVE, 2)], answer_pings=False)) as broker:
        talk = Talk(broker)
        await talk.connection.opened
        broker.send_raw(garbage)
        assert (await talk.end()).reason
        await until(lambda: not talk.connection.thread_alive)


async def test_topics_that_are_no_topics_are_counted_and_the_rest_arrives() -> None:
    async with ScriptedBroker() as broker:
        talk = Talk(broker)
        await talk.connection.opened
        broker.send(b"\xff\xfe/x", b"1")
        broker.send("", b"2")
        broker.send_raw(wire.publish_packet(5, "", b"3", properties=[(wire.TOPIC_ALIAS, 5)]))
        broker.send("a\0b", b"4")
        broker.send("good", b"5")
        await until(lambda: talk.received)
        assert talk.received == [Incoming("good", b"5", False)]
        assert talk.drops.bad_topic == 4
        await talk.close()


async def test_a_puback_for_a_message_never_sent_answers_nothing() -> None:
    async with ScriptedBroker(Script(puback_unknown_mids=True)) as broker:
        talk = Talk(broker)
        await talk.connection.opened
        assert not (await talk.connection.publish(outgoing())).failed
        await talk.close()


@PROTOCOLS
async def test_what_was_not_answered_is_lost_with_the_connection_and_never_sent_again(protocol: str) -> None:
    async with ScriptedBroker(Script(withhold_pubacks=True)) as broker:
        talk = Talk(broker, protocol)
        await talk.connection.opened
        waiting = talk.connection.publish(outgoing(b"once"))
        await until(lambda: broker.published)
        broker.cut()
        with pytest.raises(ConnectionLostError):
            await waiting
        await talk.end()
        with pytest.raises(ConnectionLostError):
            await talk.connection.publish(outgoing(b"never"))
        again = Talk(broker, protocol)
        await again.connection.opened
        await asyncio.sleep(0.2)
        assert [message.payload for message in broker.published] == [b"once"]
        await again.close()


async def test_messages_nobody_takes_are_dropped_and_counted() -> None:
    async with ScriptedBroker() as broker:
        talk = Talk(broker, max_waiting_messages=0)
        await talk.connection.opened
        broker.send("a", b"1")
        await until(lambda: talk.drops.overflow == 1)
        assert talk.received == []
        await talk.close()


async def test_a_hundred_connections_leave_no_thread_and_no_descriptor() -> None:
    def descriptors() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    async with ScriptedBroker() as broker:
        talk = Talk(broker)
        await talk.connection.opened
        await talk.close()
        threads, files = threading.active_count(), descriptors()
        for _ in range(100):
            talk = Talk(broker)
            await talk.connection.opened
            await talk.close()
        assert threading.active_count() <= threads
        await until(lambda: descriptors() <= files + 4, what="descriptors are given back")


async def test_a_port_where_nobody_listens_is_told_at_once_and_asked_again_soon() -> None:
    broker = ScriptedBroker()
    await broker.start()
    await broker.stop()
    with pytest.raises(ConnectionRefusedByBrokerError) as refusal:
        await Talk(broker).connection.opened
    assert refusal.value.ending.lane == "unreachable"  # `busy` waits for up to half a minute after a long outage
    assert "refused" in refusal.value.ending.reason.lower()


@pytest.mark.parametrize(
    ("says", "resets", "lane"),
    [(b"", False, "unreachable"), (b"", True, "unreachable"), (b"\x20", False, "busy")],
)
async def test_whoever_ends_a_connection_without_a_word_has_no_broker_behind_it(
    says: bytes, resets: bool, lane: str
) -> None:
    """A balancer or a forwarded port takes connections while the broker is away; a broker would have begun to speak."""

    async def end(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(says)
        await writer.drain()
        if resets:
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.close()

    server = await asyncio.start_server(end, "127.0.0.1", 0)
    async with server:
        url = f"mqtt://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        talk = Talk(ScriptedBroker(), url=url)
        with pytest.raises(ConnectionRefusedByBrokerError):
            await talk.connection.opened
        assert (await talk.end()).lane == lane


async def test_a_broker_that_ends_a_connection_it_has_answered_is_busy() -> None:
    async with ScriptedBroker() as broker:
        talk = Talk(broker)
        await talk.connection.opened
        broker.cut()
        assert (await talk.end()).lane == "busy"


# ---- TLS ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, Path]]:
    """Make self-signed certificates for a name."""
    directory = tmp_path_factory.mktemp("certificates")

    def make(name: str) -> tuple[Path, Path]:
        certificate, key = directory / f"{name}.pem", directory / f"{name}.key"
        kind = "IP" if name[0].isdigit() else "DNS"
        subprocess.run(
            f"openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 1 -subj /CN={name}"
            f" -keyout {key} -out {certificate} -addext subjectAltName={kind}:{name}".split(),
            check=True,
            capture_output=True,
        )
        return certificate, key

    return make


def tls_server(certificate: Path, key: Path) -> SSLContext:
    context = SSLContext(PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    return context


def secure(broker: ScriptedBroker, ca_file: Path | None) -> MqttConnection:
    given = Broker(url=broker.url, ca_file=ca_file)
    connection = MqttConnection(
        given, endpoint_of(given), ConnectOptions("one"), lambda _: None, Drops(), access=FileAccess()
    )
    connection.start()
    return connection


async def test_tls_works_with_a_certificate_for_the_host(certificates: Callable[[str], tuple[Path, Path]]) -> None:
    certificate, key = certificates("127.0.0.1")
    async with ScriptedBroker(tls=tls_server(certificate, key)) as broker:
        connection = secure(broker, certificate)
        await connection.opened
        results = await asyncio.gather(*(connection.publish(outgoing(bytes(100_000))) for _ in range(30)))
        assert not any(result.failed for result in results)
        broker.send("big", bytes(500_000))
        connection.stop()
        await connection.closed


@pytest.mark.parametrize(("name", "trusted"), [("other.example", True), ("127.0.0.1", False)])
async def test_a_wrong_host_or_an_unknown_signer_is_refused(
    certificates: Callable[[str], tuple[Path, Path]], name: str, trusted: bool
) -> None:
    certificate, key = certificates(name)
    async with ScriptedBroker(tls=tls_server(certificate, key)) as broker:
        connection = secure(broker, certificate if trusted else None)
        with pytest.raises(ConnectionRefusedByBrokerError) as refusal:
            await connection.opened
        assert refusal.value.ending.lane == "refused"
        assert "certificate" in refusal.value.ending.reason.lower()
        assert broker.connects == []
