"""Counts what passes over a connection, by what it is for. Pure: bytes in, figures out.

Only the framing of MQTT is read (MQTT 5 §2.1, the same in 3.1.1): type, length, and the topic of a PUBLISH. Counted is
what the MQTT client wrote and read, to the byte; TLS, TCP and IP come on top.
"""

from collections.abc import Callable
from typing import Final, Literal

Direction = Literal["out", "in"]

_PUBLISH: Final = 3
_LONGEST_LENGTH: Final = 4
"""Bytes of a remaining length (§1.5.5)."""


class PacketStream:
    """Cuts one direction of a connection into packets, however its bytes come."""

    def __init__(self) -> None:
        self._head = bytearray()  # of a packet that is not known yet
        self._left = 0  # bytes still to come of a packet that is
        self._topic: bytes | None = None

    def feed(self, data: bytes) -> list[tuple[bytes | None, int]]:
        """Return whose bytes these were: the topic of a PUBLISH, or None for any other packet; and how many."""
        found: list[tuple[bytes | None, int]] = []
        at = 0
        while at < len(data):
            if not self._left:
                size = self._missing()
                self._head += data[at : at + size]
                at += size
                if not self._missing():
                    found.append((self._topic, len(self._head)))
                    self._head.clear()
                continue
            size = min(self._left, len(data) - at)
            found.append((self._topic, size))
            self._left -= size
            at += size
        return found

    def finish(self) -> int:
        """Return how many bytes of a packet were left that nobody will ever know."""
        size = len(self._head)
        self._head.clear()
        return size

    def _missing(self) -> int:
        """Return how many bytes are needed to go on reading the head; at 0 the packet is known."""
        head = self._head
        if len(head) < 2:
            return 2 - len(head)
        length, end = 0, 1
        while True:
            if end > _LONGEST_LENGTH:
                break  # no MQTT: whoever reads it will end the connection
            if end == len(head):
                return 1
            length |= (head[end] & 0x7F) << (7 * (end - 1))
            end += 1
            if not head[end - 1] & 0x80:
                break
        self._topic = None
        if head[0] >> 4 == _PUBLISH and length >= 2:
            if len(head) < end + 2:
                return end + 2 - len(head)
            name = end + 2 + min(int.from_bytes(head[end : end + 2]), length - 2)
            if len(head) < name:
                return name - len(head)
            self._topic = bytes(head[end + 2 : name])
        self._left = max(0, end + length - len(head))
        return 0


class Tap:
    """Listens to both directions of one connection; belongs to its network thread."""

    def __init__(self, count: Callable[[bytes | None, Direction, int], None]) -> None:
        self._count = count
        self._streams: dict[Direction, PacketStream] = {"out": PacketStream(), "in": PacketStream()}

    def passed(self, direction: Direction, data: bytes) -> None:
        """Count bytes that were written or read."""
        for topic, size in self._streams[direction].feed(data):
            self._count(topic, direction, size)

    def finish(self) -> None:
        """The connection is over."""
        for direction, stream in self._streams.items():
            if size := stream.finish():
                self._count(None, direction, size)
