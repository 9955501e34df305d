"""When a message of the local broker is acknowledged: once those who took it have dealt with it, in order of receipt.

MQTT ties three things together that one would rather have apart, and this is where they are held together:

* PUBACKs go out in the order in which the messages came [MQTT-4.6.0-2], so one that takes long holds up all behind it.
* At most Receive Maximum messages are unacknowledged; then the broker sends nothing more, for any subscription.
* Whatever is not acknowledged when a connection ends comes again on the next, under its old packet identifier, if the
  broker has kept the session [MQTT-4.4.0-1]. A PUBACK belongs to the connection that its message came on.

So a taker that stands still would silence the others. One that does is *behind*: its messages are acknowledged although
it has not dealt with them, and further ones at receipt, until it has dealt with all it had in hand then.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Final, Protocol

import structlog

from gateway.values import Done

log = structlog.get_logger()

RECEIVE_MAXIMUM: Final = 1000
"""Announced with MQTT 5: so many messages may be unacknowledged."""
MOST_UNACKNOWLEDGED: Final = 2 * RECEIVE_MAXIMUM
"""Nothing more is read while so many are unacknowledged. Mosquitto 2.0 hands over whatever it has queued for a client
that is slow, whatever Receive Maximum says; what is not read stays with it, and costs no memory here."""
UNANNOUNCED_MAXIMUM: Final = 20
"""With MQTT 3.1.1 the broker decides; mosquitto's default is the lowest that is common."""
FEW: Final = 5
"""No broker stops sending because of so few unacknowledged messages."""
STUCK_SECONDS: Final = 2.0
"""Full for so long without any progress, the one that holds up the others is behind."""
SLOW_SECONDS: Final = 10.0
"""Full, and the oldest message in hand for so long, likewise."""
QUIET_SECONDS: Final = 30.0
"""Nothing came for so long although there should be room: perhaps the broker allows less than it was told."""


class Acknowledger(Protocol):
    """One connection."""

    def acknowledge(self, packets: Sequence[int]) -> None:
        """Send PUBACKs in this order; any thread may call it, and it never waits."""
        ...


@dataclass(slots=True, eq=False)
class Receipt:
    """One message, until all who have taken it are done. `done` is for who hands it on; takers call `hold` before."""

    number: int
    packet: int
    topic: str
    payload: bytes
    arrived: float  # monotonic
    owner: "Receipts"
    waits_for: set[str] = field(default_factory=set)  # of these takers
    handed_on: bool = False

    def hold(self, taker: str) -> Done:
        """Wait for a taker; returns what it calls when it is done, from any thread."""
        return self.owner.hold(self, taker)

    def done(self) -> None:
        """All takers have been told: from here on only those that hold it are waited for."""
        self.owner.handed_on(self)

    @property
    def complete(self) -> bool:
        """Whether it may be acknowledged."""
        return self.handed_on and not self.waits_for


