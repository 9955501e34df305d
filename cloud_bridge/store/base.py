"""What a store can do. Every method blocks and may be called from any thread."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol, TypedDict, Unpack

from cloud_bridge.believing import Belief
from cloud_bridge.values import (
    Counts,
    Gap,
    GapPlace,
    GatewayState,
    Intake,
    LetterPlace,
    Outcome,
    PipelineState,
    Rollup,
    StoredEvent,
    StoredLetter,
    StoredRecord,
    Stream,
    StreamKey,
    Violation,
)


@dataclass(frozen=True, slots=True)
class RecordFilter:
    """Which records are meant; None means any."""

    gateway: str | None = None
    pipeline: str | None = None
    record_class: str | None = None
    kind: str | None = None
    since_ns: int | None = None  # by time of receipt
    before_id: int | None = None
    after_id: int | None = None
    until_ns: int | None = None  # by time of receipt, not included


class EventFilter(TypedDict, total=False):
    """Which events are meant; what is absent, or None, means any. The times are those of their latest phase here."""

    gateway: str | None
    pipeline: str | None
    label: str | None
    since_ns: int | None
    until_ns: int | None  # not included
    before_id: int | None


class GapFilter(TypedDict, total=False):
    """Which gaps are meant; what is absent, or None, means any. The times are when they were noted."""

    gateway: str | None
    source: str | None
    since_ns: int | None
    until_ns: int | None  # not included
    before: GapPlace | None


class LetterFilter(TypedDict, total=False):
    """Which dead letters are meant; what is absent, or None, means any. The times are those of their last receipt."""

    reason: str | None
    gateway: str | None
    since_ns: int | None
    until_ns: int | None  # not included
    before: LetterPlace | None


class RollupPlace(NamedTuple):
    """Where a rollup stands in the list, the latest first; a page goes on from there."""

    start_s: int
    gateway: str
    pipeline: str
    label: str


@dataclass(frozen=True, slots=True)
class RollupFilter:
    """Which rollups are meant; None means any. The times are those of capture, in seconds since 1970."""

    grain_seconds: int
    gateway: str | None = None
    pipeline: str | None = None
    label: str | None = None
    since_s: int | None = None
    until_s: int | None = None  # not included
    before: RollupPlace | None = None


@dataclass(frozen=True, slots=True)
class Rolled:
    """What one slice of rolling up has done."""

    records: int = 0  # looked at
    buckets: int = 0  # changed


@dataclass(frozen=True, slots=True)
class Limits:
    """What retention may remove. Times are those of receipt, in nanoseconds since 1970.

    `before_ns` is by class; the class `event` (or `critical`, whichever is longer) also decides for the events.
    `rollups_before_s` is by grain. With `only_rolled`, records wait until they have been rolled up.
    """

    before_ns: Mapping[str, int]
    dead_letters_before_ns: int = 0
    rollups_before_s: Mapping[int, int] = field(default_factory=dict)
    only_rolled: bool = False


@dataclass(frozen=True, slots=True)
class Swept:
    """What one slice of retention has removed."""

    records: int = 0
    events: int = 0
    dead_letters: int = 0
    rollups: int = 0

    @property
    def total(self) -> int:
        """All rows together."""
        return self.records + self.events + self.dead_letters + self.rollups

    def __add__(self, other: "Swept") -> "Swept":
        return Swept(
            self.records + other.records,
            self.events + other.events,
            self.dead_letters + other.dead_letters,
            self.rollups + other.rollups,
        )


class ConsoleReader(Protocol):
    """What the console reads. Every method blocks, may be called from any thread, and may raise StoreError."""

    def gateways(self) -> list[GatewayState]:
        """Return every gateway ever heard of, by name."""
        ...

    def pipelines(self, gateway: str | None = None) -> list[PipelineState]:
        """Return the latest status of every pipeline."""
        ...

    def events(self, *, limit: int = 100, **wanted: Unpack[EventFilter]) -> list[StoredEvent]:
        """Return events in their latest phase, the last heard of first; page on with `before_id`."""
        ...

    def event(self, event_id: str, gateway: str | None = None) -> StoredEvent | None:
        """Return one event in its latest phase."""
        ...

    def records(self, wanted: RecordFilter, *, limit: int = 100, with_blobs: bool = False) -> list[StoredRecord]:
        """Return records: the last received first, or from `after_id` on in order of receipt.

        Pages from `after_id` on pass over nothing, whoever is writing meanwhile.
        """
        ...

    def evidence(self, evidence_id: str, gateway: str | None = None) -> tuple[str, bytes] | None:
        """Return the content type and the bytes of a piece of evidence, None if it is not there."""
        ...

    def streams(self) -> list[Stream]:
        """Return every stream with its mark, by key."""
        ...

    def gaps(self, *, limit: int = 1000, **wanted: Unpack[GapFilter]) -> list[Gap]:
        """Return the gaps, the latest first; page on with the `place` of the last one."""
        ...

    def identity(self) -> str:
        """Return the id of the store, which begins with the time at which it was made; a restored backup has the same.

        Raises:
            StoreError: it cannot be reached or used now.
        """
        ...

    def counts(self) -> Counts:
        """Return what the store holds."""
        ...

    def dead_letters(self, *, limit: int = 100, **wanted: Unpack[LetterFilter]) -> list[StoredLetter]:
        """Return dead letters, the latest first, with the beginning of each payload; page on with the last `place`."""
        ...

    def rollups(self, wanted: RollupFilter, *, limit: int = 1000) -> list[Rollup]:
        """Return rollups, the latest first."""
        ...

    def change_counter(self) -> int:
        """Return a number that is higher after every committed change, whichever process made it."""
        ...


class Reader(ConsoleReader, Protocol):
    """The reading half.

    Every method raises StoreError when the store cannot be read right now.
    """

    def record(self, key: StreamKey, seq: int) -> StoredRecord | None:
        """Return one record with its blob."""
        ...

    def measures(
        self,
        *,
        gateway: str | None = None,
        pipeline: str | None = None,
        since_ns: int | None = None,
        limit: int = 1000,
    ) -> list[StoredRecord]:
        """Return records of kind `measure`, the last received first."""
        ...

    def dead_letter(self, letter_id: int) -> StoredLetter | None:
        """Return one dead letter, with all that is kept of its payload."""
        ...

    def rollup_backlog(self) -> int:
        """Return how many records wait to be rolled up, by their ids: at most so many."""
        ...

    def received_since(self, since_ns: int) -> int:
        """Return how many records were received since then, by their ids: at most so many."""
        ...

    def check(self, *, hours_from_s: int = 0) -> list[Violation]:
        """Look for what cannot be so, in one snapshot; it reads every row once or twice.

        hours_from_s: rollups of hours before then (capture, seconds since 1970) may have been removed by retention.
        """
        ...

    def close(self) -> None:
        """Finish and let go. Closing twice is harmless."""
        ...

    def size_bytes(self) -> int:
        """Return how much the store takes on its disk."""
        ...


class Store(Reader, Protocol):
    """A store that can be written."""

    def open(self) -> None:
        """Connect, and make the tables if need be. Every other call does so too, if this has failed.

        Raises:
            StoreError: it cannot be reached or used now.
        """
        ...

    def ingest(self, intake: Intake) -> Outcome:
        """Write everything in one durable transaction.

        Raises:
            StoreError: nothing was written; the same intake may be tried again.
            StoreRefusedError: nothing was written, and this intake never will be.
        """
        ...

    def settle(self, letter_id: int, intake: Intake | None = None) -> Outcome:
        """Remove a dead letter and write what was made of it, in one transaction."""
        ...

    def forget(self, gateway: str) -> bool:
        """Show a gateway no more until it is heard of again; its records stay. False if it is not shown."""
        ...

    def believed(self) -> Belief | None:
        """Return the time that retention went by last, None if it never did."""
        ...

    def keep_belief(self, belief: Belief) -> None:
        """Keep the time that retention goes by."""
        ...

    def sweep(self, limits: Limits, limit: int) -> Swept:
        """Remove at most about `limit` rows of each table that are due; whole partitions count as one slice."""
        ...

    def roll_up(self, limit: int) -> Rolled:
        """Roll up the next `limit` records, in order of receipt; each is counted once, whatever happens."""
        ...

    def tidy(self) -> None:
        """Give freed pages back, in a small slice; make room for what will come."""
        ...
