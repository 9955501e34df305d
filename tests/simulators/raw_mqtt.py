"""An MQTT 5 client of bare packets over TLS, with a hand on the session that TLS resumes."""

import socket
import ssl
import struct
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self


@dataclass(frozen=True)
class Credentials:
    """Files of a client: its certificate and key, and whom it trusts."""

    certificate: Path
    key: Path
    trusted: Path

    def context(self, version: ssl.TLSVersion | None = None) -> ssl.SSLContext:
        context = ssl.create_default_context(cafile=str(self.trusted))
        context.load_cert_chain(self.certificate, self.key)
        if version is not None:
            context.minimum_version = context.maximum_version = version
        return context


class RefusedByBrokerError(Exception):
    """No connection: in the handshake, or by a CONNACK."""


@dataclass
class RawMqtt:
    """One connection. `received`: topic → payloads; `disconnected`: the reason, once the broker has said goodbye."""

    link: ssl.SSLSocket
    reason: int = -1
    received: list[tuple[str, bytes]] = field(default_factory=list)
    granted: list[int] = field(default_factory=list)
    acknowledged: dict[int, int] = field(default_factory=dict)
    disconnected: int | None = None
    _rest: bytes = b""
    _id: int = 0

    @classmethod
    def connect(
        cls,
        port: int,
        context: ssl.SSLContext,
        client_id: str,
        *,
        session: ssl.SSLSession | None = None,
        clean: bool = True,
    ) -> "RawMqtt":
        """Connect and wait for the CONNACK."""
        raw = socket.create_connection(("127.0.0.1", port), 5)
        try:
            link = context.wrap_socket(raw, server_hostname="localhost", session=session)
            client = cls(link)
            properties = b"\x05\x11" + struct.pack(">I", 0 if clean else 600)
            header = text("MQTT") + bytes([5, 0x02 if clean else 0]) + struct.pack(">H", 60) + properties
            link.sendall(packet(0x10, header + text(client_id)))
            client.read_until(lambda: client.reason >= 0)
        except (ssl.SSLError, OSError) as error:
            raw.close()
            raise RefusedByBrokerError(str(error)) from error
        if client.reason:
            raise RefusedByBrokerError(f"CONNACK {client.reason:#04x}")
        return client

    def subscribe(self, topic_filter: str) -> int:
        """Subscribe with QoS 1; return the reason code."""
        self._id += 1
        before = len(self.granted)
        self.link.sendall(packet(0x82, struct.pack(">HB", self._id, 0) + text(topic_filter) + b"\x01"))
        self.read_until(lambda: len(self.granted) > before)
        return self.granted[-1]

    def publish(self, topic: str, payload: bytes, *, retain: bool = False) -> int:
        """Publish with QoS 1; return the reason code of the PUBACK."""
        self._id += 1
        number = self._id
        body = text(topic) + struct.pack(">HB", number, 0) + payload
        self.link.sendall(packet(0x33 if retain else 0x32, body))
        self.read_until(lambda: number in self.acknowledged or self.disconnected is not None)
        return self.acknowledged.get(number, -1)

    def ping(self) -> None:
        """Ask, and take what comes until the answer: everything that was sent before is then there."""
        self._pong = False
        self.link.sendall(b"\xc0\x00")
        self.read_until(lambda: self._pong)

    def is_alive(self) -> bool:
        """Whether the broker still answers."""
        try:
            self._take_what_is_there()
            self.ping()
        except (OSError, ssl.SSLError):
            return False
        return self.disconnected is None

    def _take_what_is_there(self) -> None:
        """Before anything is sent: a write to a connection that is closed throws away what could still be read."""
        self.link.settimeout(0.0)
        try:
            self.read_until(lambda: self.disconnected is not None)
        except (BlockingIOError, ssl.SSLWantReadError):
            pass
        finally:
            self.link.settimeout(5.0)

    def read_until(self, condition: object) -> None:
        assert callable(condition)
        while not condition():
            data = self.link.recv(65536)
            if not data:
                raise ConnectionError("the broker closed the connection")
            self._rest += data
            while self._take():
                pass

    def _take(self) -> bool:
        length, at, shift = 0, 1, 0
        while True:
            if at >= len(self._rest):
                return False
            byte = self._rest[at]
            length |= (byte & 127) << shift
            at, shift = at + 1, shift + 7
            if byte < 128:
                break
        if len(self._rest) < at + length:
            return False
        kind, body = self._rest[0], self._rest[at : at + length]
        self._rest = self._rest[at + length :]
        self._handle(kind, body)
        return True

    def _handle(self, kind: int, body: bytes) -> None:
        match kind >> 4:
            case 2:
                self.reason = body[1]
            case 3:
                size = int.from_bytes(body[:2], "big")
                topic, rest = body[2 : 2 + size].decode(), body[2 + size :]
                if kind & 6:
                    number, rest = rest[:2], rest[2:]
                    self.link.sendall(b"\x40\x02" + number)
                self.received.append((topic, rest[1 + rest[0] :]))
            case 4:
                self.acknowledged[int.from_bytes(body[:2], "big")] = body[2] if len(body) > 2 else 0
            case 9:
                self.granted.append(body[-1])
            case 13:
                self._pong = True
            case 14:
                self.disconnected = body[0] if body else 0

    def close(self) -> None:
        self.link.close()

    def say_goodbye(self) -> None:
        """Disconnect as MQTT and TLS want it, which makes a session that may be resumed; then close."""
        self.link.sendall(b"\xe0\x00")
        while self.link.recv(65536):  # until the broker says goodbye too
            pass
        self.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def text(value: str) -> bytes:
    data = value.encode()
    return struct.pack(">H", len(data)) + data


def packet(kind: int, body: bytes) -> bytes:
    length, left = b"", len(body)
    while True:
        left, low = divmod(left, 128)
        length += bytes([low | (0x80 if left else 0)])
        if not left:
            return bytes([kind]) + length + body
