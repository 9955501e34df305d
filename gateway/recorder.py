"""Keeps an outbox open: hands entries to it, and opens it again when its disk has failed."""

import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import structlog

from gateway.errors import OutboxError
from gateway.outbox.store import Outbox, OutboxStats
from gateway.values import Entry, Receipt, StoredRun
from gateway.wire.messages import RecordClass

log = structlog.get_logger()

Done = Callable[[Sequence[Receipt]], None]


class Recorder:
    """The outbox as the rest of the program sees it; safe to use from any thread.

    A failed outbox (an I/O error, a damaged file) stops acknowledging at once. Producers then wait here, with
    what they have in hand, until `reopen` has succeeded: nothing is dropped, and nothing is claimed durable.
    """

    def __init__(self, open_outbox: Callable[[], Outbox]) -> None:
        self._open = open_outbox
        self._condition = threading.Condition()
        self._outbox: Outbox | None = open_outbox()
        self._last = self._outbox
        self._closed = False

    def submit(self, entries: Sequence[Entry], done: Done) -> None:
        """Hand entries over; waits while the outbox is full or being opened again.

        Raises:
            OutboxError: the recorder is closed.
        """
        while True:
            outbox = self._usable()
            try:
                return outbox.submit(entries, done)
            except OutboxError as error:
                self._failed(outbox, error)

    def _usable(self) -> Outbox:
        with self._condition:
            while self._outbox is None and not self._closed:
                self._condition.wait(1.0)
            if self._closed or self._outbox is None:
                raise OutboxError("the outbox is closed: the gateway is stopping")
            return self._outbox

    def _failed(self, outbox: Outbox, error: OutboxError) -> None:
        with self._condition:
            if self._closed:
                raise error
            if self._outbox is outbox:
                log.error("outbox_failed", error=str(error))
                self._outbox = None

    @property
    def failed(self) -> bool:
        """Whether the outbox must be opened again."""
        with self._condition:
            outbox = self._outbox
        return outbox is None or outbox.failed

    def reopen(self) -> None:
        """Open the outbox anew after a failure; blocks.

        Raises:
            OutboxError: it cannot be opened yet.
        """
        with self._condition:
            broken, self._outbox = self._outbox, None
        if broken is not None:
            broken.close()
        fresh = self._open()
        with self._condition:
            self._outbox = self._last = fresh
            self._condition.notify_all()
        log.info("outbox_reopened", epoch=fresh.epoch)

    def close(self) -> None:
        """Flush and close; producers that still wait get an OutboxError."""
        with self._condition:
            self._closed = True
            outbox, self._outbox = self._outbox, None
            self._condition.notify_all()
        if outbox is not None:
            outbox.close()

    # ---- what the uplink asks --------------------------------------------------------------------

    @property
    def epoch(self) -> str:
        """The epoch of the store as last opened."""
        outbox = self._last
        return outbox.epoch if outbox is not None else ""

    def read(self, record_class: RecordClass, after_seq: int, max_records: int, max_bytes: int) -> StoredRun | None:
        """Return the next rows of a class; None when there are none, or while the outbox is away."""
        outbox = self._outbox
        return outbox.read(record_class, after_seq, max_records, max_bytes) if outbox is not None else None

    def acknowledge(self, record_class: RecordClass, epoch: str, mark: int) -> int:
        """Let the rows up to a mark go."""
        outbox = self._outbox
        return outbox.acknowledge(record_class, epoch, mark) if outbox is not None else 0

    def heads(self) -> Mapping[RecordClass, tuple[int, int]]:
        """Return the lowest and the highest sequence number present, by class."""
        outbox = self._outbox
        return outbox.heads() if outbox is not None else {}

    @property
    def idle(self) -> bool:
        """Whether everything that was submitted is committed."""
        outbox = self._outbox
        return outbox is not None and outbox.stats().queued == 0

    def stats(self) -> OutboxStats | None:
        """Return the figures of the outbox; None while it is away."""
        outbox = self._outbox
        return outbox.stats() if outbox is not None else None


def outbox_file(configured: Path | None, state_directory: Path) -> Path:
    """Return where the outbox lives."""
    return configured if configured is not None else state_directory / "outbox.db"
