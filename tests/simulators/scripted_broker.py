"""A fake MQTT broker that does what a script says: refuses, lies, stalls, sends nonsense. For MQTT 3.1.1 and 5.

It speaks raw TCP with a packet codec of its own, so that it can break every rule, and shares nothing with the
library under test. It can also play the cloud bridge: commit records, then acknowledge them.
"""

import asyncio
import os
import ssl
import struct
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self, cast

from gateway.wire.batch import unpack
from gateway.wire.messages import Ack, RecordClass, encode, record_digest
from gateway.wire.topics import Address, address_of, topic_for

CONNECT, CONNACK, PUBLISH, PUBACK, SUBSCRIBE, SUBACK, PINGREQ, PINGRESP, DISCONNECT = 1, 2, 3, 4, 8, 9, 12, 13, 14
PUBREC, PUBREL, AUTH = 5, 6, 15

SESSION_EXPIRY, ASSIGNED_CLIENT_ID, SERVER_KEEP_ALIVE, REASON_STRING = 0x11, 0x12, 0x13, 0x1F
SERVER_REFERENCE, RECEIVE_MAXIMUM, MAXIMUM_QOS, RETAIN_AVAILABLE, MAXIMUM_PACKET = 0x1C, 0x21, 0x24, 0x25, 0x27
CONTENT_TYPE, USER_PROPERTY, EXPIRY, TOPIC_ALIAS = 0x03, 0x26, 0x02, 0x23

_BYTE = {0x01, 0x17, 0x19, 0x24, 0x25, 0x28, 0x29, 0x2A}
_TWO = {0x13, 0x21, 0x22, 0x23}
_FOUR = {0x02, 0x11, 0x18, 0x27}
_VARIABLE = {0x0B}
_PAIR = {0x26}

Property = tuple[int, object]


# ---- codec -------------------------------------------------------------------------------------------


def length_of(value: int) -> bytes:
    """Encode a variable byte integer."""
    out = bytearray()
    while True:
        value, digit = divmod(value, 128)
        out.append(digit | (0x80 if value else 0))
        if not value:
            return bytes(out)


def string(value: str | bytes) -> bytes:
    """Encode a string with its length."""
    raw = value.encode() if isinstance(value, str) else value
    return struct.pack("!H", len(raw)) + raw


def properties_of(given: list[Property]) -> bytes:
    """Encode MQTT 5 properties with their length."""
    out = bytearray()
    for key, value in given:
        out.append(key)
        if key in _BYTE:
            out += struct.pack("!B", value)
        elif key in _TWO:
            out += struct.pack("!H", value)
        elif key in _FOUR:
            out += struct.pack("!I", value)
        elif key in _PAIR:
            name, text = cast("tuple[str, str]", value)
            out += string(name) + string(text)
        else:
            out += string(cast(str, value))
    return length_of(len(out)) + bytes(out)


def packet(kind: int, flags: int, body: bytes) -> bytes:
    """Put a fixed header before a body."""
    return bytes([kind << 4 | flags]) + length_of(len(body)) + body


@dataclass
class Reader:
    """Reads the fields of one packet."""

    data: bytes
    at: int = 0

    def take(self, count: int) -> bytes:
        piece = self.data[self.at : self.at + count]
        if len(piece) != count:
            raise ValueError("the packet is too short")
        self.at += count
        return piece

    def number(self, size: int) -> int:
        return int.from_bytes(self.take(size), "big")

    def variable(self) -> int:
        value, shift = 0, 0
        while True:
            digit = self.number(1)
            value |= (digit & 0x7F) << shift
            if digit < 0x80:
                return value
            shift += 7

    def string(self) -> str:
        return self.take(self.number(2)).decode()

    def properties(self) -> dict[int, list[object]]:
        end = self.variable()
        end += self.at
        found: dict[int, list[object]] = {}
        while self.at < end:
            key = self.number(1)
            value: object
            if key in _BYTE:
                value = self.number(1)
            elif key in _TWO:
                value = self.number(2)
            elif key in _FOUR:
                value = self.number(4)
            elif key in _VARIABLE:
                value = self.variable()
            elif key in _PAIR:
                value = (self.string(), self.string())
            else:
                value = self.take(self.number(2))
            found.setdefault(key, []).append(value)
        return found

    def rest(self) -> bytes:
        return self.data[self.at :]


