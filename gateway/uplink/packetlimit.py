"""How large a packet the present broker takes, as far as it says so or its behaviour shows. Pure.

MQTT 5 brokers announce a Maximum Packet Size, and some refuse larger packets (0x95) without having announced it. With
MQTT 3.1.1 there is no word for it: the broker cuts the connection, and would cut every next one at the same batch. So
after some cuts in a row with a batch unanswered, smaller ones are tried. Links cut connections too, so a guess is not
kept for ever: after some answered batches larger ones are tried, later each time that leads to cuts again. A guess only
makes batches smaller; that a record cannot be sent at all is believed from the broker's own words alone.
"""

from typing import Final

from gateway.uplink.exchange import PACKET_TOO_LARGE, Ending

CUTS_BELIEVED: Final = 3
SMALLEST_GUESS_BYTES: Final = 512
LARGEST_GUESS_BYTES: Final = 16 * 1024 * 1024
FIRST_GROWTH: Final = 20
LAST_GROWTH: Final = 2000
"""Answered batches in a row after which twice the size is tried."""


class PacketLimit:
    """What is known of one broker; `begin` with each connection."""

    def __init__(self) -> None:
        self._broker = ""
        self._told: int | None = None
        self._guess: int | None = None
        self._cuts = 0
        self._answers = 0  # in a row, since the guess was made or enlarged
        self._growth = FIRST_GROWTH
        self._has_grown = False

    def begin(self, broker: str) -> None:
        """A connection to a broker is there; what was known of another does not count for it."""
        if broker != self._broker:
            self._broker = broker
            self._told = self._guess = None
            self._cuts = self._answers = 0
            self._growth = FIRST_GROWTH
            self._has_grown = False

    def certain(self, announced_bytes: int) -> int:
        """Return the size that no packet may exceed."""
        return announced_bytes if self._told is None else min(announced_bytes, self._told)

    def preferred(self, announced_bytes: int) -> int:
        """Return the size that batches should not exceed."""
        certain = self.certain(announced_bytes)
        return certain if self._guess is None else min(certain, self._guess)

    def refused(self, size_bytes: int) -> None:
        """The broker has said that a packet of this size is too large."""
        self._told = max(1, self.certain(size_bytes - 1))

    def answered(self) -> None:
        """The broker has answered a batch, so what it did before was not about sizes."""
        self._cuts = 0
        if self._guess is None:
            return
        self._answers += 1
        if self._answers >= self._growth:
            self._answers = 0
            self._has_grown = True
            self._guess = self._guess * 2 if self._guess < LARGEST_GUESS_BYTES else None

    def ended(self, ending: Ending, largest_unanswered: int) -> bool:
        """A connection is over with packets unanswered, the largest of this size; return whether the guess changed."""
        if not largest_unanswered:
            return False
        if ending.code == PACKET_TOO_LARGE:
            self.refused(largest_unanswered)
            return False
        if ending.code is not None or ending.lane != "busy":
            return False
        self._cuts += 1
        if self._cuts < CUTS_BELIEVED:
            return False
        self._cuts = self._answers = 0
        if self._has_grown:
            self._growth = min(self._growth * 2, LAST_GROWTH)
            self._has_grown = False
        self._guess = max(SMALLEST_GUESS_BYTES, largest_unanswered // 2)
        return True
