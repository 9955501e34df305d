"""What passes between a client and its broker, as values. No MQTT library here."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Literal

from gateway.errors import UplinkError
from gateway.uplink.backoff import Lane
from gateway.uplink.receipts import Receipt

PACKET_TOO_LARGE: Final = 0x95
NO_MATCHING_SUBSCRIBERS: Final = 0x10


class ConnectionLostError(UplinkError):
    """The connection ended before the broker answered; whether it has the message is not known."""


class ConnectionRefusedByBrokerError(UplinkError):
    """A connection could not be made; `ending` says why."""

    def __init__(self, ending: "Ending") -> None:
        super().__init__(ending.reason)
        self.ending = ending


@dataclass(frozen=True, slots=True)
class Ending:
    """Why a connection is over, and how soon another makes sense."""

    lane: Lane
    reason: str
    code: int | None = None  # the MQTT reason code, where there was one
    distrust: bool = False  # the broker's certificate was not believed
    renewal: bool = False  # ended here, to show a new certificate
    doubt: bool = False  # the broker took the connection and ended it without a word: it may not believe what it saw


@dataclass(frozen=True, slots=True)
class Terms:
    """What the server granted in its CONNACK."""

    session_present: bool
    client_id: str
    receive_maximum: int
    max_packet_bytes: int
    keepalive_seconds: int
    maximum_qos: int
    retain_available: bool


@dataclass(frozen=True, slots=True)
class PublishResult:
    """The answer of the broker to one message. It says nothing about durability: brokers lie about that."""

    code: int | None  # None: MQTT 3.1.1 and QoS 0 give no reason
    reason: str = ""

    @property
    def failed(self) -> bool:
        """Whether the broker refused the message (MQTT 5 §4.13.2: 0x80 and above)."""
        return self.code is not None and self.code >= 0x80


@dataclass(frozen=True, slots=True)
class Outgoing:
    """A message to publish, QoS 0 or 1."""

    topic: str
    payload: bytes
    qos: Literal[0, 1] = 1
    retain: bool = False
    content_type: str | None = None
    user_properties: Mapping[str, str] = field(default_factory=dict)
    expiry_seconds: int | None = None

    @property
    def packet_bytes(self) -> int:
        """An upper bound of the size of the packet this makes."""
        texts = [self.content_type or "", *self.user_properties, *self.user_properties.values()]
        properties = sum(len(text.encode()) + 5 for text in texts)
        return 5 + 2 + len(self.topic.encode()) + 2 + 4 + 5 + properties + len(self.payload)

    def exact_bytes(self, *, is_v5: bool, qos: int) -> int:
        """Return the size of the packet this makes (MQTT 5 §3.3, MQTT 3.1.1 §3.3)."""
        length = 2 + len(self.topic.encode()) + (2 if qos else 0) + len(self.payload)
        if is_v5:
            properties = 0 if self.content_type is None else 3 + len(self.content_type.encode())
            properties += 0 if self.expiry_seconds is None else 5
            for name, value in self.user_properties.items():
                properties += 5 + len(name.encode()) + len(value.encode())
            length += _varint_bytes(properties) + properties
        return 1 + _varint_bytes(length) + length


def _varint_bytes(value: int) -> int:
    """Return how long a variable byte integer is (MQTT 5 §1.5.5)."""
    return 1 if value < 128 else 2 if value < 16_384 else 3 if value < 2_097_152 else 4


@dataclass(frozen=True, slots=True)
class Incoming:
    """A message received."""

    topic: str
    payload: bytes
    retained: bool
    receipt: Receipt | None = field(default=None, compare=False)  # where acknowledging is not left to the library


@dataclass(frozen=True, slots=True)
class ConnectOptions:
    """How to introduce oneself to a broker."""

    client_id: str
    will: tuple[str, bytes] | None = None  # published retained, QoS 1
    clean_start: bool = True
    session_expiry_seconds: int = 0
    in_flight: int = 20
    receive_maximum: int | None = None  # told to the broker (MQTT 5); None: no limit
    max_incoming_bytes: int = 1024 * 1024
    max_waiting_messages: int = 1000  # received, not yet taken by the event loop; more are dropped and counted
    connect_timeout_seconds: float = 5.0
    identity_client_id: str = ""  # to brokers that know us by our certificate, and may bind it to that; "": the same


@dataclass(slots=True)
class Drops:
    """Messages received that could not be handed on."""

    bad_topic: int = 0
    overflow: int = 0
