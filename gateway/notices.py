"""Records what the cloud must know about the gateway itself, from wherever it is noticed."""

import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

import structlog

from gateway.errors import OutboxError
from gateway.sealing import Severity
from gateway.threads import in_thread
from gateway.values import Entry, Receipt
from gateway.wire.messages import Notice, RecordClass
from gateway.wire.times import rfc3339

log = structlog.get_logger()

Submit = Callable[[Sequence[Entry], Callable[[Sequence[Receipt]], None]], None]

MAX_WAITING: Final = 1000
"""Notices that wait for a disk. Those beyond are counted by their codes, and one notice names them afterwards."""


@dataclass(frozen=True, slots=True)
class _Noted:
    notice: Notice
    at_ns: int  # UTC, when it was noticed

    def entry(self) -> Entry:
        return Entry("critical", "notice", self.notice, self.at_ns)


class Notices:
    """Makes records of class `critical`. Every method but `settled` may be called from any thread, and returns at once.

    The outbox may take nothing for as long as a disk is away. Notices wait for it in order, with one thread to hand
    them over, which is there only while any wait; nothing else in the program waits behind them.
    """

    def __init__(
        self, submit: Submit, wall_ns: Callable[[], int] = time.time_ns, max_waiting: int = MAX_WAITING
    ) -> None:
        """`submit` hands entries to the outbox, and may wait for room on the disk."""
        self._submit = submit
        self._wall_ns = wall_ns
        self._max_waiting = max_waiting
        self._told_conflict = False
        self._lock = threading.Lock()
        self._waiting: deque[_Noted] = deque()
        self._left_out: Counter[str] = Counter()
        self._idle = threading.Event()  # no thread is at it
        self._idle.set()

    def note(self, code: str, severity: Severity, detail: str) -> None:
        """Record a notice."""
        noted = self._noted(code, severity, detail)
        with self._lock:
            if len(self._waiting) >= self._max_waiting:
                self._leave_out(code)
                return
            self._waiting.append(noted)
            if not self._idle.is_set():
                return
            self._idle.clear()
        threading.Thread(target=self._hand_over, name="notices", daemon=True).start()

    @property
    def waiting(self) -> int:
        """How many wait for the outbox, besides the one that is being handed over."""
        return len(self._waiting)

    async def settled(self, at_most_seconds: float) -> None:
        """Wait until everything noted so far has been handed over; a full disk may keep it waiting."""
        await in_thread("notices-wait", partial(self._idle.wait, at_most_seconds))

    def in_conflict(self, record_class: RecordClass, conflicts: int) -> None:
        """Write down, once a run, that another device uses this identity: the notice itself may be in conflict."""
        if self._told_conflict:
            return
        self._told_conflict = True
        self.note(
            "identity_in_conflict",
            "error",
            f"{conflicts} records of class {record_class} came to the cloud under numbers of other records: "
            "another device has this gateway's id and a copy of its state directory",
        )

    def _noted(self, code: str, severity: Severity, detail: str) -> _Noted:
        at_ns = self._wall_ns()
        return _Noted(Notice(code=code, severity=severity, detail=detail, at=rfc3339(at_ns)), at_ns)

    def _leave_out(self, code: str) -> None:
        if not self._left_out:
            log.error("notices_left_out", waiting=len(self._waiting), remedy="look at the disk of the outbox")
        self._left_out[code] += 1

    def _hand_over(self) -> None:
        while (noted := self._next()) is not None:
            try:
                self._submit([noted.entry()], _nothing)
            except OutboxError as error:  # the gateway is stopping
                log.warning("notice_not_recorded", code=noted.notice.code, error=str(error))
            except Exception:  # the thread is supervised here: the notices behind this one must not stay behind
                log.exception("notice_not_recorded", code=noted.notice.code)

    def _next(self) -> _Noted | None:
        """Return what is to be handed over next; after None the next `note` begins another thread."""
        with self._lock:
            if self._waiting:
                return self._waiting.popleft()
            if self._left_out:
                codes = ", ".join(f"{code} {count} times" for code, count in self._left_out.most_common())
                self._left_out.clear()
                return self._noted("notices_left_out", "error", f"the outbox took nothing for long; not kept: {codes}")
            self._idle.set()
            return None


def _nothing(_receipts: Sequence[Receipt]) -> None:
    """Take the receipts: nobody waits for a notice to be durable."""
