"""Between the producers and the writer: a bounded queue that drops nothing, and the acknowledgements.

Entries count against the bound from `offer` until they are committed, wherever they wait.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal

from gateway.errors import OutboxError, OutboxFullError
from gateway.outbox.database import Row
from gateway.outbox.quota import Amount
from gateway.values import Receipt
from gateway.wire.messages import RecordClass

Done = Callable[[Sequence[Receipt]], None]

BATCH_ENTRIES: Final = 2000
BATCH_BYTES: Final = 1024 * 1024
"""One transaction takes what is waiting, up to about so much: some 10 ms of work."""


@dataclass(slots=True, eq=False)
class Submission:
    """What one caller handed over at once: rows in order, stored in one transaction."""

    rows: Sequence[tuple[RecordClass, Row]]
    amounts: Mapping[RecordClass, Amount]
    done: Done | None
    abandoned: Callable[[OutboxError], None] | None = None  # told when it will not be stored after all
    state: Literal["queued", "parked", "taken", "settled", "withdrawn"] = "queued"

    @property
    def entries(self) -> int:
        return len(self.rows)


@dataclass(frozen=True, slots=True)
class Lead:
    """A mark of the bridge that speaks of other rows than those of the file; `done` gets the writer's decision."""

    record_class: RecordClass
    epoch: str
    mark: int
    done: Callable[[bool | OutboxError], None]


Marks = dict[tuple[RecordClass, str], int]
"""Acknowledgements by class and epoch: while one waits, another file may take the place of the one it speaks of."""


@dataclass(frozen=True, slots=True)
class Work:
    """What the writer found to do."""

    submissions: tuple[Submission, ...] = ()
    marks: Mapping[tuple[RecordClass, str], int] = field(default_factory=dict)
    leads: tuple[Lead, ...] = ()
    damage: OutboxError | None = None
    closing: bool = False


