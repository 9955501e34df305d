"""Many gateways on a real broker that take twins: each with its own connection, on one asyncio loop in a thread."""

import asyncio
import struct
import threading
from collections.abc import Sequence
from types import TracebackType
from typing import Self

from gateway.wire.messages import Availability, PipelineStatus, encode
from gateway.wire.topics import Address, filter_for, topic_for
from tests.simulators.fleet import _connect, _framed, _packet, _subscribe, _text
from tests.simulators.ota_device import AT, OtaDevice

_CONNACK, _PUBLISH, _PUBACK = 2, 3, 4


class OtaFleet:
    """All of them, connected on entry. `sent` counts what they have published. They do not come back when cut off."""

    def __init__(self, port: int, devices: Sequence[OtaDevice]) -> None:
        self.devices = list(devices)
        self.sent = 0
        self._port = port
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="ota-fleet", daemon=True)
        self._there = threading.Event()
        self._waiting = len(self.devices)
        self._done: asyncio.Event | None = None

    @property
    def received(self) -> int:
        """How many desired twins have come."""
        return sum(device.received for device in self.devices)

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._there.wait(60), "not all gateways are connected within 60 s"
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._done is not None:
            self._loop.call_soon_threadsafe(self._done.set)
        self._thread.join(20)

    def _run(self) -> None:
        self._loop.run_until_complete(self._all())
        self._loop.close()

    async def _all(self) -> None:
        self._done = asyncio.Event()
        async with asyncio.TaskGroup() as tasks:
            running = [tasks.create_task(self._one(device)) for device in self.devices]
            await self._done.wait()
            for task in running:
                task.cancel()

    async def _one(self, device: OtaDevice) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        try:
            writer.write(_connect(f"ota-{device.name}"))
            first, _ = await _packet(reader)
            assert first >> 4 == _CONNACK
            self._say(writer, device, "availability", "gateway", encode(Availability(state="online", at=AT)))
            self._status(writer, device)
            self._say(writer, device, "twin", "reported", device.report())
            writer.write(_subscribe(filter_for("twin", gateway=device.name, name="desired")))
            self._waiting -= 1
            if not self._waiting:
                self._there.set()
            while True:
                await self._receive(reader, writer, device)
        finally:
            writer.close()

    async def _receive(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, device: OtaDevice) -> None:
        first, body = await _packet(reader)
        if first >> 4 != _PUBLISH:
            return
        (length,) = struct.unpack_from(">H", body)
        at = 2 + length
        if first >> 1 & 3:
            writer.write(bytes((_PUBACK << 4, 2)) + body[at : at + 2])
            at += 2
        before = device.model
        for report in device.take(body[at:]):
            self._say(writer, device, "twin", "reported", report)
        if device.model != before:
            self._status(writer, device)
        await writer.drain()

    def _status(self, writer: asyncio.StreamWriter, device: OtaDevice) -> None:
        status = PipelineStatus(
            pipeline=device.pipeline, state="running", source_state="streaming", at=AT, model=device.model
        )
        self._say(writer, device, "status", device.pipeline, encode(status))

    def _say(self, writer: asyncio.StreamWriter, device: OtaDevice, channel: str, name: str, payload: bytes) -> None:
        self.sent += 1
        address = Address(device.name, channel, name)  # type: ignore[arg-type]  # channels of the contract
        topic = topic_for(address).encode()
        writer.write(_framed(0x33, _text(topic) + struct.pack(">H", self.sent % 65535 + 1) + payload))
