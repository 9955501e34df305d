"""Values that pass between ingest, store, console and command line. Nothing here does anything."""

from dataclasses import dataclass, field
from typing import NamedTuple

import msgspec

from gateway.wire.messages import Availability, Event, Eviction, Evidence, PipelineStatus


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
    index: Event | Evidence | Eviction | None = None


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


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """Something received that could not be used, kept for a person. `payload` is cut at 1 MiB."""

    reason: str
    topic: str
    detail: str
    payload: bytes
    payload_bytes: int
    key: StreamKey | None = None
    seq: int | None = None


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


@dataclass(frozen=True, slots=True)
class Stream:
    """A stream and how far it is complete."""

    key: StreamKey
    mark: int
    last: int  # the highest number known
    records: int  # rows in the store
    duplicates: int
    last_received_at_ns: int


@dataclass(frozen=True, slots=True)
class Gap:
    """Numbers that never came. `source` is `base` or `eviction`; `reason` is the device's, for evictions."""

    key: StreamKey
    first: int
    last: int
    source: str
    reason: str
    noted_at_ns: int


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


@dataclass(frozen=True, slots=True)
class StoredLetter:
    """A dead letter; the same thing received again only raises `count`."""

    id: int
    letter: DeadLetter
    count: int
    first_at_ns: int
    last_at_ns: int


@dataclass(frozen=True, slots=True)
class Counts:
    """What the store holds, and what was absorbed or lost on purpose over its life."""

    records: int
    events: int
    duplicates: int
    gaps: int  # sequence numbers that lie in gaps
    dead_letters: dict[str, int]  # by reason, each counted as often as it was received
    deleted: int  # records removed by retention
