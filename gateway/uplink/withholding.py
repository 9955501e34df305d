"""Loads for the uplink in which no row holds up those behind it. Runs in worker threads, one at a time.

A row that cannot travel is kept beside the store first, durably, and then replaced by a stand-in under its number. Once
replaced it stays so, also after a restart and with a broker that takes larger packets: the bridge keeps what it got
first, and would find two different records under one number.
"""

import threading
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal, Protocol

import structlog

from gateway.errors import OutboxError
from gateway.uplink.delivery import Want
from gateway.uplink.packing import Load, Reason, load_of, stand_in, unreadable
from gateway.values import Stored, StoredRun
from gateway.wire.messages import Kept, RecordClass, record_digest

log = structlog.get_logger()

Verdict = Literal["same", "other", "unsent"]


class NotKeptError(OutboxError):
    """A row that cannot travel cannot be set aside either, so it must not be replaced: its class waits."""


class KeepingStore(Protocol):
    """What is needed of the outbox. All methods block."""

    def read(self, record_class: RecordClass, after_seq: int, max_records: int, max_bytes: int) -> StoredRun | None:
        """Return the next rows after a sequence number, at least one if there is any; None if there is none."""
        ...

    def set_aside(self, record_class: RecordClass, epoch: str, row: Stored, reason: str, gateway: str) -> None:
        """Keep a copy of a row for a technician, durably; doing so again changes nothing.

        Raises:
            OutboxError: it cannot be kept, and must not be replaced.
        """
        ...

    def aside(self, record_class: RecordClass, epoch: str) -> frozenset[int]:
        """Return the numbers of the rows that were set aside because of their size."""
        ...


class Withholding:
    """Reads and packs what is sent next."""

    def __init__(self, store: KeepingStore, gateway_id: str) -> None:
        self._store = store
        self._gateway_id = gateway_id
        self._lock = threading.Lock()
        self._counts: Counter[tuple[RecordClass, str]] = Counter()
        self._told: set[tuple[str, RecordClass, int]] = set()

    @property
    def counts(self) -> dict[tuple[RecordClass, str], int]:
        """Rows replaced since the start, by class and reason."""
        with self._lock:
            return dict(self._counts)

    def load(self, want: Want, limit_bytes: int, preferred_bytes: int, kept: Sequence[Kept] = ()) -> Load | None:
        """Return the next load of a class that fits into `limit_bytes`; None if there is nothing to send.

        More than one row only within `preferred_bytes`. `kept` is mentioned in it where there is room. `packed` is None
        if not even a stand-in fits.

        Raises:
            NotKeptError: the next row cannot be set aside; the class waits, others go on.
            OutboxError: the store cannot be read; nothing must be sent.
        """
        run = self._store.read(want.record_class, want.after_seq, want.max_records, want.max_bytes)
        if run is None or not run.rows:
            return None
        rows = self._replaced(run)
        load = load_of(replace(run, rows=rows), min(limit_bytes, preferred_bytes), kept)
        if load.packed is None:
            load = load_of(replace(run, rows=rows[:1]), limit_bytes, kept)
        if load.packed is None and rows[0] is run.rows[0]:
            load = load_of(replace(run, rows=(self._withhold(run, run.rows[0], "too-large"),)), limit_bytes)
        return load

    def verdict(self, record_class: RecordClass, seq: int, digest: str, known: int) -> Verdict:
        """Compare the row of a number with the one that the bridge has.

        "same" also where it is not here and no row between `known` and it is: then nothing goes that was not sent.
        "unsent" where such rows are here and there is nothing to compare, because that row is not here or the bridge
        does not know its digest any more: what the bridge has under their numbers is not known.

        Raises:
            OutboxError: the store cannot be read.
        """
        run = self._store.read(record_class, seq - 1, 1, 1)
        if digest and run is not None and run.rows and run.rows[0].seq == seq:
            (row,) = self._replaced(run)
            return "same" if record_digest(row.kind, row.body, row.blob) == digest else "other"
        first = self._store.read(record_class, known, 1, 1)
        return "unsent" if first is not None and first.rows and first.rows[0].seq <= seq else "same"

    def _replaced(self, run: StoredRun) -> tuple[Stored, ...]:
        """Return the rows with what cannot travel replaced; the very same tuple if nothing is.

        They end before a row that cannot be set aside, unless it is the first.
        """
        known = self._store.aside(run.record_class, run.epoch)
        rows = list(run.rows)
        changed = False
        for at, row in enumerate(rows):
            detail = unreadable(row)
            if detail is not None:
                try:
                    rows[at], changed = self._withhold(run, row, "unreadable", detail), True
                except NotKeptError:
                    if at == 0:
                        raise
                    return tuple(rows[:at])
            elif known and row.seq in known:
                rows[at], changed = stand_in(row, "too-large"), True
        return tuple(rows) if changed else run.rows

    def _withhold(self, run: StoredRun, row: Stored, reason: Reason, detail: str = "") -> Stored:
        try:
            self._store.set_aside(run.record_class, run.epoch, row, reason, self._gateway_id)
        except OutboxError as error:
            raise NotKeptError(str(error)) from error
        key = (run.epoch, run.record_class, row.seq)
        with self._lock:
            if key not in self._told:
                self._told.add(key)
                self._counts[run.record_class, reason] += 1
                log.error(
                    "record_withheld",
                    record_class=run.record_class,
                    seq=row.seq,
                    reason=reason,
                    detail=detail,
                    size_bytes=len(row.body) + len(row.blob),
                )
        return stand_in(row, reason, detail)