class Receipts:
    """The unacknowledged messages of one session, over all its connections. Safe to use from any thread."""

    def __init__(self, at_most: int = RECEIVE_MAXIMUM, *, monotonic: Callable[[], float] = time.monotonic) -> None:
        """`at_most`: how many messages the broker leaves unacknowledged before it stops."""
        self.at_most = at_most
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._connection: Acknowledger | None = None
        self._queue: deque[Receipt] = deque()  # of the present connection, in order of receipt
        self._earlier: dict[int, Receipt] = {}  # of earlier connections: the broker will send these again
        self._in_hand: dict[str, dict[int, Receipt]] = {}  # by taker and number, the oldest first
        self._behind: dict[str, int] = {}  # by taker: it has caught up once all up to this number are done
        self._number = 0
        self._moved = self._heard = monotonic()

    def expect(self, taker: str) -> None:
        """Know a taker before its first message: from the second on, one may hold up others."""
        with self._lock:
            self._in_hand.setdefault(taker, {})

    @property
    def unacknowledged(self) -> int:
        """Messages of the present connection without a PUBACK."""
        return len(self._queue)

    @property
    def has_enough(self) -> bool:
        """Whether no more messages should be read before some of those at hand are dealt with."""
        return len(self._queue) >= MOST_UNACKNOWLEDGED

    @property
    def behind(self) -> tuple[str, ...]:
        """Takers whose messages are acknowledged before they are dealt with."""
        return tuple(self._behind)

    # ---- told by the connection, on its thread -------------------------------------------------------

    def connected(self, connection: Acknowledger, *, session_present: bool) -> None:
        """A connection is there; with the session, what was not acknowledged will come again."""
        with self._lock:
            self._set_aside()
            if not session_present:
                self._earlier.clear()
            self._connection = connection
            self._moved = self._heard = self._monotonic()

    def disconnected(self, connection: Acknowledger) -> None:
        """A connection is gone; nothing more is acknowledged on it."""
        with self._lock:
            if connection is self._connection:
                self._connection = None
                self._set_aside()

    def arrived(self, connection: Acknowledger, packet: int, topic: str, payload: bytes) -> Receipt | None:
        """Note a message of QoS 1. None if it has come before and is in hand, or done and not acknowledged.

        Only messages that were never acknowledged are told from new ones like this: the broker may use their packet
        identifiers for nothing else. One whose PUBACK got lost comes as a new message, which is safe.
        """
        with self._lock:
            now = self._heard = self._monotonic()
            receipt = self._earlier.pop(packet, None)
            again = receipt is not None and (receipt.topic, receipt.payload) == (topic, payload)
            if receipt is None or not again:
                self._number += 1
                receipt = Receipt(self._number, packet, topic, payload, now, self)
            if connection is self._connection:
                if not self._queue:
                    self._moved = now
                self._queue.append(receipt)
                self._send()
        return None if again else receipt

    def useless(self, connection: Acknowledger, packet: int) -> None:
        """Note a message that nobody can take; it is acknowledged in its turn."""
        receipt = self.arrived(connection, packet, "", b"")
        if receipt is not None:
            receipt.done()

    def look(self) -> None:
        """Find out who holds up the others; called about once a second."""
        with self._lock:
            if not self._queue:
                return
            now, head = self._monotonic(), self._queue[0]
            if not self._is_held_up(head, now):
                return
            takers = [taker for taker in head.waits_for if taker not in self._behind]
            for taker in sorted(takers):
                self._give_up(taker)
            self._send()

    def _is_held_up(self, head: Receipt, now: float) -> bool:
        still = now - self._moved
        if len(self._queue) >= self.at_most:
            # One taker alone holds up nobody: what it cannot take yet is better kept by the broker.
            return len(self._in_hand) > 1 and (still >= STUCK_SECONDS or now - head.arrived >= SLOW_SECONDS)
        return len(self._queue) > FEW and min(still, now - self._heard) >= QUIET_SECONDS

    def _give_up(self, taker: str) -> None:
        held = self._in_hand[taker]
        self._behind[taker] = max(held)
        for receipt in held.values():
            receipt.waits_for.discard(taker)
        log.warning(
            "leaf_readings_unprotected",
            taker=taker,
            messages=len(held),
            remedy="its messages are acknowledged before they are dealt with, so that others are not held up; a kill "
            "now loses them: see why its pipeline does not keep up",
        )

    def _set_aside(self) -> None:
        """Move what the present connection has not acknowledged to what will come again."""
        self._earlier.update((receipt.packet, receipt) for receipt in self._queue)
        self._queue.clear()

    # ---- told by those who take messages, on any thread ----------------------------------------------

    def hold(self, receipt: Receipt, taker: str) -> Done:
        """See `Receipt.hold`."""
        with self._lock:
            self._in_hand.setdefault(taker, {})[receipt.number] = receipt
            if taker not in self._behind:
                receipt.waits_for.add(taker)
        return partial(self._let_go, receipt, taker)

    def handed_on(self, receipt: Receipt) -> None:
        """See `Receipt.done`."""
        with self._lock:
            receipt.handed_on = True
            self._send()

    def _let_go(self, receipt: Receipt, taker: str) -> None:
        with self._lock:
            held = self._in_hand[taker]
            if held.pop(receipt.number, None) is None:
                return  # said before
            receipt.waits_for.discard(taker)
            until = self._behind.get(taker)
            if until is not None and next(iter(held), until + 1) > until:
                del self._behind[taker]
                log.info("leaf_readings_protected_again", taker=taker)
            self._send()

    def _send(self) -> None:
        """Acknowledge what is done and has nothing before it that is not."""
        if self._connection is None:
            return
        packets: list[int] = []
        while self._queue and self._queue[0].complete:
            packets.append(self._queue.popleft().packet)
        if packets:
            self._moved = self._monotonic()
            self._connection.acknowledge(packets)
