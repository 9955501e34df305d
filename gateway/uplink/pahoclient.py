"""Between our words and paho's: how its client is made, what a CONNECT wishes, what a CONNACK grants or refuses."""

import ssl
import time
from collections.abc import Mapping
from typing import Final

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from gateway.config import Broker
from gateway.uplink.backoff import Lane
from gateway.uplink.endpoint import password_of
from gateway.uplink.exchange import ConnectOptions, Ending, Outgoing, Terms
from gateway.uplink.sockets import tune
from gateway.uplink.traffic import Tap

_BUSY_CODES: Final = frozenset({0x88, 0x89, 0x8B, 0x8D, 0x93, 0x96, 0x97, 0x98, 0x9F, 0xA0})
"""Reasons (MQTT 5 §2.4) that pass by themselves; all others from 0x80 need a person."""


class CountedClient(paho.Client):
    """A paho client that lets a tap hear what it really writes and reads: paho itself counts nothing."""

    tap: Tap | None = None
    written = 0  # bytes
    has_heard = False  # anything at all, above TLS
    tls_error: ssl.SSLError | None = None  # the last read's; paho itself only says that the connection is lost

    def _sock_send(self, buf: bytes | bytearray) -> int:
        size = super()._sock_send(buf)
        self.written += max(size, 0)
        if self.tap is not None and size > 0:
            self.tap.passed("out", bytes(buf[:size]))
        return size

    def heard(self) -> None:
        """Have paho, too, believe that the peer lives, though it has said nothing: it has limits of its own."""
        now = time.monotonic()
        with self._msgtime_mutex:
            self._last_bytes_received = now
        if self._ping_t:  # the ping waits behind the message
            self._ping_t = now

    def expects_no_answer(self) -> None:
        """Have paho send its pings on although the answers are not read: the broker must not think that we are gone."""
        with self._msgtime_mutex:
            self._last_bytes_received = time.monotonic()
        self._ping_t = 0.0

    def _sock_recv(self, bufsize: int) -> bytes:
        try:
            data = super()._sock_recv(bufsize)
        except ssl.SSLError as error:
            self.tls_error = error
            raise
        self.has_heard = self.has_heard or bool(data)
        if self.tap is not None:
            self.tap.passed("in", data)
        return data


def client_for(broker: Broker, options: ConnectOptions, *, manual_ack: bool) -> CountedClient:
    """Make a client that connects once, and writes only when asked to.

    Raises:
        ConfigError: the file with the password cannot be read.
    """
    is_v5 = broker.protocol == "5"
    client = CountedClient(
        CallbackAPIVersion.VERSION2,
        client_id=options.client_id,
        clean_session=None if is_v5 else options.clean_start,
        protocol=MQTTProtocolVersion.MQTTv5 if is_v5 else MQTTProtocolVersion.MQTTv311,
        reconnect_on_failure=False,
        manual_ack=manual_ack,
    )
    client.connect_timeout = options.connect_timeout_seconds
    client.max_inflight_messages = options.in_flight
    if broker.username is not None or broker.password_file is not None:
        client.username_pw_set(broker.username or "", password_of(broker))
    if options.will is not None:
        topic, payload = options.will
        client.will_set(topic, payload, qos=1, retain=True)
    client.on_socket_open = _tune
    # With this set, paho writes only when asked to: no callback runs inside `publish()`.
    client.on_socket_register_write = _ignore
    return client


def wishes_of(options: ConnectOptions) -> Properties:
    """Return the properties of a CONNECT (MQTT 5 §3.1.2.11)."""
    wishes = _properties(PacketTypes.CONNECT)
    wishes.MaximumPacketSize = options.max_incoming_bytes
    if options.receive_maximum is not None:
        wishes.ReceiveMaximum = options.receive_maximum
    if options.session_expiry_seconds:
        wishes.SessionExpiryInterval = options.session_expiry_seconds
    return wishes


def properties_of(message: Outgoing) -> Properties:
    """Return the properties of a PUBLISH (MQTT 5 §3.3.2.3)."""
    properties = _properties(PacketTypes.PUBLISH)
    if message.content_type is not None:
        properties.ContentType = message.content_type
    if message.user_properties:
        properties.UserProperty = list(message.user_properties.items())
    if message.expiry_seconds is not None:
        properties.MessageExpiryInterval = message.expiry_seconds
    return properties


def terms_of(properties: Properties | None, flags: paho.ConnectFlags, client_id: str, keepalive_seconds: int) -> Terms:
    """Read what a CONNACK grants (MQTT 5 §3.2.2.3); what it does not mention is as we asked for it."""
    granted = _given(properties)
    return Terms(
        session_present=flags.session_present,
        client_id=str(granted.get("AssignedClientIdentifier", client_id)),
        receive_maximum=_number(granted, "ReceiveMaximum", 65_535),
        max_packet_bytes=_number(granted, "MaximumPacketSize", 268_435_455),
        keepalive_seconds=_number(granted, "ServerKeepAlive", keepalive_seconds),
        maximum_qos=_number(granted, "MaximumQoS", 1),
        retain_available=bool(_number(granted, "RetainAvailable", 1)),
    )


def refusal_of(reason: ReasonCode, properties: Properties | None) -> Ending:
    """Read a CONNACK or DISCONNECT that ends the connection. A Server Reference in it is told, never followed."""
    given = _given(properties)
    words = [str(reason)]
    if text := given.get("ReasonString"):
        words.append(str(text)[:200])
    if elsewhere := given.get("ServerReference"):
        words.append(f"it names {str(elsewhere)[:200]!r}, which is not followed")
    lane: Lane = "busy" if reason.value in _BUSY_CODES or reason.value < 0x80 else "refused"
    return Ending(lane, ": ".join(words), reason.value)


def _properties(packet: int) -> Properties:
    return Properties(packet)  # type: ignore[no-untyped-call]  # paho declares no types here


def _given(properties: Properties | None) -> dict[str, object]:
    """Return the properties of a packet by their names; lists where a property may repeat."""
    found: dict[str, object] = {}
    if properties is not None:
        found.update(properties.json())  # type: ignore[no-untyped-call]  # paho declares no types here
    return found


def _number(granted: Mapping[str, object], name: str, otherwise: int) -> int:
    value = granted.get(name, otherwise)
    return value if isinstance(value, int) else otherwise


def _tune(_c: paho.Client, _u: object, sock: object) -> None:
    tune(sock)


def _ignore(_c: paho.Client, _u: object, _s: object) -> None:
    return
