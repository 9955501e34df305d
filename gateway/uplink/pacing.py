"""How much may be on its way at once, and how long the broker may take to answer. Pure: the time comes in.

The window follows the delay: it grows with each acknowledged batch and shrinks when acks take over a second longer than
they did at best, so that on a thin link a fresh critical record does not queue behind megabytes already on their way.
"""

from typing import Final

SECOND: Final = 1_000_000_000
QUEUEING_LIMIT_NS: Final = SECOND
FIRST_WINDOW: Final = 4
MAX_PUBACK_DOUBLINGS: Final = 4
"""What a thin link needs longer for than the broker may be silent, passes in one of the next connections."""


class Window:
    """How many batches may be out at once on the present connection."""

    def __init__(self, in_flight: int) -> None:
        """`in_flight`: never more than so many, whatever the broker would take."""
        self._limit = in_flight
        self._cap = in_flight
        self._size = float(min(FIRST_WINDOW, in_flight))
        self._best_delay_ns: int | None = None
        self._shrunk_ns = 0

    @property
    def room(self) -> int:
        """Batches that may be out at once now."""
        return int(min(self._size, self._cap))

    def begin(self, receive_maximum: int) -> None:
        """Start small: a connection is there, whose broker takes so many messages before it has answered one."""
        self._cap = max(1, min(self._limit, receive_maximum))
        self._size = float(min(FIRST_WINDOW, self._cap))
        self._best_delay_ns = None

    def halve(self) -> None:
        """Become smaller because an ack is overdue."""
        self._size = max(1.0, self._size / 2)

    def steer(self, now_ns: int, sent_ns: int) -> None:
        """Fit the window to the delay of an acknowledged batch."""
        delay = now_ns - sent_ns
        self._best_delay_ns = delay if self._best_delay_ns is None else min(self._best_delay_ns, delay)
        if delay - self._best_delay_ns <= QUEUEING_LIMIT_NS:
            self._size = min(float(self._cap), self._size + 1)
        elif now_ns - self._shrunk_ns >= delay:  # once for all that was sent into the same queue
            self._size = max(2.0, self._size * 0.7)
            self._shrunk_ns = now_ns


class BrokerPatience:
    """How long the broker may take to answer a batch: longer on each connection after one that was found stuck."""

    def __init__(self, timeout_seconds: float) -> None:
        """`timeout_seconds`: what it has at first."""
        self._timeout_seconds = timeout_seconds
        self._doublings = 0
        self._stuck = False
        self._answered = 0  # the latest ticket that the broker has answered on this connection
        self._answered_ns = 0

    def link_up(self) -> None:
        """A new connection: nothing has been answered on it."""
        self._answered = self._answered_ns = 0

    def link_down(self) -> None:
        """The connection is gone: it may have been the link that is thin, so the next one gets twice the time."""
        if self._stuck:
            self._doublings = min(self._doublings + 1, MAX_PUBACK_DOUBLINGS)
            self._stuck = False

    def answered(self, ticket: int, now_ns: int) -> None:
        """The broker has answered a batch."""
        self._answered = max(self._answered, ticket)
        self._answered_ns = now_ns

    def taken(self, ticket: int, sent_ns: int, now_ns: int) -> None:
        """The broker has taken a batch: a quick answer ends the patience that a thin link has needed."""
        if now_ns - self._waiting_since_ns(ticket, sent_ns) <= self._timeout_seconds / 2 * SECOND:
            self._doublings = 0
        self.answered(ticket, now_ns)

    def deadline(self, ticket: int, sent_ns: int) -> int:
        """Return when the broker must have answered a batch."""
        limit = int(self._timeout_seconds * SECOND) << self._doublings
        return self._waiting_since_ns(ticket, sent_ns) + limit

    def note_stuck(self) -> None:
        """Remember that a deadline of this connection has passed."""
        self._stuck = True

    def _waiting_since_ns(self, ticket: int, sent_ns: int) -> int:
        """Since when an answer may be expected: until the one before was answered, that was on its way."""
        # Brokers answer in order (MQTT 5 §4.6): what is passed over is not on its way any more.
        return sent_ns if ticket < self._answered else max(sent_ns, self._answered_ns)