class Mailbox:
    """Any thread puts in, one thread takes out."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._lock = threading.Lock()
        self._filled = threading.Condition(self._lock)
        self._room = threading.Condition(self._lock)
        self._queue: deque[Submission] = deque()
        self._waiting = 0
        self._parked = 0
        self._refusing: frozenset[RecordClass] = frozenset()
        self._marks: Marks = {}
        self._leads: list[Lead] = []
        self._damage: OutboxError | None = None
        self._closing = False
        self._stopped: str | None = None  # why nothing can be handed over
        self._writer: int | None = None

    # ---- producers -------------------------------------------------------------------------------

    def offer(self, submission: Submission, timeout: float | None) -> None:
        """Hand a submission over; wait while there is no room.

        A producer of a class that is full waits once half of the queue is taken by what waits for that class, so
        that the others go on.

        Raises:
            OutboxFullError: no room within `timeout` seconds.
            OutboxError: the outbox is closed or has failed.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        with self._lock:
            while True:
                if self._stopped is not None:
                    raise OutboxError(self._stopped)
                if self._has_room(submission) or threading.get_ident() == self._writer:
                    break
                left = None if deadline is None else deadline - time.monotonic()
                if (left is not None and left <= 0) or not self._room.wait(left):
                    raise OutboxFullError(f"{self._waiting} entries are waiting for the disk: nothing was stored")
            self._queue.append(submission)
            self._waiting += submission.entries
            self._filled.notify()

    def _has_room(self, submission: Submission) -> bool:
        if self._refusing.intersection(submission.amounts) and self._parked + submission.entries > self._capacity // 2:
            return self._parked == 0
        return self._waiting == 0 or self._waiting + submission.entries <= self._capacity

    def withdraw(self, submission: Submission) -> bool:
        """Take a submission back; False when the writer has it already, or has stored it."""
        with self._lock:
            if submission.state not in ("queued", "parked"):
                return False
            if submission.state == "parked":
                self._parked -= submission.entries
            submission.state = "withdrawn"
            self._waiting -= submission.entries
            self._room.notify_all()
            return True

    def acknowledge(self, record_class: RecordClass, epoch: str, mark: int) -> None:
        """Leave an acknowledgement for the writer."""
        with self._lock:
            self._marks[record_class, epoch] = max(mark, self._marks.get((record_class, epoch), 0))
            self._filled.notify()

    def follow(self, lead: Lead) -> None:
        """Leave a mark for the writer that is ahead of the file.

        Raises:
            OutboxError: the outbox is closed or has failed.
        """
        with self._lock:
            if self._stopped is not None:
                raise OutboxError(self._stopped)
            self._leads.append(lead)
            self._filled.notify()

    def report(self, error: OutboxError) -> None:
        """Have the writer raise what another thread has found out about the file."""
        with self._lock:
            self._damage = self._damage or error
            self._filled.notify()

    def close(self) -> None:
        """Take nothing new; the writer finishes what is there."""
        with self._lock:
            self._closing = True
            self._stop("the outbox is closed")

    def fail(self, reason: str) -> None:
        """Take nothing new until `resume`; what is waiting stays."""
        with self._lock:
            self._stop(reason)

    def resume(self) -> None:
        """Take entries again, after a failure."""
        with self._lock:
            self._damage = None
            self._marks = {}
            self._leads = []
            if not self._closing:
                self._stopped = None

    def _stop(self, reason: str) -> None:
        self._stopped = self._stopped or reason
        self._filled.notify_all()
        self._room.notify_all()

    @property
    def waiting(self) -> int:
        """Entries that are not yet durable."""
        return self._waiting

    @property
    def parked(self) -> int:
        """Entries that wait because their class is full."""
        return self._parked

    # ---- the writer ------------------------------------------------------------------------------

    def owned_by(self, thread: int) -> None:
        """Name the writer's thread, which never waits for itself."""
        self._writer = thread

    def take(self, timeout: float, *, submissions: bool) -> Work:
        """Wait for work; return at once when there is some. With `submissions` off, leave those in the queue."""
        with self._lock:
            if timeout > 0 and not self._has_work(submissions=submissions):
                self._filled.wait(timeout)
            taken: list[Submission] = []
            entries = size = 0
            while submissions and self._queue and entries < BATCH_ENTRIES and size < BATCH_BYTES:
                submission = self._queue.popleft()
                if submission.state == "withdrawn":
                    continue
                submission.state = "taken"
                taken.append(submission)
                entries += submission.entries
                size += sum(amount.disk_bytes for amount in submission.amounts.values())
            marks, self._marks = self._marks, {}
            leads, self._leads = self._leads, []
            damage, self._damage = self._damage, None
            return Work(tuple(taken), marks, tuple(leads), damage, self._closing)

    def _has_work(self, *, submissions: bool) -> bool:
        return bool((submissions and self._queue) or self._marks or self._leads or self._damage or self._closing)

    def prepend(self, submission: Submission) -> None:
        """Put a submission of the outbox itself before all others, whether there is room or not."""
        with self._lock:
            self._waiting += submission.entries
            self._queue.appendleft(submission)
            self._filled.notify()

    def put_back(self, submissions: Sequence[Submission]) -> None:
        """Put submissions back to the head of the queue, in order."""
        with self._lock:
            for submission in reversed(submissions):
                submission.state = "queued"
                self._queue.appendleft(submission)

    def park(self, parked: Sequence[Submission], refusing: frozenset[RecordClass]) -> None:
        """Note which submissions wait with the writer, and for which classes."""
        with self._lock:
            for submission in parked:
                if submission.state != "withdrawn":
                    submission.state = "parked"
            self._parked = sum(submission.entries for submission in parked if submission.state == "parked")
            self._refusing = refusing
            self._room.notify_all()

    def unpark(self, parked: Iterable[Submission]) -> list[Submission]:
        """Take the parked ones in hand again; those withdrawn meanwhile are left out."""
        with self._lock:
            kept = [submission for submission in parked if submission.state == "parked"]
            for submission in kept:
                submission.state = "taken"
            return kept

    def settled(self, submissions: Iterable[Submission]) -> None:
        """Note that these are durable, or given up."""
        with self._lock:
            for submission in submissions:
                submission.state = "settled"
                self._waiting -= submission.entries
            self._room.notify_all()

    def empty(self) -> list[Submission]:
        """Take everything that is left, at the very end."""
        with self._lock:
            left = [submission for submission in self._queue if submission.state == "queued"]
            for submission in left:
                submission.state = "taken"
            self._queue.clear()
            return left
