"""Decides when a broker is left for another one of the list because no bridge answers there.

A broker that takes connections is no way to the cloud when no bridge listens to it. Where it says so itself (MQTT 5
§3.4.2.1, "No matching subscribers") little patience is needed. Where somebody takes the records and acknowledges
nothing, it may as well be the bridge's database that is away, which no other broker helps against: more patience. Both
grow each time, so that a fleet whose bridge is down does not change brokers all the time.
"""

from dataclasses import dataclass
from typing import Final

from gateway.uplink.delivery import Delivery

NOBODY_SECONDS: Final = 10.0
SILENT_SECONDS: Final = 60.0
MAX_DOUBLINGS: Final = 4
NOBODY_LISTENS: Final = "the broker has nobody who takes records: start the bridge, or look at its link"
SILENT: Final = "nothing that was sent is acknowledged by a bridge"


def reason_of(delivery: Delivery) -> str:
    """Say why records wait although a broker is connected; "" if they do not."""
    if delivery.is_unheard:
        return NOBODY_LISTENS
    return SILENT if delivery.is_unacknowledged else ""


@dataclass(slots=True)
class Unanswered:
    """How long no bridge has answered on the present connection. Times are monotonic nanoseconds."""

    since_ns: int | None = None
    in_a_row: int = 0  # brokers that were left for it since a bridge was heard last
    confirmed: int = 0

    def begin(self) -> None:
        """A connection is there."""
        self.since_ns = None

    def hears(self, confirmed: int) -> bool:
        """Take note of what has been confirmed so far; return whether that is more than before."""
        heard = confirmed != self.confirmed
        if heard:  # also of one class alone: a bridge is there, and what keeps the others is no matter of the broker's
            self.confirmed, self.in_a_row, self.since_ns = confirmed, 0, None
        return heard

    def is_over(self, now_ns: int, reason: str) -> bool:
        """Tell whether it is time to try another broker."""
        if not reason:
            self.since_ns = None
            return False
        if self.since_ns is None:
            self.since_ns = now_ns
        patience = NOBODY_SECONDS if reason == NOBODY_LISTENS else SILENT_SECONDS
        return now_ns - self.since_ns >= patience * 2.0 ** min(self.in_a_row, MAX_DOUBLINGS) * 1e9

    def left(self) -> None:
        """The broker was left."""
        self.since_ns = None
        self.in_a_row += 1
