"""Gives rows up when a class is over its quota, and writes down which.

The record of an eviction is a row of class critical, in the same transaction: a gap is never a mystery. Evictions
that follow each other become one record as long as nobody has read it, so a gateway that is offline for weeks
does not fill its critical class with them.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal

import msgspec
import structlog

from gateway.outbox.claims import Claims
from gateway.outbox.database import Database, Row
from gateway.outbox.quota import Amount, Quotas, overflow
from gateway.outbox.schema import row_disk_bytes
from gateway.wire.errors import MalformedMessageError
from gateway.wire.messages import CLASSES, Eviction, Message, RecordClass, decode, encode
from gateway.wire.times import rfc3339

log = structlog.get_logger()

Reason = Literal["bytes", "rows", "age", "disk-full"]

SLICE_ROWS: Final = 4000
"""Rows given up at most in one transaction beyond what the transaction itself needs: about 10 ms."""

QUIET_SECONDS: Final = 60.0

_NO_LIMIT: Final = -1


@dataclass(frozen=True, slots=True)
class _Written:
    """The record of the latest eviction of a class, and where it stands."""

    seq: int
    record: Eviction


def row_of(kind: str, body: Message, recorded_at_ns: int, blob: bytes = b"") -> Row:
    """Encode a message as a row."""
    data = encode(body)
    return (row_disk_bytes(len(kind) + len(data) + len(blob)), recorded_at_ns, kind, data, blob)


class Evictor:
    """Works inside the writer's transactions; `settle` must follow each of them."""

    def __init__(self, database: Database, quotas: Quotas, claims: Claims, wall_ns: Callable[[], int]) -> None:
        self._database = database
        self._quotas = quotas
        self._claims = claims
        self._wall_ns = wall_ns
        self._latest: dict[RecordClass, _Written] = {}
        self._pending: dict[RecordClass, _Written] = {}
        self._done: list[Eviction] = []

    def settle(self, *, committed: bool) -> Sequence[Eviction]:
        """End a transaction; return what was evicted in it, nothing when it was rolled back."""
        self._claims.end_rewrite()
        done = self._done if committed else []
        if committed:
            self._latest.update(self._pending)
        self._pending = {}
        self._done = []
        return done

    def make_room(self, record_class: RecordClass, incoming: Amount, stored_ms: int) -> None:
        """Let the oldest rows go until `incoming` fits. For a class that refuses the caller has asked before."""
        quota = self._quotas[record_class]
        need = overflow(quota, self._database.held[record_class], incoming)
        if need is None or quota.on_full == "refuse":
            return

        def enough(total: Amount) -> bool:
            if total.rows >= need.wish.rows and total.disk_bytes >= need.wish.disk_bytes:
                return True
            beyond = total.rows >= SLICE_ROWS
            return beyond and total.rows >= need.must.rows and total.disk_bytes >= need.must.disk_bytes

        last, amount = self._database.oldest(record_class, enough, _NO_LIMIT)
        self._evict(record_class, last, amount, need.reason, stored_ms)

    def expire(self, record_class: RecordClass, now_ms: int) -> bool:
        """Let one slice of the rows go that are older than their class allows; True when there are more."""
        max_age = self._quotas[record_class].max_age_seconds
        if max_age is None:
            return False
        last = self._database.newest_before(record_class, now_ms - int(max_age * 1000))
        held = self._database.held[record_class]
        if last < held.lowest:
            return False
        cut, amount = self._database.oldest(record_class, lambda _: False, min(SLICE_ROWS, last - held.lowest + 1))
        if cut > last:  # numbers were left out in between
            cut, amount = last, self._database.amount_up_to(record_class, last)
        self._evict(record_class, cut, amount, "age", now_ms)
        return cut < last

    def free(self, wanted_bytes: int, stored_ms: int) -> bool:
        """Let the oldest rows go, of the least urgent class first, because the disk is full; False when none may go.

        One class after the other until it is enough: where the last pictures are not, events must go too.
        """
        freed_bytes = 0
        for record_class in reversed(CLASSES):
            held = self._database.held[record_class]
            if record_class == "critical" or self._quotas[record_class].on_full != "evict" or not held.rows:
                continue
            lacking = wanted_bytes - freed_bytes
            last, amount = self._database.oldest(record_class, _reaching(lacking), _NO_LIMIT)
            self._evict(record_class, last, amount, "disk-full", stored_ms)
            freed_bytes += amount.disk_bytes
            if freed_bytes >= wanted_bytes:
                break
        return freed_bytes > 0

    def _evict(self, record_class: RecordClass, last: int, amount: Amount, reason: Reason, stored_ms: int) -> None:
        if not amount.rows:
            return
        carried = self._carried(last) if record_class == "critical" else {}
        first = self._database.held[record_class].lowest
        self._database.remove(record_class, last, amount)
        for record in carried.values():
            self._append(record, stored_ms)
        record = Eviction(
            record_class=record_class,
            first_seq=first,
            last_seq=last,
            count=amount.rows,
            size_bytes=amount.disk_bytes,
            reason=reason,
            at=rfc3339(self._wall_ns()),
        )
        self._done.append(record)
        self._write(record, stored_ms)

    def _write(self, record: Eviction, stored_ms: int) -> None:
        before = self._pending.get(record.record_class) or self._latest.get(record.record_class)
        if (
            before is not None
            and before.record.reason == record.reason
            and before.record.last_seq + 1 == record.first_seq
            and self._claims.begin_rewrite(before.seq)
        ):
            merged = merge(before.record, record)
            if self._database.rewrite("critical", before.seq, row_of("eviction", merged, self._wall_ns())):
                self._pending[record.record_class] = replace(before, record=merged)
                return
        self._append(record, stored_ms)

    def _append(self, record: Eviction, stored_ms: int) -> None:
        seq = self._database.insert("critical", [row_of("eviction", record, self._wall_ns())], stored_ms)
        self._pending[record.record_class] = _Written(seq, record)

    def _carried(self, last: int) -> dict[RecordClass, Eviction]:
        """Return the eviction records that are about to go themselves, one for each class, to be written again."""
        carried: dict[RecordClass, Eviction] = {}
        for body in self._database.bodies_up_to("critical", last, "eviction"):
            try:
                record = decode(body, Eviction)
            except MalformedMessageError:
                continue
            before = carried.get(record.record_class)
            carried[record.record_class] = merge(before, record) if before is not None else record
        return carried


