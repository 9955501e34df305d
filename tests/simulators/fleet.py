"""Many gateways at once: raw MQTT 3.1.1 on asyncio, so that two hundred of them cost little beside the bridge.

Each keeps what the bridge has not acknowledged, sends in a window, and goes back when the marks stand still; a
connection that is lost is made again after a while. Knobs: how many, how much, how large the batches and windows are.
"""

import asyncio
import json
import random
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import msgspec

from gateway.wire.batch import pack
from gateway.wire.messages import Record, RecordBatch, RecordClass, encode
from gateway.wire.topics import Address, filter_for, topic_for
from tests.simulators.samples import event, measure

_CONNACK, _PUBLISH, _PUBACK = 2, 3, 4
_RECORDED_NS = 1_700_000_000_000_000_000


@dataclass(frozen=True, slots=True)
class Load:
    """What each gateway has to send."""

    gateways: int
    records: int  # of each gateway
    batch_records: int = 100
    window: int = 4  # batches in flight
    record_class: RecordClass = "event"
    resend_seconds: float = 5.0


@dataclass(slots=True)
class Progress:
    """One gateway's state; `mark` is what the bridge has acknowledged."""

    name: str
    epoch: str
    batches: list[tuple[int, bytes]]  # the last number of each, and its payload
    mark: int = 0
    sent: int = 0  # batches
    moved_at: float = 0.0
    connects: int = 0
    resent: int = 0
    finished: asyncio.Event = field(default_factory=asyncio.Event)


def payloads(load: Load, name: str, epoch: str) -> Iterator[tuple[int, bytes]]:
    """Make the batches of one gateway, as a device packs them."""
    kind = "measure" if load.record_class == "measure" else "event"
    for first in range(1, load.records + 1, load.batch_records):
        last = min(first + load.batch_records - 1, load.records)
        records = [
            Record(
                seq=n, kind=kind, recorded_at_ns=1_700_000_000_000_000_000 + n, body=msgspec.Raw(_body(kind, name, n))
            )
            for n in range(first, last + 1)
        ]
        yield last, pack(RecordBatch(epoch=epoch, base=1, records=records)).payload


def _body(kind: str, name: str, number: int) -> bytes:
    return encode(measure()) if kind == "measure" else encode(event(f"{name}-{number:08}"))


class Fleet:
    """All of them. `marks` and `connects` are what they have seen."""

    def __init__(self, port: int, load: Load, *, seed: int = 1, prefix: str = "gw") -> None:
        self.load = load
        self._port = port
        self._chance = random.Random(seed)
        self._ack = load.record_class
        names = [f"{prefix}-{number:03}" for number in range(load.gateways)]
        epochs = [f"{number:016x}" for number in range(1, load.gateways + 1)]
        self.gateways = [
            Progress(name, epoch, list(payloads(load, name, epoch))) for name, epoch in zip(names, epochs, strict=True)
        ]
        self.connected_at: list[float] = []

    @property
    def waiting(self) -> int:
        """Records that are not acknowledged."""
        return sum(self.load.records - gateway.mark for gateway in self.gateways)

    async def drain(self, seconds: float) -> float:
        """Send everything until it is acknowledged; return how long that took, in seconds."""
        started = time.monotonic()
        async with asyncio.timeout(seconds), asyncio.TaskGroup() as tasks:
            for gateway in self.gateways:
                tasks.create_task(self._run(gateway), name=gateway.name)
        return time.monotonic() - started

    async def _run(self, gateway: Progress) -> None:
        delay = 0.2
        while not gateway.finished.is_set():
            try:
                await self._session(gateway)
            except (OSError, asyncio.IncompleteReadError):
                await asyncio.sleep(delay * self._chance.uniform(0.5, 1.5))
                delay = min(delay * 2, 5.0)

    async def _session(self, gateway: Progress) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        try:
            writer.write(_connect(f"fleet-{gateway.name}"))
            first, _ = await _packet(reader)
            if first >> 4 != _CONNACK:
                raise ConnectionError("no CONNACK")
            gateway.connects += 1
            self.connected_at.append(time.monotonic())
            writer.write(_subscribe(filter_for("ack", gateway=gateway.name)))
            gateway.sent = next((at for at, (last, _) in enumerate(gateway.batches) if last > gateway.mark), 0)
            gateway.moved_at = time.monotonic()
            async with asyncio.TaskGroup() as tasks:
                sender = tasks.create_task(self._send(gateway, writer))
                try:
                    await self._receive(gateway, reader, writer)
                finally:
                    sender.cancel()
        except* (OSError, asyncio.IncompleteReadError) as group:
            raise ConnectionError("lost") from group
        finally:
            writer.close()

    async def _send(self, gateway: Progress, writer: asyncio.StreamWriter) -> None:
        topic = topic_for(Address(gateway.name, "records", self.load.record_class)).encode()
        while not gateway.finished.is_set():
            acknowledged = sum(1 for last, _ in gateway.batches[: gateway.sent] if last <= gateway.mark)
            if gateway.sent > acknowledged and time.monotonic() - gateway.moved_at > self.load.resend_seconds:
                gateway.resent += gateway.sent - acknowledged
                gateway.sent, gateway.moved_at = acknowledged, time.monotonic()
            while gateway.sent < len(gateway.batches) and gateway.sent - acknowledged < self.load.window:
                payload = gateway.batches[gateway.sent][1]
                gateway.sent += 1
                writer.write(_publish(topic, gateway.sent % 65535 + 1, payload))
            await writer.drain()
            await asyncio.sleep(0.02)

    async def _receive(self, gateway: Progress, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while not gateway.finished.is_set():
            first, body = await _packet(reader)
            if first >> 4 != _PUBLISH:
                continue
            (length,) = struct.unpack_from(">H", body)
            at = 2 + length
            if first >> 1 & 3:
                writer.write(bytes((_PUBACK << 4, 2)) + body[at : at + 2])
                at += 2
            if body[2 : 2 + length].decode().rpartition("/")[2] != self._ack:
                continue
            ack = json.loads(body[at:])
            if ack["epoch"] == gateway.epoch and ack["mark"] > gateway.mark:
                gateway.mark, gateway.moved_at = ack["mark"], time.monotonic()
                if gateway.mark >= self.load.records:
                    gateway.finished.set()


def _text(value: bytes) -> bytes:
    return struct.pack(">H", len(value)) + value


def _framed(first: int, body: bytes) -> bytes:
    length, size = len(body), bytearray()
    while True:
        length, digit = divmod(length, 128)
        size.append(digit | (0x80 if length else 0))
        if not length:
            return bytes((first,)) + bytes(size) + body


def _connect(client_id: str) -> bytes:
    return _framed(0x10, _text(b"MQTT") + bytes((4, 2)) + struct.pack(">H", 60) + _text(client_id.encode()))


def _subscribe(topic_filter: str) -> bytes:
    return _framed(0x82, struct.pack(">H", 1) + _text(topic_filter.encode()) + b"\x01")


def _publish(topic: bytes, packet_id: int, payload: bytes) -> bytes:
    return _framed(0x32, _text(topic) + struct.pack(">H", packet_id) + payload)


async def _packet(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    (first,) = await reader.readexactly(1)
    length = shift = 0
    while True:
        (digit,) = await reader.readexactly(1)
        length |= (digit & 0x7F) << shift
        shift += 7
        if not digit & 0x80:
            return first, await reader.readexactly(length)
