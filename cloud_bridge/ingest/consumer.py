"""The link to one broker. The only file of the cloud side that knows an MQTT library.

The library's callbacks run in its network thread; here they never raise and only enqueue. Messages are
acknowledged by hand (QoS 1), after the worker has committed them, in the order of receipt, and never for a packet id
of an earlier connection: the broker may have given it to another message since.

How much waits here is bounded: the Receive Maximum that is announced (MQTT 5 §3.1.2.11.3) is the length of the queue.
"""

import queue
import random
import ssl
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import structlog
from paho.mqtt.client import Client, ConnectFlags, DisconnectFlags, MQTTMessage
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from cloud_bridge.address import BrokerAddress, broker_address
from cloud_bridge.config import Broker, Ingest
from cloud_bridge.errors import BrokerError, ConfigError, ForeignStoreError
from cloud_bridge.ingest.claim import StoreClaim, Turn, claim_topic
from cloud_bridge.ingest.incoming import Incoming
from cloud_bridge.ingest.sockets import load_files, tls_context, tune
from cloud_bridge.metrics import Metrics
from gateway.wire.topics import filter_for, shared_filter

log = structlog.get_logger()

_MAX_DELAY_SECONDS: Final = 3  # few bridges, and every device waits for one: coming back soon matters most
_IN_FLIGHT: Final = 100
_WAITING_PUBLISHES: Final = 10_000
_UNCLAIMED_SECONDS: Final = 0.05
_QUIET_NS: Final = 500_000_000
"""So long after the last retained message that came, all of them have come."""


@dataclass(frozen=True, slots=True)
class Link:
    """Who the consumer is to its broker. `watches_fleet`: it also takes availability and status.

    `only` are filters to subscribe to instead of all that.
    """

    client_id: str
    broker: Broker
    password: str | None
    watches_fleet: bool
    only: tuple[str, ...] = ()


