"""What is shown to people and programs: events, status, measures, waiting for a broker in bounded memory.

Nothing here needs to be durable: every event is in the outbox too.
"""

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Final, Protocol

import structlog

from gateway.threads import Worker
from gateway.uplink.client import Publication
from gateway.uplink.exchange import ConnectionLostError, Outgoing
from gateway.uplink.link import MqttClient
from gateway.wire.messages import Event, Measure, PipelineStatus, encode
from gateway.wire.topics import Address, Channel, topic_for

log = structlog.get_logger()

KEEP_EVENTS: Final = 1000
KEEP_MEASURES: Final = 100
UNANSWERED_SECONDS: Final = 30.0
HELD_SECONDS: Final = 1.0
"""What waits for a budget or a window is looked at again so often."""


class TelemetryGate(Protocol):
    """Who says whether something may be shown at the cost of the link."""

    def telemetry_waits(self) -> bool:
        """Tell whether nothing may be shown now."""
        ...

    def admit_telemetry(self, message: Outgoing) -> bool:
        """Set aside what a message takes; may wait for the disk. False: it must wait."""
        ...


@dataclass(frozen=True, slots=True)
class Item:
    """A message that stands on the bulletin."""

    serial: int
    message: Outgoing


@dataclass(slots=True)
class BulletinDrops:
    """Messages given up, by channel: too many while the broker was away, or refused by it."""

    events: int = 0
    measures: int = 0
    refused: int = 0


class Bulletin:
    """The messages that wait; safe to use from any thread."""

    def __init__(self, gateway_id: str, root: str) -> None:
        self._gateway_id = gateway_id
        self._root = root
        self._lock = threading.Lock()
        self._serial = 0
        self._events: deque[Item] = deque()
        self._measures: deque[Item] = deque()
        self._statuses: dict[str, Item] = {}
        self._due: dict[str, None] = {}  # pipelines whose status is to be published, in order
        self._in_flight: dict[int, Item] = {}
        self._tell: Callable[[], None] = _nobody
        self.drops = BulletinDrops()

    def listen(self, tell: Callable[[], None]) -> None:
        """Have someone told, from any thread, that there is something new."""
        self._tell = tell

    def put_event(self, event: Event) -> None:
        """Show an event; the oldest gives way when too many wait."""
        message = Outgoing(self._topic("event", event.pipeline), encode(event))
        with self._lock:
            self._events.append(self._item(message))
            while len(self._events) + len(self._in_flight) > KEEP_EVENTS and self._events:
                self._events.popleft()
                self.drops.events += 1
        self._tell()

    def put_status(self, status: PipelineStatus) -> None:
        """Show how a pipeline is, retained; only the latest counts."""
        message = Outgoing(self._topic("status", status.pipeline), encode(status), retain=True)
        with self._lock:
            self._statuses[status.pipeline] = self._item(message)
            self._due[status.pipeline] = None
        self._tell()

    def put_measure(self, measure: Measure) -> None:
        """Show a measure, once and without guarantee."""
        message = Outgoing(self._topic("measure", measure.pipeline), encode(measure), qos=0)
        with self._lock:
            self._measures.append(self._item(message))
            if len(self._measures) > KEEP_MEASURES:
                self._measures.popleft()
                self.drops.measures += 1
        self._tell()

    def take(self) -> Item | None:
        """Return what to publish next: events before status before measures."""
        with self._lock:
            if self._events:
                item = self._events.popleft()
                self._in_flight[item.serial] = item
                return item
            if self._due:
                pipeline = next(iter(self._due))
                del self._due[pipeline]
                return self._statuses[pipeline]
            return self._measures.popleft() if self._measures else None

    def put_back(self, item: Item) -> None:
        """An item that was taken cannot be published now: it is the next of its kind again."""
        _, _, _, channel, name = item.message.topic.split("/")
        with self._lock:
            if channel == "event":
                if self._in_flight.pop(item.serial, None) is not None:  # else it was recalled, and stands there already
                    self._events.appendleft(item)
            elif channel == "status":
                self._due = {name: None, **self._due}
            else:
                self._measures.appendleft(item)

    def done(self, item: Item) -> None:
        """The broker has answered for an item."""
        with self._lock:
            self._in_flight.pop(item.serial, None)

    def recall(self) -> None:
        """The connection is gone: what was not answered is due again, and so is the status of every pipeline."""
        with self._lock:
            self._events.extendleft(reversed(self._in_flight.values()))
            self._in_flight.clear()
            self._due = dict.fromkeys(self._statuses)

    def _topic(self, channel: Channel, pipeline: str) -> str:
        return topic_for(Address(self._gateway_id, channel, pipeline), self._root)

    def _item(self, message: Outgoing) -> Item:
        self._serial += 1
        return Item(self._serial, message)


