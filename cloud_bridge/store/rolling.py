"""Hourly and daily rollups, folded from records in the order of receipt.

Each record is folded once: the sums of a slice and the id up to which records are folded change in one transaction.
A record that comes late has a late id, and adds to the hour it was captured in, however long ago that is; so nothing
is ever counted anew, and what retention has removed meanwhile does not matter.
"""

# ruff: noqa: S608  # the texts are put together from constants of the schema; values travel as parameters only

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

import msgspec

from cloud_bridge.store.schema import ROLLUP_HIGHEST, ROLLUP_KEY, ROLLUP_LOWEST, ROLLUP_SUMS

HOUR_SECONDS: Final = 3600
DAY_SECONDS: Final = 86_400
GRAINS: Final = (HOUR_SECONDS, DAY_SECONDS)

FOLDED_KINDS: Final = ("event", "measure")
SLICE: Final = (
    "SELECT r.id, s.gateway, r.kind, CASE WHEN r.kind IN ('event', 'measure') THEN r.body END"
    " FROM stream_records r JOIN streams s ON s.id = r.stream"
    " WHERE r.id > ? AND r.id <= ? ORDER BY r.id LIMIT ?"
)
"""Id, gateway, kind and, where it is folded, the body of the next records."""

FOLDABLE: Final = "SELECT count(*) FROM stream_records WHERE id > ? AND id <= ? AND kind IN ('event', 'measure')"
"""How many records of a slice are folded."""

# One device must not be able to stop the sums of all others with a number or a name that a database refuses.
_MAX_TEXT: Final = 512
_MAX_NS: Final = 2**63
_MAX_COUNT: Final = 2**40
_MAX_LEVEL: Final = 1e100
_MAX_LABELS: Final = 256

_COLUMNS: Final = (*ROLLUP_SUMS, *ROLLUP_LOWEST, *ROLLUP_HIGHEST)
_ADDED: Final = [f"{name} = rollups.{name} + excluded.{name}" for name in ROLLUP_SUMS]
_BOUNDED: Final = [
    f"{name} = CASE WHEN rollups.{name} IS NULL OR excluded.{name} {sign} rollups.{name}"
    f" THEN excluded.{name} ELSE rollups.{name} END"
    for names, sign in ((ROLLUP_LOWEST, "<"), (ROLLUP_HIGHEST, ">"))
    for name in names
]
UPSERT: Final = (
    f"INSERT INTO rollups ({', '.join((*ROLLUP_KEY, *_COLUMNS))})"
    f" VALUES ({', '.join('?' * (len(ROLLUP_KEY) + len(_COLUMNS)))})"
    f" ON CONFLICT ({', '.join(ROLLUP_KEY)}) DO UPDATE SET {', '.join((*_ADDED, *_BOUNDED))}"
)


class BucketKey(NamedTuple):
    """What a rollup is of; in the order of the table's key."""

    gateway: str
    grain: int
    pipeline: str
    label: str
    start_s: int


@dataclass(slots=True)
class Bucket:
    """What is added to one rollup."""

    sums: dict[str, float] = field(default_factory=dict)
    lowest: dict[str, float] = field(default_factory=dict)
    highest: dict[str, float] = field(default_factory=dict)

    def add(self, **amounts: float) -> None:
        """Add to sums."""
        for name, amount in amounts.items():
            self.sums[name] = self.sums.get(name, 0) + amount

    def spread(self, name: str, count: int, low: float, total: float, high: float) -> None:
        """Add a distribution of `count` values."""
        self.add(**{f"{name}_count": count, f"{name}_sum": total})
        least, most = f"{name}_min", f"{name}_max"
        self.lowest[least] = min(low, self.lowest.get(least, low))
        self.highest[most] = max(high, self.highest.get(most, high))

    def row(self, key: BucketKey) -> tuple[Any, ...]:
        """Return it for UPSERT."""
        return (
            *key,
            # PostgreSQL takes no column of mixed types.
            *((float if name.endswith("_sum") else int)(self.sums.get(name, 0)) for name in ROLLUP_SUMS),
            *(self.lowest.get(name) for name in ROLLUP_LOWEST),
            *(self.highest.get(name) for name in ROLLUP_HIGHEST),
        )


