"""Values that pass between ingest, store, console and command line. Nothing here does anything."""

from dataclasses import dataclass, field
from typing import Final, NamedTuple

import msgspec

from gateway.wire.messages import Availability, Event, Eviction, Evidence, Kept, Notice, PipelineStatus


class StreamKey(NamedTuple):
    """One sequence of records: a class of one outbox file (epoch) of one gateway."""

    gateway: str
    epoch: str
    record_class: str


class Row(msgspec.Struct, frozen=True, gc=False):
    """One record as it is stored.

    `index` is its body, decoded, where other tables are kept from it; None for the rest.
    """

    seq: int
    kind: str
    pipeline: str | None
    recorded_at_ns: int
    body: bytes
    blob: bytes = b""
    index: Event | Evidence | Eviction | Notice | None = None


@dataclass(frozen=True, slots=True)
class Arrival:
    """Records of one stream that came together, by strictly rising sequence number.

    `base` is the lowest number the device still answers for; 1 says nothing. With `reindex`, what is kept from
    the bodies is written again for records that are there already.
    """

    key: StreamKey
    base: int
    rows: tuple[Row, ...]
    reindex: bool = False
    kept: tuple[Kept, ...] = ()  # numbers that the device was told are in dead letters


REASONS: Final = (
    "bad-body",
    "bad-payload",
    "bad-topic",
    "conflict",
    "refused-by-store",
    "unknown-class",
    "unknown-kind",
    "withheld",
)
"""Why a dead letter is one."""


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """Something received that could not be used, kept for a person. `payload` may be the first part alone.

    In a list it is a shorter part still, and `kept_bytes` says how much of it is in the store: payloads may be large.
    `sender` is the gateway and the class of a message of records of which nothing could be used. `retained`: a broker
    hands it over at each connection, so that it says nothing to come again.
    """

    reason: str
    topic: str
    detail: str
    payload: bytes
    payload_bytes: int
    key: StreamKey | None = None
    seq: int | None = None
    sender: tuple[str, str] | None = None
    retained: bool = field(default=False, compare=False)
    kept_bytes: int | None = field(default=None, compare=False)

    @property
    def is_custody(self) -> bool:
        """Whether its sender may let the records in it go: they are in here, whole, and nowhere else."""
        kept_bytes = len(self.payload) if self.kept_bytes is None else self.kept_bytes
        return self.sender is not None and kept_bytes == self.payload_bytes


@dataclass(frozen=True, slots=True)
class Intake:
    """What is written in one transaction."""

    received_at_ns: int
    arrivals: tuple[Arrival, ...] = ()
    availability: tuple[tuple[str, Availability], ...] = ()  # by gateway, in order of receipt
    statuses: tuple[tuple[str, PipelineStatus], ...] = ()
    dead_letters: tuple[DeadLetter, ...] = ()
    seen: frozenset[str] = frozenset()  # gateways that spoke just now, not through something retained


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a committed transaction has done."""

    marks: dict[StreamKey, int] = field(default_factory=dict)  # contiguous, of every stream it touched
    inserted: int = 0
    duplicates: int = 0
    gap_rows: int = 0
    digests: dict[StreamKey, str] = field(default_factory=dict)  # of the records that carry the marks, where known
    conflicts: tuple[DeadLetter, ...] = ()  # what came under numbers that the store has for other records


@dataclass(frozen=True, slots=True)
class Stream:
    """A stream and how far it is complete."""

    key: StreamKey
    mark: int
    last: int  # the highest number known
    records: int  # rows in the store
    duplicates: int
    last_received_at_ns: int
    marked_at_ns: int = 0  # when the mark moved last; 0: not since this is noted


GAP_SOURCES: Final = ("eviction", "base", "quarantine", "dead-letter")


class GapPlace(NamedTuple):
    """Where a gap stands in the list of gaps, the latest first; a page goes on from there."""

    noted_at_ns: int
    stream: int
    first: int


class LetterPlace(NamedTuple):
    """Where a dead letter stands in the list, the latest first; a page goes on from there."""

    last_at_ns: int
    id: int


@dataclass(frozen=True, slots=True)
class Gap:
    """Numbers that never came. `source` is `base`, `eviction`, `quarantine` or `dead-letter`; `reason` is the device's.

    Those in a dead letter came, and are unread: `reason` names their payload, and replaying it fills the gap.

    With `is_open` a device has put its whole store aside, and how far the numbers went is not known: `first` is the
    first that is missing here, `last` is `first - 1`, and the class is empty if nothing of that store ever came.
    """

    key: StreamKey
    first: int
    last: int
    source: str
    reason: str
    noted_at_ns: int
    is_open: bool = False
    place: GapPlace | None = None  # in the list of gaps


@dataclass(frozen=True, slots=True)
class StoredRecord:
    """A record as it is read back; `id` rises with the order of receipt."""

    id: int
    key: StreamKey
    seq: int
    kind: str
    pipeline: str | None
    recorded_at_ns: int
    received_at_ns: int
    body: bytes
    blob: bytes


@dataclass(frozen=True, slots=True)
class StoredEvent:
    """An event in its latest phase; `id` rises with the order in which events were first heard of."""

    id: int
    received_at_ns: int  # when its first phase came
    updated_at_ns: int
    event: Event


@dataclass(frozen=True, slots=True)
class GatewayState:
    """A gateway as the bridge knows it. `seen_at_ns` is the last time that anything came from it."""

    gateway: str
    state: str  # online, stopped, offline, or unknown
    at: str
    version: str
    seen_at_ns: int


@dataclass(frozen=True, slots=True)
class PipelineState:
    """The latest status of a pipeline."""

    gateway: str
    received_at_ns: int
    status: PipelineStatus


class Spread(NamedTuple):
    """A distribution in four numbers; the bounds and the mean are None when it has no values."""

    size: int
    minimum: float | None
    mean: float | None
    maximum: float | None


@dataclass(frozen=True, slots=True)
class Rollup:
    """What came of one pipeline and one label within one hour or day of capture.

    Sums of measures stand under the label "" (all labels), and `findings` also under each label.
    """

    gateway: str
    grain_seconds: int
    pipeline: str
    label: str
    start_s: int  # of the hour or the day, in seconds since 1970, UTC
    events: int  # that began
    updates: int  # later phases of events
    score: Spread  # of all phases
    measures: int
    inferences: int
    findings: int
    level: Spread  # the score over all inferences, as measures sum it up
    latency_ms: Spread
    dropped: int
    raw_bytes: int
    sent_bytes: int


@dataclass(frozen=True, slots=True)
class Violation:
    """Something in a store that cannot be so."""

    rule: str
    where: str
    detail: str


@dataclass(frozen=True, slots=True)
class StoredLetter:
    """A dead letter; the same thing received again only raises `count`."""

    id: int
    letter: DeadLetter
    count: int
    first_at_ns: int
    last_at_ns: int

    @property
    def place(self) -> LetterPlace:
        """Where it stands in the list."""
        return LetterPlace(self.last_at_ns, self.id)


@dataclass(frozen=True, slots=True)
class Counts:
    """What the store holds, and what was absorbed or lost on purpose over its life."""

    records: int
    events: int
    duplicates: int
    gaps: int  # sequence numbers that lie in gaps
    dead_letters: dict[str, int]  # by reason, each counted as often as it was received
    deleted: int  # records removed by retention
