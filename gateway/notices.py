"""Records what the cloud must know about the gateway itself, from wherever it is noticed."""

import asyncio
import time
from collections.abc import Callable, Sequence
from functools import partial

import structlog

from gateway.errors import OutboxError
from gateway.sealing import Severity
from gateway.values import Entry, Receipt
from gateway.wire.messages import Notice, RecordClass
from gateway.wire.times import rfc3339

log = structlog.get_logger()

Submit = Callable[[Sequence[Entry], Callable[[Sequence[Receipt]], None]], None]


class Notices:
    """Makes records of class `critical`."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, submit: Submit, wall_ns: Callable[[], int] = time.time_ns
    ) -> None:
        """`submit` hands entries to the outbox, and may wait for room on the disk."""
        self._loop = loop
        self._submit = submit
        self._wall_ns = wall_ns
        self._told_conflict = False
        self._pending: set[asyncio.Future[None]] = set()

    def note(self, code: str, severity: Severity, detail: str) -> None:
        """Record a notice from the event loop, which must not wait for the disk."""
        pending = self._loop.run_in_executor(None, self._record, code, severity, detail)
        self._pending.add(pending)
        pending.add_done_callback(self._pending.discard)

    def note_from_thread(self, code: str, severity: Severity, detail: str) -> None:
        """Record a notice from another thread."""
        self._loop.call_soon_threadsafe(partial(self.note, code, severity, detail))

    async def settled(self, at_most_seconds: float) -> None:
        """Wait until everything noted so far has been handed over; a full disk may keep it waiting."""
        await asyncio.sleep(0)  # what threads have noted comes to the event loop first
        if self._pending:
            await asyncio.wait(self._pending, timeout=at_most_seconds)

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

    def _record(self, code: str, severity: Severity, detail: str) -> None:
        now_ns = self._wall_ns()
        notice = Notice(code=code, severity=severity, detail=detail, at=rfc3339(now_ns))
        try:
            self._submit([Entry("critical", "notice", notice, now_ns)], lambda _: None)
        except OutboxError as error:  # the gateway is stopping
            log.warning("notice_not_recorded", code=code, error=str(error))
