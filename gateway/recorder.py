"""The outbox as the rest of the program sees it: producers wait while its disk is being opened again."""

import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import structlog

from gateway.errors import OutboxError
from gateway.outbox.store import Outbox, OutboxStats
from gateway.values import Entry, Receipt, Stored, StoredRun
from gateway.wire.messages import RecordClass

log = structlog.get_logger()

Done = Callable[[Sequence[Receipt]], None]

_LOOK_EVERY_SECONDS = 0.5


class Recorder:
    """Safe to use from any thread.

    A failed outbox refuses new entries at once and keeps those it has accepted. Producers then wait here with what
    they have in hand until `reopen` has succeeded: nothing is dropped, and nothing is claimed durable.
    """

    def __init__(self, outbox: Outbox) -> None:
        self._outbox = outbox
        self._changed = threading.Condition()
        self._closed = False

    def submit(self, entries: Sequence[Entry], done: Done) -> None:
        """Hand entries over; waits while the outbox is full or being opened again.

        Raises:
            OutboxError: the gateway is stopping, or the entries are more than their class may ever hold.
        """
        while True:
            try:
                return self._outbox.submit(entries, done)
            except OutboxError:
                if not self._wait_for_reopening():
                    raise

    def _wait_for_reopening(self) -> bool:
        """Wait until a failed outbox works again; False if it has not failed, or is closed."""
        if self._works():
            return False
        with self._changed:
            while not self._closed:
                if self._works():
                    return True
                self._changed.wait(_LOOK_EVERY_SECONDS)
        return False

    def _works(self) -> bool:
        return not self._outbox.failed

    @property
    def failed(self) -> bool:
        """Whether the outbox must be opened again."""
        return self._outbox.failed

    def reopen(self) -> None:
        """Open the outbox anew after a failure; blocks.

        Raises:
            OutboxError: it cannot be opened yet.
        """
        self._outbox.reopen()
        with self._changed:
            self._changed.notify_all()

    def close(self) -> None:
        """Flush and close; producers that still wait get an OutboxError."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._outbox.close()

    @property
    def empty(self) -> bool:
        """Whether everything that was handed over is committed here and acknowledged by the cloud."""
        # Asked twice, the queue first: the writer may commit the last entry while one answer is being put together,
        # after its rows were counted and before its queue was.
        if self._outbox.stats().queued_entries:
            return False
        return all(held.rows == 0 for held in self._outbox.stats().classes.values())

    # ---- what the uplink asks --------------------------------------------------------------------

    @property
    def epoch(self) -> str:
        """The epoch of the store."""
        return self._outbox.epoch

    def read(self, record_class: RecordClass, after_seq: int, max_records: int, max_bytes: int) -> StoredRun | None:
        """Return the next rows of a class; None when there are none."""
        return self._outbox.read(record_class, after_seq, max_records, max_bytes)

    def set_aside(self, record_class: RecordClass, epoch: str, row: Stored, reason: str, gateway: str) -> None:
        """Keep a copy of a row that cannot travel, durably."""
        self._outbox.set_aside(record_class, epoch, row, reason, gateway)

    def aside(self, record_class: RecordClass, epoch: str) -> frozenset[int]:
        """Return the numbers of rows that were set aside because of their size."""
        return self._outbox.aside(record_class, epoch)

    def acknowledge(self, record_class: RecordClass, epoch: str, mark: int) -> int:
        """Let the rows up to a mark go."""
        return self._outbox.acknowledge(record_class, epoch, mark)

    def follow(self, record_class: RecordClass, epoch: str, mark: int) -> bool:
        """Number rows again that the bridge cannot have, above a mark that speaks of other rows."""
        return self._outbox.follow(record_class, epoch, mark)

    def heads(self) -> Mapping[RecordClass, tuple[int, int]]:
        """Return the lowest and the highest sequence number, by class."""
        return self._outbox.heads()

    def stats(self) -> OutboxStats:
        """Return the figures of the outbox."""
        return self._outbox.stats()


def outbox_file(configured: Path | None, state_directory: Path) -> Path:
    """Return where the outbox lives."""
    return configured if configured is not None else state_directory / "outbox.db"