class Consumer:
    """Takes messages from one broker and acknowledges them when told to."""

    def __init__(
        self,
        link: Link,
        settings: Ingest,
        metrics: Metrics,
        monotonic_ns: Callable[[], int] = time.monotonic_ns,
        *,
        claim: StoreClaim | None = None,
    ) -> None:
        """Prepare; nothing is connected before `start`.

        With a claim, nothing is taken until it is held.

        Raises:
            ConfigError: the broker's settings cannot be used.
        """
        self.address: BrokerAddress = broker_address(link.broker)
        self.name = link.client_id
        self._link = link
        self._settings = settings
        self._metrics = metrics
        self._monotonic_ns = monotonic_ns
        self._claim = claim
        self._claim_topic = claim_topic(settings.root, settings.group)
        self._claim_mid: int | None = None
        self._inbox: queue.Queue[Incoming] = queue.Queue(settings.receive_maximum)
        # Guards the two below: an acknowledgement is sent only while the connection it belongs to stands.
        self._lock = threading.Lock()
        self._connection = 0
        self._connected = False
        self._network: threading.Thread | None = None
        self._overrun = False  # the broker sent more than it may, and was left
        self._stopping = False
        self._ending = threading.Event()
        self._marks: queue.SimpleQueue[tuple[str, bytes]] = queue.SimpleQueue()  # that the broker had retained
        self._marks_mid: int | None = None
        self._marks_heard_ns: int | None = None  # the last of them, or the answer to the subscription
        self._marks_wanted = claim is not None and link.watches_fleet
        self._troubles: set[str] = set()  # what was told since the last connection
        self._context = tls_context(link.broker) if self.address.encrypted else None
        self._client = self._make_client()

    # ---- used by the worker ------------------------------------------------------------------------

    @property
    def connected(self) -> bool:
        """Whether the broker has accepted the connection and it still stands."""
        return self._connected

    @property
    def connection(self) -> int:
        """The number of the present or last connection that the broker accepted; 0 before the first."""
        return self._connection

    def start(self) -> None:
        """Connect in the background, and again whenever the connection is lost."""
        if self._claim is not None and self._claim.learn() is not None:
            self._client.will_set(self._claim_topic, self._claim.message(alive=False), qos=1, retain=True)
        self._client.connect_async(
            self.address.host,
            self.address.port,
            keepalive=self._link.broker.keepalive_seconds,
            clean_start=False if self._version_5 else 3,
            properties=self._connect_properties(),
        )
        self._client.loop_start()

    def check(self) -> None:
        """Check that the network thread lives, and that no other store takes the records; come back to a broker that
        was left because it sent too much.

        Raises:
            BrokerError: an error has killed it; the consumer must be made anew.
            ForeignStoreError: a bridge with another store is there.
        """
        if self._network is not None and not self._network.is_alive() and not self._stopping:
            if self._overrun:  # it has ended as it was told to
                self._overrun, self._network = False, None
                self._client.loop_stop()
                self.start()
                return
            raise BrokerError(f"the network thread of {self.name} to {self.address} has died")
        if self._claim is not None and self._connected:
            self._settle(self._claim)

    def gather(self, messages: int, size_bytes: int, timeout_seconds: float) -> list[Incoming]:
        """Wait for a message, then take what is there already, in the order of receipt, up to the limits."""
        if self._claim is not None and not self._claim.held:
            self._ending.wait(min(timeout_seconds, _UNCLAIMED_SECONDS))
            return []
        try:
            gathered = [self._inbox.get(timeout=timeout_seconds)]
        except queue.Empty:
            return []
        total = len(gathered[0].payload)
        while len(gathered) < messages and total < size_bytes:
            try:
                gathered.append(self._inbox.get_nowait())
            except queue.Empty:
                break
            total += len(gathered[-1].payload)
        return gathered

    def acknowledge(self, messages: Sequence[Incoming]) -> int:
        """Send PUBACKs for committed messages; return how many of them were for the present connection."""
        sent = 0
        with self._lock:
            if self._connected:
                for message in messages:
                    if message.connection == self._connection:
                        # For QoS 0 this does nothing (MQTT 5 §4.3.1).
                        self._client.ack(message.packet_id, message.qos)
                        sent += 1
        return sent

    def publish(self, topic: str, payload: bytes, *, retain: bool = True) -> bool:
        """Publish something; return False if it could not be handed over, as while disconnected."""
        with self._lock:
            if not self._connected:
                return False  # the library would keep it and send something old later
            return self._client.publish(topic, payload, qos=1, retain=retain).rc == MQTTErrorCode.MQTT_ERR_SUCCESS

    def hand_over(self, topic: str, payload: bytes) -> Callable[[], bool] | None:
        """Publish something, not retained; return what tells whether it has left this process, None if it cannot."""
        with self._lock:
            if not self._connected:
                return None
            message = self._client.publish(topic, payload, qos=1)
        return message.is_published if message.rc == MQTTErrorCode.MQTT_ERR_SUCCESS else None

    def retained_marks(self) -> list[tuple[str, bytes]]:
        """Return topics and payloads of marks that the broker had retained, once, when no more of them come.

        They are asked for once by a consumer that takes records: as those of an earlier store, which may be there.
        """
        heard_ns = self._marks_heard_ns
        if heard_ns is None or self._monotonic_ns() - heard_ns < _QUIET_NS:
            return []
        self._marks_heard_ns = None
        self._marks_wanted = False
        self._client.unsubscribe(self._marks_filter)
        found = []
        while not self._marks.empty():
            found.append(self._marks.get_nowait())
        return found

    def stop(self) -> None:
        """Send what is queued, disconnect, and end the network thread. The session stays with the broker."""
        self._stopping = True
        self._ending.set()
        if self._claim is not None and self._claim.held and self._claim.own is not None:
            self.publish(self._claim_topic, self._claim.message(alive=False))
        self._client.disconnect()
        self._client.loop_stop()
        self._set_connected(connected=False)

    # ---- callbacks of the library, in its network thread ---------------------------------------------

    def _on_pre_connect(self, _client: Client, _userdata: object) -> None:
        self._network = threading.current_thread()
        if self._context is not None:
            try:
                load_files(self._context, self._link.broker)  # a CA that was rotated is believed without a restart
            except ConfigError as error:
                self._in_trouble("certificates_unusable", str(error))

    def _on_connect(
        self, client: Client, _userdata: object, flags: ConnectFlags, reason: ReasonCode, _properties: object
    ) -> None:
        if reason.is_failure:
            self._in_trouble("broker_refused", str(reason))
            return
        # What is queued belongs to the connection before: it was not acknowledged and comes again.
        self._forget()
        self._set_connected(connected=True)
        self._metrics.connections.labels(self.name).inc()
        log.info("broker_connected", link=self.name, broker=str(self.address), again=bool(self._troubles))
        self._troubles.clear()
        self._marks_mid = self._marks_heard_ns = None
        if self._claim is not None:
            self._claim.connected(resumed=flags.session_present)
            self._claim_mid = client.subscribe(self._claim_topic, qos=1)[1]
            if not self._claim.held:
                return
            log.info("ingest_begun", link=self.name, store=self._claim.own)
        self._subscribe()

    def _on_connect_fail(self, _client: Client, _userdata: object) -> None:
        error = sys.exception()  # the library calls from where it has caught it, and does not hand it on
        if isinstance(error, ssl.SSLCertVerificationError):
            self._in_trouble("broker_not_trusted", f"certificate not believed: {error.verify_message or error}")
        else:
            self._in_trouble("broker_unreachable", str(error) if error is not None else "no connection")

    def _on_disconnect(
        self, _client: Client, _userdata: object, _flags: DisconnectFlags, reason: ReasonCode, _properties: object
    ) -> None:
        self._set_connected(connected=False)
        if not self._stopping:
            self._in_trouble("broker_lost", str(reason))

    def _on_subscribe(
        self, _client: Client, _userdata: object, mid: int, reasons: list[ReasonCode], _properties: object
    ) -> None:
        refused = [str(reason) for reason in reasons if reason.is_failure]
        if self._claim is not None and mid == self._claim_mid:
            self._claim.granted(refused=bool(refused))
            return
        if mid == self._marks_mid:
            self._marks_heard_ns = self._monotonic_ns()
            if refused:
                remedy = "run `cloud-bridge broker-config` again, or let the bridge read `ack` of all devices"
                log.warning("retained_marks_refused", link=self.name, reasons=refused, remedy=remedy)
            return
        if refused:
            remedy = "let the broker allow it; `ingest.subscription: plain` if it knows no shared subscriptions"
            log.error("subscription_refused", link=self.name, reasons=refused, filters=self.filters(), remedy=remedy)

    def _on_message(self, client: Client, _userdata: object, message: MQTTMessage) -> None:
        try:
            topic: str | bytes = message.topic
        except UnicodeDecodeError as error:  # raised by the property itself
            topic = bytes(error.object)
        if self._claim is not None and topic == self._claim_topic:
            self._claim.heard(bytes(message.payload))
            client.ack(message.mid, message.qos)
            return
        if isinstance(topic, str) and topic.rsplit("/", 2)[-2:-1] == ["ack"]:
            if message.retain:  # else one of ours, or of a colleague
                self._marks.put((topic, bytes(message.payload)))
                self._marks_heard_ns = self._monotonic_ns()
            client.ack(message.mid, message.qos)
            return
        incoming = Incoming(
            topic=topic,
            payload=bytes(message.payload),
            packet_id=message.mid,
            qos=message.qos,
            connection=self._connection,
            received_ns=self._monotonic_ns(),
            retained=message.retain,
        )
        try:
            # It is full only if the broker ignores the Receive Maximum, or knows none (3.1.1). Not reading on is
            # the only brake then; it must end before the broker misses our ping.
            self._inbox.put(incoming, timeout=self._link.broker.keepalive_seconds / 3)
        except queue.Full:
            log.warning("broker_overruns", link=self.name, receive_maximum=self._settings.receive_maximum)
            self._overrun = True
            if self._version_5:
                client.disconnect(ReasonCode(PacketTypes.DISCONNECT, "Receive maximum exceeded"))
            else:
                client.disconnect()

    # ---- the rest ------------------------------------------------------------------------------------

    def filters(self) -> list[str]:
        """Return what is subscribed to."""
        if self._link.only:
            return list(self._link.only)
        root = self._settings.root
        records = filter_for("records", root=root)
        if self._settings.subscription == "shared":
            records = shared_filter(self._settings.group, records)
        if not self._link.watches_fleet:
            return [records]
        # Not shared: a shared subscription gets no retained messages (MQTT 5 §4.8.2).
        return [records, filter_for("availability", root=root), filter_for("status", root=root)]

    def _settle(self, claim: StoreClaim) -> None:
        try:
            turn = claim.turn()
        except ForeignStoreError:
            self._end_session()  # or the broker would go on giving it its share
            raise
        if turn in (Turn.BEGIN, Turn.REPEAT):
            self.publish(self._claim_topic, claim.message(alive=True))
        if turn is Turn.BEGIN:
            self._subscribe()
            log.info("ingest_begun", link=self.name, store=claim.own)
        if self._marks_wanted and self._marks_mid is None and claim.held and claim.listened:
            self._marks_mid = self._client.subscribe(self._marks_filter, qos=1)[1]

    @property
    def _marks_filter(self) -> str:
        return filter_for("ack", root=self._settings.root)

    def _end_session(self) -> None:
        self._stopping = True
        if self._version_5:
            properties = Properties(PacketTypes.DISCONNECT)  # type: ignore[no-untyped-call]  # it has no annotations
            properties.SessionExpiryInterval = 0
            self._client.disconnect(properties=properties)
        else:
            for topic_filter in self.filters():
                self._client.unsubscribe(topic_filter)

    def _subscribe(self) -> None:
        for topic_filter in self.filters():
            self._client.subscribe(topic_filter, qos=1)

    @property
    def _version_5(self) -> bool:
        return self._link.broker.protocol == "5"

    def _set_connected(self, *, connected: bool) -> None:
        with self._lock:
            if connected:
                self._connection += 1
            self._connected = connected
        self._metrics.connected.labels(self.name).set(connected)

    def _forget(self) -> None:
        while True:
            try:
                self._inbox.get_nowait()
            except queue.Empty:
                return

    def _in_trouble(self, event: str, reason: str) -> None:
        if event not in self._troubles:
            log.warning(event, link=self.name, broker=str(self.address), reason=reason)
            self._troubles.add(event)

    def _connect_properties(self) -> Properties | None:
        if not self._version_5:
            return None
        properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]  # it has no annotations
        properties.SessionExpiryInterval = self._settings.session_expiry_seconds
        properties.ReceiveMaximum = self._settings.receive_maximum
        return properties

    def _make_client(self) -> Client:
        broker = self._link.broker
        options: dict[str, Any] = {} if self._version_5 else {"clean_session": False}
        client = Client(
            CallbackAPIVersion.VERSION2,
            client_id=self.name,
            protocol=MQTTProtocolVersion.MQTTv5 if self._version_5 else MQTTProtocolVersion.MQTTv311,
            manual_ack=True,
            **options,
        )
        client.max_inflight_messages_set(_IN_FLIGHT)
        client.max_queued_messages_set(_WAITING_PUBLISHES)
        # Jitter in the cap: many bridges must not come back in step.
        client.reconnect_delay_set(1, random.randint(_MAX_DELAY_SECONDS // 2 + 1, _MAX_DELAY_SECONDS))
        if broker.username is not None:
            client.username_pw_set(broker.username, self._link.password)
        if self._context is not None:
            client.tls_set_context(self._context)
        client.on_pre_connect = self._on_pre_connect
        client.on_connect = self._on_connect
        client.on_connect_fail = self._on_connect_fail
        client.on_socket_open = tune
        client.on_disconnect = self._on_disconnect
        client.on_subscribe = self._on_subscribe
        client.on_message = self._on_message
        return client
