"""One connection to one MQTT broker: a paho client, a socket and a thread. With `pahoclient` alone it knows paho.

What paho 2 does behind one's back, and what is done about it here:

* It keeps unacknowledged messages and sends them again after a reconnect, and takes messages while offline. The
  outbox is what remembers here, so a second memory would only make duplicates: a connection is used once, and a
  fresh paho client made for the next. What was not acknowledged fails with `ConnectionLostError`.
* It does not honour the server's Receive Maximum and Maximum Packet Size, so both are enforced here: at most so
  many messages are handed to paho; the others wait in line in this object.
* An exception in a callback kills its network thread while `is_connected()` stays true. Its thread is not used:
  the loop below drives paho through its external-loop interface, callbacks only append to a queue, and whatever
  breaks ends this connection and is told to the event loop. All paho calls happen on this one thread, so none
  of its locks can deadlock.
* `message.topic` raises on a topic that is not UTF-8; the bytes are read instead.
* It looks for a dead peer only after two keepalive intervals; silence ends a connection after one and a half here.

QoS 2 and topic aliases are not offered: neither survives a restart, and the ack of the bridge makes up for both.
"""

import asyncio
import errno
import select
import ssl
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Final

import paho.mqtt.client as paho
import structlog
from paho.mqtt.enums import MQTTErrorCode
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from gateway.config import Broker
from gateway.errors import ConfigError, UplinkError
from gateway.uplink.alerts import told_by_alert
from gateway.uplink.backoff import Lane
from gateway.uplink.endpoint import Access, CredentialsAwaitedError, Endpoint, distrust
from gateway.uplink.exchange import (
    PACKET_TOO_LARGE,
    ConnectionLostError,
    ConnectionRefusedByBrokerError,
    ConnectOptions,
    Drops,
    Ending,
    Incoming,
    Outgoing,
    PublishResult,
    Terms,
)
from gateway.uplink.network import NetworkBytes, network_bytes
from gateway.uplink.pahoclient import CountedClient, client_for, properties_of, refusal_of, terms_of, wishes_of
from gateway.uplink.postbox import Postbox
from gateway.uplink.receipts import Receipt, Receipts
from gateway.uplink.sockets import UNANSWERED_SECONDS, Waker, error_of, unanswered_bytes, words_of
from gateway.uplink.traffic import Tap

log = structlog.get_logger()

TICK_SECONDS: Final = 1.0
"""The network thread wakes at least so often, to ping and to show that it lives."""

LARGE_BYTES: Final = 16 * 1024
"""While more than this is on its way and the peer's TCP takes some of it, its broker may be silent."""

_NOBODY_ANSWERS: Final = frozenset({errno.ETIMEDOUT, errno.EHOSTUNREACH, errno.ENETUNREACH})
"""Errors of a socket whose link is away: the broker is not busy, and may be asked again soon."""

Publication = asyncio.Future[PublishResult]
Subscription = asyncio.Future[tuple[int, ...]]