# ---- what is recorded --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Connect:
    """A CONNECT as received."""

    level: int
    client_id: str
    clean: bool
    keepalive: int
    username: str | None
    password: bytes | None
    will_topic: str | None
    will_payload: bytes
    will_retain: bool
    properties: dict[int, list[object]]


@dataclass(frozen=True)
class Published:
    """A PUBLISH as received."""

    topic: str
    payload: bytes
    qos: int
    retain: bool
    dup: bool
    mid: int
    properties: dict[int, list[object]]


@dataclass
class Script:
    """The knobs. Change them at any time; each is looked at when its moment comes."""

    connack: int = 0  # reason code; of MQTT 3.1.1 when the client speaks that
    connack_properties: list[Property] = field(default_factory=list)
    silent: bool = False  # take the connection and never say anything
    close_at_once: bool = False
    puback: int = 0
    withhold_pubacks: bool = False
    lose_next_pubacks: int = 0
    refuse_above: int | None = None  # payload bytes; more is answered with 0x95
    cut_above: int | None = None  # payload bytes; more ends the connection without a word
    puback_unknown_mids: bool = False  # before the right one
    suback: int | None = 1  # None: a SUBSCRIBE is not answered
    answer_pings: bool = True
    close_after_publishes: int | None = None
    half_packet_after_publishes: int | None = None  # then silence
    disconnect_after_publishes: tuple[int, int, list[Property]] | None = None  # count, reason, properties
    on_subscribe_send: list[bytes] = field(default_factory=list)  # raw bytes after the SUBACK
    # As a bridge:
    is_bridge: bool = False
    lose_next_batches: int = 0  # PUBACK them, then forget them, as brokers do
    lose_next_acks: int = 0
    withhold_acks: bool = False
    tell_digests: bool = True


@dataclass
class _Peer:
    writer: asyncio.StreamWriter
    level: int = 5
    client_id: str = ""
    filters: list[str] = field(default_factory=list)
    publishes: int = 0
    silent: bool = False
    said_goodbye: bool = False