def _reaching(disk_bytes: int) -> Callable[[Amount], bool]:
    return lambda total: total.disk_bytes >= disk_bytes


def merge(before: Eviction, after: Eviction) -> Eviction:
    """Make one record of two of the same class; the range spans both."""
    return msgspec.structs.replace(
        after,
        first_seq=min(before.first_seq, after.first_seq),
        last_seq=max(before.last_seq, after.last_seq),
        count=before.count + after.count,
        size_bytes=before.size_bytes + after.size_bytes,
    )


class LossLog:
    """Logs when evictions of a class begin and when they have ended, not each of them."""

    def __init__(self) -> None:
        self._running: dict[RecordClass, tuple[float, int]] = {}  # when it happened last, how many rows by now

    def note(self, eviction: Eviction, now: float) -> None:
        """Take note of one eviction; `now` is monotonic seconds."""
        before = self._running.get(eviction.record_class)
        if before is None:
            log.warning("eviction_began", record_class=eviction.record_class, reason=eviction.reason)
        self._running[eviction.record_class] = (now, eviction.count + (before[1] if before else 0))

    def tell_ended(self, now: float) -> None:
        """Log the end of what has been quiet for a while."""
        for record_class, (last, rows) in list(self._running.items()):
            if now - last >= QUIET_SECONDS:
                log.info("eviction_ended", record_class=record_class, rows=rows)
                del self._running[record_class]
