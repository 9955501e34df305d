"""Many gateways with the device's own code for updates: `OtaAgent`, journal, vault, verified repository over HTTPS.

What is light about them is the pipeline: a model of some kilobytes looks at one window again and again, in one thread
for all; one asyncio loop runs all agents and speaks to the broker, with the product's own pauses between connections.
"""

import asyncio
import contextlib
import random
import ssl
import struct
import threading
import time
from collections import Counter
from collections.abc import Generator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import numpy as np

from gateway.config import Trial
from gateway.errors import GatewayError
from gateway.inference.model import Model
from gateway.ota.ways_https import HttpsWay
from gateway.uplink.backoff import Backoff
from gateway.values import Window
from gateway.wire.messages import Availability, ModelRef, PipelineStatus, encode
from gateway.wire.topics import Address, Channel, filter_for, topic_for
from tests.gateway.ota.releases import release
from tests.gateway.ota.rig import NAME, Device
from tests.simulators.fleet import _connect, _framed, _packet, _subscribe, _text
from tests.simulators.published_repository import SAMPLES, WINDOW, PublishedRepository, golden, weights

AT: Final = "2026-01-31T12:00:00.000Z"
PIPELINE: Final = "motor"
ANSWER_SECONDS: Final = 0.25
"""Between two answers of one pipeline."""
SLOW_SECONDS: Final = 0.5
"""What a bad release is said to take for an answer where it is bad."""
STABLE_SECONDS: Final = 10.0
"""A connection of so long begins the pauses anew, as in `gateway.uplink.candidates`."""
_CONNACK, _PUBLISH, _PUBACK = 2, 3, 4

ONES: Final = Window("sensor", 1, 1_000, 2_000, WINDOW.rate_hz, np.ones((SAMPLES, 1), np.float32))


class CountingWay:
    """HTTPS to the registry; `asked` is when anything was asked for, in monotonic seconds."""

    counted_elsewhere = False

    def __init__(self, url: str, context: ssl.SSLContext) -> None:
        self.asked: list[float] = []
        self._way = HttpsWay(url, lambda: context, monotonic_ns=time.monotonic_ns)

    def read(self, path: str, offset: int, limit: int) -> Generator[bytes, None, None]:
        """See `Way.read`."""
        self.asked.append(time.monotonic())
        yield from self._way.read(path, offset, limit)

    def close(self) -> None:
        """See `Way.close`."""
        self._way.close()


class LightPipeline:
    """A running pipeline (`gateway.ota.bay.Host`) that answers when it is told to."""

    def __init__(self, device: "FleetDevice", model: Model) -> None:
        self.model: Model | None = model
        self.looking_seconds = 0.0
        self.left = ""
        self._device = device
        self._lock = threading.Lock()  # a model is not exchanged while it answers

    def swap(self, model: Model, timeout_seconds: float = 10.0) -> Model:
        """Let another model answer from now on."""
        with self._lock:
            old, self.model = self.model, model
        assert old is not None
        self._device.watch.swapped(model.ref, 0.0)
        return old

    def abandon(self, reason: str, error: GatewayError | None = None) -> None:
        """Remember why."""
        self.left = reason

    def answer(self) -> None:
        """Look at one window."""
        with self._lock:
            assert self.model is not None
            began = time.perf_counter()
            inference = self.model.infer(ONES)
            seconds = time.perf_counter() - began
        slow = inference.model.version in self._device.slow_versions
        took = SLOW_SECONDS if slow else seconds
        self._device.watch.answered(ONES, inference, took, took)


class FleetDevice(Device):
    """One gateway. Knob: `slow_versions` answer slowly here, as a release does that does not suit a device."""

    def __init__(self, directory: Path, published: Path, name: str, way: CountingWay, first: tuple[str, float]) -> None:
        version, bias = first
        release(directory / "releases", version, weights(bias), golden=golden(bias), spec=WINDOW)
        super().__init__(
            directory,
            PublishedRepository(published, directory / "state", way),
            trial=Trial(seconds=2.0, min_inferences=10),
        )
        self.name = name
        self.way = way
        self.slow_versions: frozenset[str] = frozenset()
        self.received = 0  # desired twins
        self.fleet: AgentFleet | None = None
        self._chance = random.Random(name)
        self._model = ModelRef(name=NAME, version=version)
        self.connects = 0
        self.light = self._begin()

    def _begin(self) -> LightPipeline:
        self.repository.grant(self.vault)
        light = LightPipeline(self, self.load(self.agent.run_begins(PIPELINE)))
        self.bay.host = light
        return light

    def draw(self) -> float:
        """Return a chance of one's own."""
        return self._chance.random()

    def status(self) -> bytes:
        """What the gateway says of its pipeline."""
        status = PipelineStatus(
            pipeline=PIPELINE, state="running", source_state="streaming", at=AT, model=self.bay.serving or self._model
        )
        return encode(status)

    def _report(self, payload: bytes) -> None:
        if self.fleet is not None:
            self.fleet.say(self, "twin", "reported", payload)
            self.fleet.say(self, "status", PIPELINE, self.status())