class _Event(msgspec.Struct, frozen=True, gc=False):
    """What is needed of `gateway.wire.messages.Event`."""

    phase: str = msgspec.field(name="type")
    pipeline: str
    label: str
    score: float
    captured_at_ns: int


class _Levels(msgspec.Struct, frozen=True, gc=False):
    minimum: float
    mean: float
    maximum: float


class _Measure(msgspec.Struct, frozen=True, gc=False):
    """What is needed of `gateway.wire.messages.Measure`."""

    pipeline: str
    captured_from_ns: int
    inferences: int
    labels: dict[str, int] = {}
    score: _Levels | None = None
    latency_ms: _Levels | None = None
    dropped: dict[str, int] = {}
    raw_bytes: int = 0
    sent_bytes: int = 0


_events: Final = msgspec.json.Decoder(_Event)
_measures: Final = msgspec.json.Decoder(_Measure)


def is_text(*texts: str) -> bool:
    """Tell whether every database can hold it, also with a few others in the key of a table."""
    return all(len(text) <= _MAX_TEXT and text.isprintable() and len(text.encode()) <= _MAX_TEXT for text in texts)


def _held(count: int) -> int:
    """Return a count that no million of devices can add up to more than 64 bits with."""
    return min(max(count, 0), _MAX_COUNT)


def fold(rows: Iterable[tuple[str, str, bytes]]) -> dict[BucketKey, Bucket]:
    """Fold (gateway, kind, body) into what is to be added; a body that is not what its kind says adds nothing."""
    buckets: dict[BucketKey, Bucket] = {}
    for gateway, kind, body in rows:
        try:
            if kind == "event":
                _fold_event(buckets, gateway, _events.decode(body))
            else:
                _fold_measure(buckets, gateway, _measures.decode(body))
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            continue  # noted as a dead letter when it came
    return buckets


def rows_of(buckets: dict[BucketKey, Bucket]) -> Sequence[tuple[Any, ...]]:
    """Return the rows for UPSERT, by key: writers that meet in one rollup must come in the same order."""
    return [buckets[key].row(key) for key in sorted(buckets)]


def _of(buckets: dict[BucketKey, Bucket], gateway: str, pipeline: str, label: str, at_ns: int) -> list[Bucket]:
    found = []
    for grain in GRAINS:
        start_s = at_ns // 1_000_000_000 // grain * grain
        found.append(buckets.setdefault(BucketKey(gateway, grain, pipeline, label, start_s), Bucket()))
    return found


def _fold_event(buckets: dict[BucketKey, Bucket], gateway: str, event: _Event) -> None:
    if not is_text(event.pipeline, event.label) or not 0 <= event.captured_at_ns < _MAX_NS:
        return
    began = event.phase == "new"
    for bucket in _of(buckets, gateway, event.pipeline, event.label, event.captured_at_ns):
        bucket.add(events=began, updates=not began)
        if math.isfinite(event.score):
            bucket.spread("score", 1, event.score, event.score, event.score)


def _fold_measure(buckets: dict[BucketKey, Bucket], gateway: str, measure: _Measure) -> None:
    if not is_text(measure.pipeline) or not 0 <= measure.captured_from_ns < _MAX_NS:
        return
    inferences = _held(measure.inferences)
    for bucket in _of(buckets, gateway, measure.pipeline, "", measure.captured_from_ns):
        bucket.add(
            measures=1,
            inferences=inferences,
            findings=_held(sum(measure.labels.values())),
            dropped=_held(sum(measure.dropped.values())),
            raw_bytes=_held(measure.raw_bytes),
            sent_bytes=_held(measure.sent_bytes),
        )
        for name, levels in (("level", measure.score), ("latency", measure.latency_ms)):
            if levels is not None and inferences and _is_sane(levels):
                bucket.spread(name, inferences, levels.minimum, levels.mean * inferences, levels.maximum)
    for label, count in itertools.islice(measure.labels.items(), _MAX_LABELS):
        if is_text(label):
            for bucket in _of(buckets, gateway, measure.pipeline, label, measure.captured_from_ns):
                bucket.add(findings=_held(count))


def _is_sane(levels: _Levels) -> bool:
    return all(abs(level) < _MAX_LEVEL for level in (levels.minimum, levels.mean, levels.maximum))