class Pump:
    """Publishes what stands on a bulletin, while the link is up. Belongs to the event loop."""

    def __init__(
        self, bulletin: Bulletin, client: MqttClient, in_flight: int = 20, gate: TelemetryGate | None = None
    ) -> None:
        self._bulletin = bulletin
        self._gate = gate
        self._client = client
        self._limit = in_flight
        self._wake = asyncio.Event()
        self._is_up = False
        self._losses = 0  # connections lost
        self._unanswered: dict[int, float] = {}
        self._held = False

    def link_up(self) -> None:
        """Begin to publish."""
        self._is_up = True
        self._wake.set()

    def link_down(self) -> None:
        """Stop; what was not answered will be published again."""
        self._is_up = False
        self._losses += 1
        self._unanswered.clear()
        self._bulletin.recall()

    def flush(self) -> None:
        """Publish all that stands there, whatever the limit: the link is about to end."""
        while self._is_up and (item := self._bulletin.take()):
            if self._gate is not None and not self._gate.admit_telemetry(item.message):
                self._bulletin.put_back(item)
                return
            self._send(item)

    async def run(self) -> None:
        """Publish until cancelled."""
        loop = asyncio.get_running_loop()
        self._bulletin.listen(partial(_call, loop, self._wake.set))
        try:
            with Worker("uplink-pump") as worker:
                while True:
                    await self._wait()
                    self._wake.clear()
                    await self._send_waiting(worker)
        finally:
            self._bulletin.listen(_nobody)

    async def _send_waiting(self, worker: Worker) -> None:
        """Publish what stands there, as far as that is allowed now."""
        while self._is_up and len(self._unanswered) < self._limit and not self._waits():
            item = self._bulletin.take()
            if item is None:
                return
            losses = self._losses
            # On a thread: what is spent may have to be written down first.
            admitted = self._gate is None or await worker.do(self._gate.admit_telemetry, item.message)
            if admitted and losses == self._losses:
                self._send(item)
            else:
                self._bulletin.put_back(item)

    def _waits(self) -> bool:
        """Tell whether the link is kept for other things: a window is closed, or a budget is used up."""
        self._held = self._gate is not None and self._gate.telemetry_waits()
        return self._held

    async def _wait(self) -> None:
        patience = HELD_SECONDS if self._held else UNANSWERED_SECONDS / 2 if self._unanswered else None
        try:
            async with asyncio.timeout(patience):
                await self._wake.wait()
        except TimeoutError:
            oldest = min(self._unanswered.values(), default=time.monotonic())
            is_late = time.monotonic() - oldest > UNANSWERED_SECONDS
            if is_late and not self._client.has_held_back(UNANSWERED_SECONDS):
                self._client.reconnect("the broker leaves messages unanswered")

    def _send(self, item: Item) -> None:
        self._unanswered[item.serial] = time.monotonic()
        self._client.publish(item.message).add_done_callback(partial(self._answered, item))

    def _answered(self, item: Item, future: Publication) -> None:
        self._unanswered.pop(item.serial, None)
        self._wake.set()
        if future.cancelled():
            return
        error = future.exception()
        if isinstance(error, ConnectionLostError):
            return  # recalled when the link goes down
        self._bulletin.done(item)
        if error is not None or future.result().failed:
            if not self._bulletin.drops.refused:
                reason = str(error) if error is not None else future.result().reason
                log.warning("bulletin_refused", topic=item.message.topic, reason=reason)
            self._bulletin.drops.refused += 1


def _call(loop: asyncio.AbstractEventLoop, function: Callable[[], object]) -> None:
    try:
        loop.call_soon_threadsafe(function)
    except RuntimeError:  # the loop is closed: nobody publishes any more
        return


def _nobody() -> None:
    return