class AgentFleet:
    """All of them, connected on entry. `connected_at` is when anybody tried the broker; `sent` what was published.

    Knob: `backoff`, the pauses between two connections.
    """

    def __init__(self, port: int, devices: Sequence[FleetDevice], backoff: Backoff | None = None) -> None:
        self.devices = list(devices)
        self.sent = 0
        self.connected_at: list[float] = []
        self._backoff = backoff or Backoff()
        self._port = port
        self._loop = asyncio.new_event_loop()
        self._outgoing: dict[str, asyncio.Queue[bytes]] = {}
        self._stopped = threading.Event()
        self._done = asyncio.Event()
        self._threads = [
            threading.Thread(target=self._speak, name="fleet-mqtt", daemon=True),
            threading.Thread(target=self._answer, name="fleet-infer", daemon=True),
        ]

    @property
    def received(self) -> int:
        """How many desired twins have come."""
        return sum(device.received for device in self.devices)

    @property
    def online(self) -> int:
        """How many are connected."""
        return len(self._outgoing)

    def asked(self, since: float, until: float = float("inf")) -> list[float]:
        """Return when the registry was asked for anything, by anybody, in rising order."""
        return sorted(at for device in self.devices for at in device.way.asked if since <= at <= until)

    def running(self, version: str) -> list[FleetDevice]:
        """Return the devices that answer with a release."""
        return [device for device in self.devices if device.serving == version]

    def __enter__(self) -> Self:
        for device in self.devices:
            device.fleet = self
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopped.set()
        for device in self.devices:
            device.agent.stop()
        self._loop.call_soon_threadsafe(self._done.set)
        for thread in self._threads:
            thread.join(30)
        for device in self.devices:
            device.stop()
            device.way.close()

    def say(self, device: FleetDevice, channel: Channel, name: str, payload: bytes) -> None:
        """Publish, if the device is connected; from any thread."""
        packet = self._packet(device, channel, name, payload)
        queue = self._outgoing.get(device.name)
        if queue is not None and not self._stopped.is_set():
            self._loop.call_soon_threadsafe(queue.put_nowait, packet)

    # ---- pipelines ----------------------------------------------------------------------------------

    def _answer(self) -> None:
        while not self._stopped.is_set():
            began = time.monotonic()
            for device in self.devices:
                if self._stopped.is_set():
                    return
                device.light.answer()
            self._stopped.wait(max(0.0, ANSWER_SECONDS - (time.monotonic() - began)))

    # ---- the broker ---------------------------------------------------------------------------------

    def _speak(self) -> None:
        self._loop.run_until_complete(self._all())
        self._loop.close()

    async def _all(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            running = [tasks.create_task(self._keep_connected(device)) for device in self.devices]
            running += [tasks.create_task(device.agent.run()) for device in self.devices]
            await self._done.wait()
            for task in running:
                task.cancel()

    async def _keep_connected(self, device: FleetDevice) -> None:
        failures = 0
        while True:
            began = time.monotonic()
            self.connected_at.append(began)
            with contextlib.suppress(OSError, asyncio.IncompleteReadError):
                await self._connected(device)
            self._outgoing.pop(device.name, None)
            failures = 1 if time.monotonic() - began >= STABLE_SECONDS else failures + 1
            await asyncio.sleep(self._backoff.delay("unreachable", failures, device.draw()))

    async def _connected(self, device: FleetDevice) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        try:
            writer.write(_connect(f"agent-{device.name}"))
            first, _ = await _packet(reader)
            if first >> 4 != _CONNACK:
                raise ConnectionError("no CONNACK")
            queue = self._outgoing[device.name] = asyncio.Queue[bytes]()
            writer.write(
                self._packet(device, "availability", "gateway", encode(Availability(state="online", at=AT)))
                + self._packet(device, "status", PIPELINE, device.status())
                + _subscribe(filter_for("twin", gateway=device.name, name="desired"))
            )
            device.connects += 1  # the agent reports again
            async with asyncio.TaskGroup() as tasks:
                sender = tasks.create_task(self._send(queue, writer))
                try:
                    while True:
                        await self._receive(reader, writer, device)
                finally:
                    sender.cancel()
        except* (OSError, asyncio.IncompleteReadError) as group:
            raise ConnectionError("lost") from group
        finally:
            writer.close()

    @staticmethod
    async def _send(queue: "asyncio.Queue[bytes]", writer: asyncio.StreamWriter) -> None:
        while True:
            writer.write(await queue.get())
            await writer.drain()

    @staticmethod
    async def _receive(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, device: FleetDevice) -> None:
        first, body = await _packet(reader)
        if first >> 4 != _PUBLISH:
            return
        (length,) = struct.unpack_from(">H", body)
        at = 2 + length
        if first >> 1 & 3:
            writer.write(bytes((_PUBACK << 4, 2)) + body[at : at + 2])
            at += 2
        device.received += 1
        device.agent.take_desired(bytes(body[at:]))
        await writer.drain()

    def _packet(self, device: FleetDevice, channel: Channel, name: str, payload: bytes) -> bytes:
        self.sent += 1
        topic = topic_for(Address(device.name, channel, name)).encode()
        return _framed(0x33, _text(topic) + struct.pack(">H", self.sent % 65535 + 1) + payload)


def busiest_second(times: Sequence[float]) -> int:
    """Return how many of some moments lie within the busiest second."""
    return max(Counter(int(at) for at in times).values(), default=0)
