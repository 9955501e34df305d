"""The local broker: what people and programs on the site see, and what leaf sensors send."""

import asyncio
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

import structlog

from gateway.config import Broker
from gateway.uplink.bulletin import Bulletin, Pump
from gateway.uplink.endpoint import Access
from gateway.uplink.exchange import ConnectOptions, Ending, Incoming, Outgoing, Terms
from gateway.uplink.homeassistant import Discovery, without_retired
from gateway.uplink.link import LinkState, MqttClient
from gateway.uplink.presence import GatewayPresence
from gateway.uplink.receipts import RECEIVE_MAXIMUM, UNANNOUNCED_MAXIMUM, Receipts
from gateway.values import Done
from gateway.wire.messages import Event, Measure, PipelineStatus

log = structlog.get_logger()

Callback = Callable[[str, bytes], None]
Hold = Callable[[str], Done]
HoldingCallback = Callable[[str, bytes, Hold], None]


@dataclass(frozen=True, slots=True)
class AnnouncerStatus:
    """How the local broker is."""

    link: LinkState
    dropped_events: int
    dropped_measures: int
    refused_messages: int
    bad_topics: int


class Announcer:
    """Publishes presence, status, events and measures of this gateway, and hands on what others publish.

    `publish_*` and `subscribe` may be called from any thread, at any time; they never wait.
    """

    def __init__(
        self,
        broker: Broker,
        gateway_id: str,
        root: str,
        *,
        version: str = "",
        discovery: Discovery | None = None,
        access: Access | None = None,
        session_expiry_seconds: int = 0,
        clock_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        """Check the broker; `run` connects.

        With `session_expiry_seconds` the broker is asked to keep messages while the gateway is away, and to keep each
        until those who hold it are done; without, messages are acknowledged at receipt and a connection starts clean.

        Raises:
            ConfigError: the broker cannot be used as configured.
        """
        self._bulletin = Bulletin(gateway_id, root)
        self._discovery = discovery
        at_most = RECEIVE_MAXIMUM if broker.protocol == "5" else UNANNOUNCED_MAXIMUM
        self._receipts = Receipts(at_most) if session_expiry_seconds else None
        self._client = MqttClient(
            [broker],
            ConnectOptions(
                client_id=f"{root}-{gateway_id}-local",
                identity_client_id=gateway_id,
                clean_start=self._receipts is None,
                session_expiry_seconds=session_expiry_seconds,
                receive_maximum=RECEIVE_MAXIMUM if self._receipts is not None else None,
            ),
            self,
            presence=GatewayPresence(gateway_id, root, version, clock_ns),
            access=access,
            receipts=self._receipts,
            clock_ns=clock_ns,
        )
        self._pump = Pump(self._bulletin, self._client)
        self._lock = threading.Lock()
        self._callbacks: dict[str, list[HoldingCallback]] = {}
        self._loop: asyncio.AbstractEventLoop | None = None

    # ---- from any thread -----------------------------------------------------------------------------

    def publish_event(self, event: Event) -> None:
        """Show an event."""
        self._bulletin.put_event(event)

    def publish_status(self, status: PipelineStatus) -> None:
        """Show how a pipeline is; it stays on the broker."""
        self._bulletin.put_status(status)

    def publish_measure(self, measure: Measure) -> None:
        """Show the figures of an interval."""
        self._bulletin.put_measure(measure)

    def subscribe(self, topic_filter: str, callback: Callback) -> None:
        """Have `callback(topic, payload)` called on the event loop for every message; it must not block."""

        def told(topic: str, payload: bytes, _hold: Hold) -> None:
            callback(topic, payload)

        self._add(topic_filter, told)

    def subscribe_holding(self, topic_filter: str, taker: str, callback: HoldingCallback) -> None:
        """As `subscribe`, with a third argument: `hold(taker)` has the broker keep the message until it is done.

        Before `run` this asks nothing of the broker, and what a kept session brings first has its callback.
        """
        if self._receipts is not None:
            self._receipts.expect(taker)
        self._add(topic_filter, callback)

    @property
    def max_held(self) -> int:
        """How many messages may be held for long, all takers together, and leave the broker room to send more."""
        return self._receipts.at_most // 2 if self._receipts is not None else 0

    def _add(self, topic_filter: str, callback: HoldingCallback) -> None:
        with self._lock:
            self._callbacks.setdefault(topic_filter, []).append(callback)
            loop = self._loop
        if loop is not None:
            loop.call_soon_threadsafe(self._client.subscribe, topic_filter, self._hand_on(topic_filter))

    # ---- the event loop ------------------------------------------------------------------------------

    async def run(self) -> None:
        """Stay connected until cancelled."""
        with self._lock:
            self._loop = asyncio.get_running_loop()
            filters = list(self._callbacks)
        for topic_filter in filters:
            self._client.subscribe(topic_filter, self._hand_on(topic_filter))
        if self._discovery is not None:
            self._client.subscribe(self._discovery.topic, self._earlier_discovery)
            if self._discovery.payload is not None:
                self._client.subscribe(self._discovery.birth_topic, self._birth)
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._pump.run(), name="announcer-pump")
                group.create_task(self._client.run(), name="announcer-link")
        finally:
            with self._lock:
                self._loop = None

    def renewed(self) -> None:
        """A new certificate is there: a broker that knows us by one is shown it."""
        self._client.renewed()

    def status(self) -> AnnouncerStatus:
        """Return how the local broker is."""
        drops = self._bulletin.drops
        return AnnouncerStatus(
            link=self._client.state,
            dropped_events=drops.events,
            dropped_measures=drops.measures,
            refused_messages=drops.refused,
            bad_topics=self._client.drops.bad_topic,
        )

    def link_up(self, terms: Terms) -> None:
        """Called by the client: publish what must be known again."""
        del terms
        self._discover()
        self._pump.link_up()

    def link_down(self, ending: Ending) -> None:
        """Called by the client: keep what was not answered."""
        del ending
        self._pump.link_down()

    def parting(self) -> None:
        """Called by the client: the last words."""
        self._pump.flush()

    # ---- inside --------------------------------------------------------------------------------------

    def _hand_on(self, topic_filter: str) -> Callable[[Incoming], None]:
        def handler(message: Incoming) -> None:
            with self._lock:
                callbacks = tuple(self._callbacks[topic_filter])
            for callback in callbacks:
                callback(message.topic, message.payload, message.receipt.hold if message.receipt else _hold_nothing)

        return handler

    def _discover(self) -> None:
        if self._discovery is not None and self._discovery.payload is not None:
            self._retain(self._discovery.topic, self._discovery.payload)

    def _birth(self, message: Incoming) -> None:
        """Home Assistant has started: it may have missed, or lost, what we retain."""
        if message.payload == b"online" and not message.retained:
            self._discover()

    def _earlier_discovery(self, message: Incoming) -> None:
        """Take back what an earlier configuration of this gateway has left on the broker."""
        discovery = self._discovery
        if discovery is None or not message.retained or not message.payload:
            return
        if discovery.payload is None:
            log.info("home_assistant_discovery_cleared", topic=discovery.topic)
            self._retain(discovery.topic, b"")
        elif (farewell := without_retired(message.payload, discovery.payload)) is not None:
            self._retain(discovery.topic, farewell)
            self._discover()

    def _retain(self, topic: str, payload: bytes) -> None:
        publication = self._client.publish(Outgoing(topic, payload, retain=True))
        publication.add_done_callback(lambda done: None if done.cancelled() else done.exception())


def _hold_nothing(_taker: str) -> Done:
    return _nothing


def _nothing() -> None:
    return
