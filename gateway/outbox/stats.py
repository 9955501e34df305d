"""What the outbox tells about itself."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from gateway.config import ClassQuota
from gateway.outbox.quota import Amount, Held
from gateway.outbox.rates import STILL, Flow, Meter, seconds_until_empty, seconds_until_full
from gateway.wire.messages import CLASSES, RecordClass


@dataclass(frozen=True, slots=True)
class ClassStats:
    """One class. Totals count since the outbox was opened first in this process; bytes are bytes on disk."""

    rows: int
    disk_bytes: int
    max_rows: int
    max_bytes: int
    lowest: int  # highest + 1 when empty
    highest: int
    oldest_age_seconds: float | None
    enqueued: int = 0
    acknowledged: int = 0
    evicted: int = 0
    incoming: Flow = STILL
    outgoing: Flow = STILL
    full_in_seconds: float | None = None  # None: not at this rate
    empty_in_seconds: float | None = None  # None: not at this rate, or there is nothing
    refusing: bool = False  # full, and producers of this class wait


@dataclass(frozen=True, slots=True)
class OutboxStats:
    """The whole outbox."""

    epoch: str
    classes: Mapping[RecordClass, ClassStats]
    file_bytes: int
    wal_bytes: int
    queued_entries: int = 0  # in memory, not yet durable
    parked_entries: int = 0  # of these, waiting for acknowledgements because their class is full
    commits: int = 0
    ignored_acks: int = 0  # for another epoch
    quarantined: int = 0  # stores put aside since this process began
    disk_full: bool = False
    ballast: bool = False  # the reserve on disk is there
    aside_files: int = 0  # records kept beside the store, that could not travel
    aside_bytes: int = 0
    failed: bool = False
    failure: str | None = None


@dataclass(slots=True)
class ClassTally:
    """Counts of one class; only the writer changes them."""

    incoming: Meter
    outgoing: Meter
    enqueued: int = 0
    acknowledged: int = 0
    evicted: int = 0


@dataclass(slots=True)
class Tally:
    """Counts that outlive one opening of the file."""

    classes: dict[RecordClass, ClassTally]
    commits: int = 0
    quarantined: int = 0
    ignored_acks: int = 0
    disk_full: bool = False
    refusing: frozenset[RecordClass] = field(default_factory=frozenset)

    @classmethod
    def starting(cls, now_ns: int) -> "Tally":
        return cls({name: ClassTally(Meter(now_ns), Meter(now_ns)) for name in CLASSES})

    def stored(self, record_class: RecordClass, amount: Amount, now_ns: int) -> None:
        tally = self.classes[record_class]
        tally.enqueued += amount.rows
        tally.incoming.add(amount, now_ns)

    def acknowledged(self, record_class: RecordClass, amount: Amount, now_ns: int) -> None:
        tally = self.classes[record_class]
        tally.acknowledged += amount.rows
        tally.outgoing.add(amount, now_ns)

    def stats_of(self, name: RecordClass, held: Held, quota: ClassQuota, now_ns: int, now_ms: int) -> ClassStats:
        """Sum up one class; `now_ns` is uptime, `now_ms` the age of the store."""
        tally = self.classes[name]
        incoming, outgoing = tally.incoming.flow(now_ns), tally.outgoing.flow(now_ns)
        return ClassStats(
            rows=held.rows,
            disk_bytes=held.disk_bytes,
            max_rows=quota.max_rows,
            max_bytes=quota.max_bytes,
            lowest=held.lowest,
            highest=held.highest,
            oldest_age_seconds=None if held.oldest_ms is None else (now_ms - held.oldest_ms) / 1000,
            enqueued=tally.enqueued,
            acknowledged=tally.acknowledged,
            evicted=tally.evicted,
            incoming=incoming,
            outgoing=outgoing,
            full_in_seconds=seconds_until_full(quota, held, incoming, outgoing),
            empty_in_seconds=seconds_until_empty(held, incoming, outgoing),
            refusing=name in self.refusing,
        )
