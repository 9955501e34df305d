"""Where each class stands: what is confirmed, what is out, what waits. Pure state; `delivery` decides from it."""

from collections import deque
from dataclasses import dataclass, field


@dataclass(slots=True)
class Batch:
    """Rows that were sent together and are not confirmed."""

    ticket: int
    first: int
    last: int
    sent_ns: int
    taken: bool = False  # the broker has answered


@dataclass(slots=True)
class Stream:
    """One class."""

    confirmed: int = 0
    sent_to: int = 0
    sent_high: int = 0
    taken_high: int = 0  # up to here the broker has answered everything that was sent, on some connection of this run
    stored_high: int = 0  # highest row seen in the store when the epoch began, or when it was numbered again
    doubted: bool = False  # nothing was heard of a mark that should be there: one record goes ahead of the others
    met: bool = False  # so it has, or the bridge has confirmed what this run sent
    batches: deque[Batch] = field(default_factory=deque)
    has_more: bool = False
    offers: int = 0
    waiting_since_ns: int = 0
    progress_ns: int = 0
    timeouts: int = 0
    rejections: int = 0
    unheard: int = 0  # batches in a row that the broker had nobody for
    not_before_ns: int = 0
    turn: int = 0
    resent: int = 0
    unread: list[tuple[int, int]] = field(default_factory=list)  # above the first, up to the second: in dead letters
    untold: bool = False  # the bridge has not heard yet which numbers those were

    def go_back(self) -> None:
        """Forget what is outstanding: it will be sent again."""
        self.batches.clear()
        self.has_more = self.has_more or self.sent_to > self.confirmed
        self.sent_to = self.confirmed
        self.turn += 1