class ScriptedBroker:
    """The broker. Use as an asynchronous context manager; `url` is where it listens."""

    def __init__(self, script: Script | None = None, root: str = "sluice", tls: ssl.SSLContext | None = None) -> None:
        self.script = script or Script()
        self.root = root
        self.tls = tls
        self.port = 0
        self.connects: list[Connect] = []
        self.connect_times: list[float] = []
        self.published: list[Published] = []
        self.subscriptions: list[str] = []
        self.pings = 0
        self.goodbyes = 0
        self.packets: list[int] = []  # kinds received, in order
        self.retained: dict[str, bytes] = {}
        self.rows: dict[tuple[str, str, RecordClass, int], bytes] = {}  # as a bridge: what is committed
        self.digests: dict[tuple[str, str, RecordClass, int], str] = {}
        self.order: dict[RecordClass, list[int]] = {}  # as a bridge: in which order rows came, first time only
        self.duplicates = 0
        self.marks: dict[tuple[str, str, RecordClass], int] = {}
        self.bases: dict[tuple[str, str, RecordClass], int] = {}
        self.on_puback: Callable[[Published], None] = lambda _: None
        self._peers: list[_Peer] = []
        self._server: asyncio.Server | None = None

    @property
    def url(self) -> str:
        return f"{'mqtts' if self.tls else 'mqtt'}://127.0.0.1:{self.port}"

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port, ssl=self.tls)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Stop listening and cut all connections; the port stays reserved in `port` for `start`."""
        if self._server is not None:
            self._server.close()
            self._server = None
        self.cut()
        await asyncio.sleep(0)

    def cut(self) -> None:
        """Reset all connections."""
        for peer in self._peers:
            peer.writer.transport.abort()
        self._peers.clear()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    def send(
        self, topic: str | bytes, payload: bytes, *, retain: bool = False, qos: int = 0, dup: bool = False
    ) -> None:
        """Publish to all connections, whatever they subscribed to."""
        for peer in self._peers:
            self._write(peer, publish_packet(peer.level, topic, payload, retain=retain, qos=qos, dup=dup))

    def send_below_tls(self, data: bytes) -> None:
        """Send bytes to all connections as they are, past the encryption."""
        for peer in self._peers:
            os.write(peer.writer.get_extra_info("socket").fileno(), data)

    def send_raw(self, data: bytes) -> None:
        """Send bytes to all connections."""
        for peer in self._peers:
            self._write(peer, data)

    def payloads(self, topic_part: str) -> list[bytes]:
        """Return the payloads published on topics that contain a text."""
        return [each.payload for each in self.published if topic_part in each.topic]

    # ---- a connection --------------------------------------------------------------------------------

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peer = _Peer(writer)
        self._peers.append(peer)
        self.connect_times.append(asyncio.get_running_loop().time())
        try:
            if self.script.close_at_once:
                return
            while True:
                header = (await reader.readexactly(1))[0]
                length, shift = 0, 0
                while True:
                    digit = (await reader.readexactly(1))[0]
                    length |= (digit & 0x7F) << shift
                    shift += 7
                    if digit < 0x80:
                        break
                body = await reader.readexactly(length)
                self.packets.append(header >> 4)
                if not self._handle(peer, header >> 4, header & 0x0F, Reader(body)):
                    await writer.drain()
                    return
        except (asyncio.IncompleteReadError, ConnectionError, ssl.SSLError):
            return
        finally:
            if peer in self._peers:
                self._peers.remove(peer)
            with suppress(Exception):
                writer.close()

    def _handle(self, peer: _Peer, kind: int, flags: int, reader: Reader) -> bool:
        """Answer a packet; False closes the connection."""
        if kind == CONNECT:
            return self._connect(peer, reader)
        if kind == PUBLISH:
            return self._publish(peer, flags, reader)
        if kind == SUBSCRIBE:
            self._subscribe(peer, reader)
        elif kind == PINGREQ:
            self.pings += 1
            if self.script.answer_pings and not peer.silent:
                self._write(peer, packet(PINGRESP, 0, b""))
        elif kind == DISCONNECT:
            self.goodbyes += 1
            return False
        return True

    def _connect(self, peer: _Peer, reader: Reader) -> bool:
        reader.string()
        peer.level = reader.number(1)
        flags = reader.number(1)
        keepalive = reader.number(2)
        properties = reader.properties() if peer.level == 5 else {}
        client_id = reader.string()
        will_topic, will_payload = None, b""
        if flags & 0x04:
            if peer.level == 5:
                reader.properties()
            will_topic = reader.string()
            will_payload = reader.take(reader.number(2))
        username = reader.string() if flags & 0x80 else None
        password = reader.take(reader.number(2)) if flags & 0x40 else None
        peer.client_id = client_id
        self.connects.append(
            Connect(
                level=peer.level,
                client_id=client_id,
                clean=bool(flags & 0x02),
                keepalive=keepalive,
                username=username,
                password=password,
                will_topic=will_topic,
                will_payload=will_payload,
                will_retain=bool(flags & 0x20),
                properties=properties,
            )
        )
        if self.script.silent:
            peer.silent = True
            return True
        code = self.script.connack
        body = bytes([0, code])
        if peer.level == 5:
            body += properties_of(self.script.connack_properties)
        self._write(peer, packet(CONNACK, 0, body))
        return code == 0

    def _subscribe(self, peer: _Peer, reader: Reader) -> None:
        mid = reader.take(2)
        if peer.level == 5:
            reader.properties()
        filters = []
        while reader.at < len(reader.data):
            filters.append(reader.string())
            reader.number(1)
        peer.filters += filters
        self.subscriptions += filters
        if self.script.suback is not None:
            body = mid + (b"\0" if peer.level == 5 else b"") + bytes([self.script.suback] * len(filters))
            self._write(peer, packet(SUBACK, 0, body))
        for topic, payload in self.retained.items():
            if any(_matches(each, topic) for each in filters):
                self._write(peer, publish_packet(peer.level, topic, payload, retain=True))
        for raw in self.script.on_subscribe_send:
            self._write(peer, raw)

    def _publish(self, peer: _Peer, flags: int, reader: Reader) -> bool:
        topic = reader.string()
        qos = flags >> 1 & 3
        mid = reader.number(2) if qos else 0
        properties = reader.properties() if peer.level == 5 else {}
        message = Published(topic, reader.rest(), qos, bool(flags & 1), bool(flags & 8), mid, properties)
        self.published.append(message)
        peer.publishes += 1
        script = self.script
        if message.retain:
            self.retained[topic] = message.payload
        if script.half_packet_after_publishes is not None and peer.publishes > script.half_packet_after_publishes:
            self._write(peer, b"\x30\x40\x00\x05half")
            peer.silent = True
        if script.disconnect_after_publishes is not None:
            count, code, given = script.disconnect_after_publishes
            if peer.publishes > count:
                self._write(peer, packet(DISCONNECT, 0, bytes([code]) + properties_of(given)))
                return False
        if script.close_after_publishes is not None and peer.publishes > script.close_after_publishes:
            return False
        if script.cut_above is not None and len(message.payload) > script.cut_above:
            return False
        refused = script.refuse_above is not None and len(message.payload) > script.refuse_above
        if qos == 1:
            self._puback(peer, message, 0x95 if refused else script.puback)
        if script.is_bridge and "/records/" in topic and script.puback < 0x80 and not refused:
            self._commit(message)
        return True

    def _puback(self, peer: _Peer, message: Published, code: int) -> None:
        script = self.script
        if script.withhold_pubacks or peer.silent:
            return
        if script.lose_next_pubacks:
            script.lose_next_pubacks -= 1
            return
        if script.puback_unknown_mids:
            self._write(peer, packet(PUBACK, 0, struct.pack("!H", (message.mid + 20_000) % 65_536 or 1)))
        body = struct.pack("!H", message.mid)
        if peer.level == 5 and code:
            body += bytes([code]) + b"\0"
        self._write(peer, packet(PUBACK, 0, body))
        if code < 0x80:
            self.on_puback(message)

    def _commit(self, message: Published) -> None:
        """As a bridge: keep the rows, then acknowledge the contiguous high-water mark."""
        script = self.script
        if script.lose_next_batches:
            script.lose_next_batches -= 1
            return
        address = address_of(message.topic, self.root)
        name: RecordClass = address.name  # type: ignore[assignment]  # only classes are published there
        unpacked = unpack(message.payload)
        batch = unpacked.batch
        stream = (address.gateway, batch.epoch, name)
        for record, blob in zip(batch.records, unpacked.blobs or [b""] * len(batch.records), strict=True):
            key = (*stream, record.seq)
            if key in self.rows:
                self.duplicates += 1
            else:
                self.rows[key] = bytes(record.body) + bytes(blob)
                self.digests[key] = record_digest(record.kind, bytes(record.body), bytes(blob))
                self.order.setdefault(name, []).append(record.seq)
        mark = max(self.marks.get(stream, 0), batch.base - 1)
        while (*stream, mark + 1) in self.rows:
            mark += 1
        self.marks[stream] = mark
        if script.withhold_acks:
            return
        if script.lose_next_acks:
            script.lose_next_acks -= 1
            return
        self.acknowledge(address.gateway, batch.epoch, name, mark)

    def acknowledge(self, gateway: str, epoch: str, name: RecordClass, mark: int, conflicts: int = 0) -> None:
        """Publish an ack, retained."""
        topic = topic_for(Address(gateway, "ack", name), self.root)
        digest = self.digests.get((gateway, epoch, name, mark), "") if self.script.tell_digests else ""
        payload = encode(Ack(epoch=epoch, mark=mark, at="2026-01-01T00:00:00.000Z", digest=digest, conflicts=conflicts))
        self.retained[topic] = payload
        for peer in self._peers:
            if any(_matches(each, topic) for each in peer.filters):
                self._write(peer, publish_packet(peer.level, topic, payload))

    def _write(self, peer: _Peer, data: bytes) -> None:
        with suppress(ConnectionError, RuntimeError):
            peer.writer.write(data)


def publish_packet(
    level: int,
    topic: str | bytes,
    payload: bytes,
    *,
    retain: bool = False,
    qos: int = 0,
    dup: bool = False,
    properties: list[Property] | None = None,
) -> bytes:
    """Encode a PUBLISH."""
    body = string(topic)
    if qos:
        body += struct.pack("!H", 7)
    if level == 5:
        body += properties_of(properties or [])
    return packet(PUBLISH, dup << 3 | qos << 1 | retain, body + payload)


def _matches(topic_filter: str, topic: str) -> bool:
    wanted, given = topic_filter.split("/"), topic.split("/")
    if "#" in wanted:
        cut = wanted.index("#")
        wanted, given = wanted[:cut], given[:cut]
    return len(wanted) == len(given) and all(w in {"+", g} for w, g in zip(wanted, given, strict=True))