class MqttConnection:
    """A connection, good for one life: start, use, end. Its methods belong to the event loop's thread."""

    def __init__(
        self,
        broker: Broker,
        endpoint: Endpoint,
        options: ConnectOptions,
        on_message: Callable[[Incoming], None],
        drops: Drops,
        *,
        access: Access,
        receipts: Receipts | None = None,
        tap: Tap | None = None,
        clock_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        """Nothing is done before `start`.

        `access` says what is shown to a broker with TLS; `tap` listens to what passes. The network thread uses both.
        With `receipts` a message of QoS 1 is acknowledged when those who took it are done, else when it is received.
        """
        self._broker = broker
        self._endpoint = endpoint
        self._options = options
        self._on_message = on_message
        self._drops = drops
        self._access = access
        self._receipts = receipts
        self._tap = tap
        self._clock_ns = clock_ns
        self.network = NetworkBytes()  # what passed so far, estimated
        self._loop = asyncio.get_running_loop()
        self.opened: asyncio.Future[Terms] = self._loop.create_future()
        self.closed: asyncio.Future[Ending] = self._loop.create_future()
        self._is_v5 = broker.protocol == "5"
        # Shared with the network thread; deques are appended and popped at opposite ends, which needs no lock.
        self._waiting: deque[tuple[Outgoing, Publication]] = deque()
        self._wishes: deque[tuple[Sequence[str], Subscription]] = deque()
        self._unwanted: deque[str] = deque()
        self._acknowledged: deque[int] = deque()
        self._postbox = Postbox(self._loop)
        self._stop = False
        self._quit = False
        self._finishing = False
        self._farewell = Ending("unreachable", "stopped")
        self._beat_ns = time.monotonic_ns()
        self.held_back_ns = 0  # monotonic: when something was left unread on purpose last; 0: never
        self._waker = Waker()
        # Owned by the network thread.
        self._ending: Ending | None = None
        self._terms: Terms | None = None
        self._window = options.in_flight
        self._in_flight: dict[int, Publication] = {}
        self._unwritten: dict[int, Publication] = {}
        self._subscribing: dict[int, Subscription] = {}
        self._thread = threading.Thread(target=self._run, name=f"mqtt-{endpoint.host}", daemon=True)

    # ---- the event loop's side -------------------------------------------------------------------

    def start(self) -> None:
        """Begin to connect; `opened` and `closed` tell what becomes of it."""
        self._thread.start()

    def publish(self, message: Outgoing) -> Publication:
        """Put a message in line. Its future fails with `ConnectionLostError` when the connection ends first."""
        future: Publication = self._loop.create_future()
        if self.closed.done():
            future.set_exception(ConnectionLostError("not connected"))
            return future
        self._waiting.append((message, future))
        self._waker.wake()
        return future

    def subscribe(self, filters: Sequence[str]) -> Subscription:
        """Subscribe at QoS 1; the future gives the granted reason codes in order."""
        future: Subscription = self._loop.create_future()
        if self.closed.done():
            future.set_exception(ConnectionLostError("not connected"))
            return future
        self._wishes.append((filters, future))
        self._waker.wake()
        return future

    def unsubscribe(self, topic_filter: str) -> None:
        """Take back a subscription that an earlier run has left in the session."""
        self._unwanted.append(topic_filter)
        self._waker.wake()

    def acknowledge(self, packets: Sequence[int]) -> None:
        """Send PUBACKs, in this order. Any thread may call it."""
        self._acknowledged.extend(packets)
        self._waker.wake()

    def stop(self) -> None:
        """Say goodbye to the broker once all that was published is written, and end the thread."""
        self._stop = True
        self._waker.wake()

    def finish(self, ending: Ending) -> None:
        """Send nothing more, wait for the answers that are due, then say goodbye.

        What is published from now on fails when the connection ends, and the broker has not seen it.
        """
        self._farewell = ending
        self._finishing = True
        self._waker.wake()

    def abandon(self, ending: Ending) -> None:
        """Give the connection up at once. A thread that hangs is left behind and ends when its call returns."""
        self._quit = True
        self._waker.wake()
        self._finish(ending)

    def is_stuck(self, now_ns: int, limit_seconds: float) -> bool:
        """Tell whether the network thread is dead or has not come round for so long."""
        return not self._thread.is_alive() or now_ns - self._beat_ns > limit_seconds * 1e9

    @property
    def thread_alive(self) -> bool:
        """Whether the network thread still runs."""
        return self._thread.is_alive()

    def _finish(self, ending: Ending) -> None:
        """Settle everything that still waits for this connection."""
        if not self.closed.done():
            if not self.opened.done():
                self.opened.set_exception(ConnectionRefusedByBrokerError(ending))
            self.opened.exception()  # seen: nobody need await it
            self.closed.set_result(ending)
        lost = ConnectionLostError(ending.reason)
        # Copies: a thread that was given up may still be popping. What it has in hand just now is settled when it ends.
        pending: list[Publication | Subscription] = [future for _, future in list(self._waiting)]
        pending += [future for _, future in list(self._wishes)]
        for others in (self._in_flight, self._unwritten, self._subscribing):
            pending += list(others.values())
        for future in pending:
            if not future.done():
                future.set_exception(lost)

    # ---- from the network thread to the event loop --------------------------------------------------

    def _post(self, call: Callable[[], None]) -> None:
        if not self._postbox.post(call):
            self._stop = True

    def _receive(self, message: Incoming) -> None:
        # One with a receipt is not told again when it comes again, so it must be told now.
        if message.receipt is not None or not self.closed.done():
            self._on_message(message)

    # ---- the network thread ---------------------------------------------------------------------------

    def _run(self) -> None:
        client: paho.Client | None = None
        ending = Ending("unreachable", "the connection ended without a reason")
        try:
            client = self._dial()
            ending = self._serve(client)
            if self._terms is None and ending.code is None:
                ending = replace(ending, doubt=True)
        except ssl.SSLCertVerificationError as error:
            ending = Ending("refused", distrust(error, self._clock_ns()), distrust=True)
        except ssl.SSLError as error:
            ending = self._refused_by_tls(error) or Ending("unreachable", words_of(error), doubt=True)
        except (ConfigError, CredentialsAwaitedError) as error:
            ending = Ending("refused", str(error))
        except OSError as error:  # no such name, no route, no answer, nobody listens, ended within the handshake
            ending = Ending("unreachable", words_of(error))
        except Exception as error:  # this thread's supervisor: what broke it is told, and a new one made
            log.exception("mqtt_thread_failed", broker=str(self._endpoint))
            ending = Ending("busy", f"{type(error).__name__}: {error}")
        finally:
            if client is not None and (sock := client.socket()) is not None:
                self._look_at_network(sock.fileno())
                sock.close()
            if self._receipts is not None:
                self._receipts.disconnected(self)
            if self._tap is not None:
                self._tap.finish()
            self._post(partial(self._finish, ending))
            self._waker.close()

    def _dial(self) -> CountedClient:
        """Connect the socket and send CONNECT; blocks up to the connect time-out, longer where names resolve slowly."""
        options, broker = self._options, self._broker
        client = client_for(broker, options, manual_ack=self._receipts is not None)
        client.tap = self._tap
        if self._endpoint.tls:
            client.tls_set_context(self._access.context(broker))
        client.on_connect = self._connected
        client.on_disconnect = self._disconnected
        client.on_publish = self._published
        client.on_subscribe = self._subscribed
        client.on_message = self._arrived
        address = (self._endpoint.host, self._endpoint.port, broker.keepalive_seconds)
        if self._is_v5:
            client.connect(*address, clean_start=options.clean_start, properties=wishes_of(options))
        else:
            client.connect(*address)
        return client

    def _serve(self, client: CountedClient) -> Ending:
        """Move packets until the connection is over."""
        sock = client.socket()
        if sock is None:
            return self._ending or Ending("unreachable", "closed before the first packet")
        poller = select.poll()
        poller.register(self._waker, select.POLLIN)
        poller.register(sock, select.POLLIN)
        handle = sock.fileno()
        heard_at = time.monotonic()
        look_ns = queued = taken = 0
        patience = self._options.connect_timeout_seconds
        while True:
            self._beat_ns = time.monotonic_ns()
            if self._beat_ns >= look_ns:
                look_ns = self._beat_ns + int(TICK_SECONDS * 1e9)
                self._look_at_network(handle)
                if self._receipts is not None:
                    self._receipts.look()
                queued, before = unanswered_bytes(handle), queued
                taken, until_now = client.written - queued, taken
                if taken > until_now and before >= LARGE_BYTES:
                    # One large message may take a thin link longer than the broker may be silent. Of a peer that is
                    # gone nothing is answered, and the kernel's own limit ends the connection; a ping is no message.
                    heard_at = time.monotonic()
                    client.heard()
            if self._terms is not None or self._stop:
                self._carry_out(client)
            reads = not self._holds_back(client)
            poller.modify(handle, (select.POLLIN if reads else 0) | (select.POLLOUT if client.want_write() else 0))
            buffered = sock.pending() if reads and isinstance(sock, ssl.SSLSocket) else 0
            heard_at = heard_at if reads else time.monotonic()
            ready = dict(poller.poll(0 if buffered else TICK_SECONDS * 1000))
            if self._waker.fileno() in ready:
                self._waker.drain()
            events = ready.get(handle, 0)
            if (gone := _gone(sock, events, reads=reads)) is not None:
                return gone
            code = MQTTErrorCode.MQTT_ERR_SUCCESS
            if buffered or events & ~select.POLLOUT:
                heard_at = time.monotonic()
                code = client.loop_read()
                self._check_size(client)
            if not code and events & select.POLLOUT:
                code = client.loop_write()
            code = code or client.loop_misc()
            if self._ending is not None or self._quit:
                return self._ending or Ending("unreachable", "given up")
            if code == MQTTErrorCode.MQTT_ERR_PROTOCOL and self._terms is None:
                # A CONNACK that cannot be read; paho also keeps code 1 of MQTT 3.1.1 (wrong version) to itself.
                return Ending("refused", f"the broker does not answer in MQTT {self._broker.protocol}")
            if code or client.socket() is None:
                words = f"connection lost: {paho.error_string(code)}" if code else "connection closed"
                return self._refused_by_tls(client.tls_error) or Ending(self._lane_of_loss(client), words)
            if self._terms is not None:
                patience = 1.5 * self._terms.keepalive_seconds or float("inf")
            if time.monotonic() - heard_at > patience:
                return Ending("unreachable", f"the broker has been silent for {patience:g} s")

    def _holds_back(self, client: CountedClient) -> bool:
        """Tell whether nothing more is to be read for now, because enough messages are at hand.

        Answers to pings come behind what is not read; that the peer is gone the kernel tells, who sends the pings on.
        """
        # What the receipts hold before the broker has accepted this connection is another one's.
        if self._terms is None or self._receipts is None or not self._receipts.has_enough:
            return False
        self.held_back_ns = self._beat_ns
        client.expects_no_answer()
        return True

    def _lane_of_loss(self, client: CountedClient) -> Lane:
        """Tell who is away when the peer ends a connection without a word why.

        Whoever takes a connection and ends it without having said anything has no broker behind it now: balancers,
        port forwards and containers do. Asking again costs them what it costs a machine where nobody listens. After a
        TLS handshake it was a broker, and the handshake is what a fleet must not ask of it all at once.
        """
        return "busy" if client.has_heard or self._endpoint.tls else "unreachable"

    def _refused_by_tls(self, error: ssl.SSLError | None) -> Ending | None:
        told = None if error is None else told_by_alert(error, by_identity=self._broker.identity)
        return None if told is None else Ending("refused", told, doubt=True)

    def _look_at_network(self, handle: int) -> None:
        if self._tap is not None:
            self.network = network_bytes(handle)

    def _carry_out(self, client: paho.Client) -> None:
        """Hand to paho what the event loop wants, within the server's terms."""
        while self._acknowledged:
            client.ack(self._acknowledged.popleft(), 1)
        while self._unwanted:
            client.unsubscribe(self._unwanted.popleft())
        while self._wishes:
            filters, wish = self._wishes.popleft()
            code, mid = client.subscribe([(each, 1) for each in filters])
            if code or mid is None:
                self._settle(wish, ConnectionLostError(paho.error_string(code)))
            else:
                self._subscribing[mid] = wish
        while self._waiting and len(self._in_flight) < self._window and not self._finishing:
            self._hand_over(client, *self._waiting.popleft())
        done = self._stop or (self._finishing and not self._in_flight and not self._unwritten)
        if done and self._ending is None and not client.want_write():
            self._ending = self._farewell
            if (sock := client.socket()) is not None:
                self._look_at_network(sock.fileno())
            client.disconnect()  # written with the next round
            client.loop_write()

    def _hand_over(self, client: paho.Client, message: Outgoing, future: Publication) -> None:
        terms = self._terms
        if terms is None:
            return self._settle(future, ConnectionLostError("not connected"))
        if message.packet_bytes > terms.max_packet_bytes:
            return self._settle(future, PublishResult(PACKET_TOO_LARGE, "Packet too large"))
        qos = min(message.qos, terms.maximum_qos)
        try:
            info = client.publish(
                message.topic,
                message.payload,
                qos,
                message.retain and terms.retain_available,
                properties_of(message) if self._is_v5 else None,
            )
        except ValueError as error:
            return self._settle(future, UplinkError(f"message for {message.topic[:120]!r}: {error}"))
        if info.rc:
            return self._settle(future, ConnectionLostError(paho.error_string(info.rc)))
        (self._in_flight if qos else self._unwritten)[info.mid] = future
        return None

    def _settle(
        self, future: Publication | Subscription, outcome: PublishResult | tuple[int, ...] | UplinkError
    ) -> None:
        self._post(lambda: _resolve(future, outcome))

    def _check_size(self, client: paho.Client) -> None:
        """End the connection when a packet is announced that we said we would not take.

        paho would gather up to 256 MiB of it in memory first. MQTT 3.1.1 has no way to say a limit beforehand.
        """
        announced = client._in_packet["remaining_length"]
        if announced > self._options.max_incoming_bytes:
            self._ending = Ending("busy", f"the broker announced a packet of {announced} bytes")

    # ---- paho's callbacks: they only take notes and never raise ------------------------------------------

    def _connected(
        self, _c: paho.Client, _u: object, flags: paho.ConnectFlags, reason: ReasonCode, properties: Properties | None
    ) -> None:
        if reason.is_failure:
            self._ending = refusal_of(reason, properties)
            return
        self._terms = terms = terms_of(properties, flags, self._options.client_id, self._broker.keepalive_seconds)
        self._window = max(1, min(self._options.in_flight, terms.receive_maximum))
        if self._receipts is not None:
            self._receipts.connected(self, session_present=terms.session_present)
        self._post(partial(_resolve, self.opened, terms))

    def _disconnected(
        self,
        _c: paho.Client,
        _u: object,
        flags: paho.DisconnectFlags,
        reason: ReasonCode,
        properties: Properties | None,
    ) -> None:
        if self._ending is None and flags.is_disconnect_packet_from_server:
            self._ending = refusal_of(reason, properties)

    def _published(self, _c: paho.Client, _u: object, mid: int, reason: ReasonCode, _p: Properties | None) -> None:
        future = self._unwritten.pop(mid, None)
        if future is not None:
            return self._settle(future, PublishResult(None))
        future = self._in_flight.pop(mid, None)
        if future is not None:  # else: an answer to nothing we sent on this connection
            result = PublishResult(reason.value, str(reason)) if self._is_v5 else PublishResult(None)
            self._settle(future, result)
        return None

    def _subscribed(
        self, _c: paho.Client, _u: object, mid: int, reasons: list[ReasonCode], _p: Properties | None
    ) -> None:
        future = self._subscribing.pop(mid, None)
        if future is not None:
            self._settle(future, tuple(reason.value for reason in reasons))

    def _arrived(self, _c: paho.Client, _u: object, message: paho.MQTTMessage) -> None:
        try:
            topic = message._topic.decode("utf-8")
        except UnicodeDecodeError:
            topic = ""
        if not topic or "\0" in topic:  # no name, or one that MQTT forbids (§1.5.4); an alias we never allowed has none
            self._drops.bad_topic += 1
            if self._receipts is not None and message.qos:
                self._receipts.useless(self, message.mid)
            return
        payload = bytes(message.payload)
        receipt: Receipt | None = None
        if self._receipts is not None and message.qos:
            receipt = self._receipts.arrived(self, message.mid, topic, payload)
            if receipt is None:
                return
        elif len(self._postbox) >= self._options.max_waiting_messages:  # nothing makes the broker wait
            self._drops.overflow += 1
            return
        self._post(partial(self._receive, Incoming(topic, payload, bool(message.retain), receipt)))


def _gone(sock: object, events: int, *, reads: bool) -> Ending | None:
    """Tell from what a poll has found that the connection is over; where something is read, reading tells the rest."""
    if events & select.POLLERR and error_of(sock) in _NOBODY_ANSWERS:
        return Ending("unreachable", f"nothing has answered for {UNANSWERED_SECONDS:g} s")
    if not reads and events & (select.POLLERR | select.POLLHUP):
        return Ending("busy", "connection closed")
    return None


def _resolve(future: "asyncio.Future[Any]", outcome: object) -> None:
    if future.done():
        return
    if isinstance(outcome, UplinkError):
        future.set_exception(outcome)
    else:
        future.set_result(outcome)
