"""Ends the MQTT connection of a device, without a plugin in the broker: by taking its client id over.

A broker must close the connection that has a client id when another one comes with the same id (MQTT 5 §3.1.4, MQTT
3.1.1 §3.1.4-2). The broker of `broker-config` gives every device its name for a client id, and lets only the bridge
choose another one, on a listener of its own. Three packets do not need an MQTT library.
"""

import socket
import ssl
import struct
from dataclasses import dataclass
from typing import Final

from cloud_bridge.address import broker_address
from cloud_bridge.config import Broker
from cloud_bridge.errors import BrokerError, ConfigError
from gateway.wire.messages import Availability, encode
from gateway.wire.topics import Address, topic_for

_TIMEOUT_SECONDS: Final = 5.0
_KEEPALIVE_SECONDS: Final = 10
_SESSION_SECONDS: Final = 3600
_CLEAN_START: Final = 0x02
_LONGEST_ANSWER: Final = 4096


@dataclass(frozen=True, slots=True)
class Takeover:
    """Whose connection to end. `banned`: its session goes too, and its absence is published for it at `at`."""

    gateway: str
    banned: bool
    at: str
    root: str


class SessionCutter:
    """Ends connections at one broker. Blocking."""

    def __init__(self, broker: Broker) -> None:
        """Prepare.

        Raises:
            ConfigError: the broker's settings cannot be used.
        """
        self.address = broker_address(broker)
        if not self.address.encrypted or broker.certificate_file is None or broker.key_file is None:
            raise ConfigError(
                f"{self.address}: ending connections of devices needs mqtts:// and the bridge's certificate; set"
                " certificate_file and key_file, or `identity.cut_sessions: false`"
            )
        self._broker = broker

    def cut(self, takeover: Takeover) -> None:
        """End a connection; returns when the broker has done it.

        Raises:
            BrokerError: the broker cannot be reached, or does not let the bridge do it.
        """
        try:
            with self._connected() as link:
                link.sendall(connect_packet(takeover, self._broker.protocol))
                _check_connack(link, str(self.address))
                if takeover.banned:
                    link.sendall(_absence(takeover, self._broker.protocol))
                link.sendall(b"\xe0\x00")  # DISCONNECT
        except (OSError, ssl.SSLError) as error:
            raise BrokerError(f"{self.address}: {error}") from error

    def _connected(self) -> ssl.SSLSocket:
        # Made anew each time: the bridge's own certificate is renewed in place.
        context = ssl.create_default_context(cafile=self._broker.ca_file)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        assert self._broker.certificate_file is not None
        context.load_cert_chain(self._broker.certificate_file, self._broker.key_file)
        raw = socket.create_connection((self.address.host, self.address.port), _TIMEOUT_SECONDS)
        try:
            return context.wrap_socket(raw, server_hostname=self.address.host)
        except BaseException:
            raw.close()
            raise


def connect_packet(takeover: Takeover, protocol: str) -> bytes:
    """Build the CONNECT (MQTT 5 §3.1). Without `banned` the session stays: the device comes back to it."""
    level, properties = (5, _properties(takeover)) if protocol == "5" else (4, b"")
    flags = _CLEAN_START if takeover.banned else 0
    header = _text("MQTT") + bytes([level, flags]) + struct.pack(">H", _KEEPALIVE_SECONDS) + properties
    return _packet(0x10, header + _text(takeover.gateway))


def _properties(takeover: Takeover) -> bytes:
    return b"\x00" if takeover.banned else b"\x05\x11" + struct.pack(">I", _SESSION_SECONDS)


def _absence(takeover: Takeover, protocol: str) -> bytes:
    topic = topic_for(Address(takeover.gateway, "availability", "gateway"), takeover.root)
    payload = encode(Availability(state="offline", at=takeover.at))
    return _packet(0x31, _text(topic) + (b"\x00" if protocol == "5" else b"") + payload)  # QoS 0, retained


def _check_connack(link: ssl.SSLSocket, name: str) -> None:
    answer = b""
    while len(answer) < 4:
        data = link.recv(_LONGEST_ANSWER)
        if not data:
            raise BrokerError(f"{name} closed the connection; does it let the bridge in on this listener?")
        answer += data
    if answer[0] != 0x20:
        raise BrokerError(f"{name} answered with packet type {answer[0]:#04x}, not with a CONNACK")
    reason = answer[3]
    if reason:
        raise BrokerError(f"{name} refused to take a client id over: reason {reason:#04x}")


def _packet(kind: int, body: bytes) -> bytes:
    length, left = b"", len(body)
    while True:
        left, low = divmod(left, 128)
        length += bytes([low | (0x80 if left else 0)])
        if not left:
            return bytes([kind]) + length + body


def _text(text: str) -> bytes:
    data = text.encode("utf-8")
    return struct.pack(">H", len(data)) + data
