"""Lists that are read page by page: gaps, dead letters, rollups.

Each page begins where the one before ended, by the values it is ordered by, so that what comes meanwhile moves
nothing from one page to another.
"""

# ruff: noqa: S608  # the texts are put together from constants; values travel as parameters only

from typing import Any, Final

from cloud_bridge.store.base import GapFilter, LetterFilter, RollupFilter
from cloud_bridge.store.ledger import QUARANTINE
from cloud_bridge.store.lines import Condition, Rows, where
from cloud_bridge.values import DeadLetter, Gap, GapPlace, Rollup, Spread, StoredLetter, StreamKey

LISTED_BYTES: Final = 4096
"""Of a payload in a list of dead letters: each may have 16 MiB, and a list has hundreds."""

_LETTER: Final = (
    "SELECT id, reason, topic, detail, {}, length(payload), payload_bytes, gateway, epoch, class, seq, count,"
    " first_at_ns, last_at_ns FROM dead_letters"
)
_ROLLUP: Final = (
    "SELECT gateway, grain, pipeline, label, start_s, events, updates, measures, inferences, findings, dropped,"
    " raw_bytes, sent_bytes, score_count, score_min, score_sum, score_max, level_count, level_min, level_sum,"
    " level_max, latency_count, latency_min, latency_sum, latency_max FROM rollups"
)


def gaps(rows: Rows, wanted: GapFilter, limit: int) -> list[Gap]:
    """Return gaps of streams and of stores that devices have put aside, the latest first."""
    found = _stream_gaps(rows, wanted, limit)
    if wanted.get("source") in (None, QUARANTINE):
        found += _lost_stores(rows, wanted, limit)
        found.sort(key=lambda gap: gap.place or GapPlace(0, 0, 0), reverse=True)
    return found[:limit]


def _stream_gaps(rows: Rows, wanted: GapFilter, limit: int) -> list[Gap]:
    before = wanted.get("before")
    text, values = where(
        [
            ("s.gateway = ?", wanted.get("gateway")),
            ("g.source = ?", wanted.get("source")),
            ("g.noted_at_ns >= ?", wanted.get("since_ns")),
            ("g.noted_at_ns < ?", wanted.get("until_ns")),
        ],
        *([("(g.noted_at_ns, g.stream, g.first) < (?, ?, ?)", tuple(before))] if before else []),
    )
    found = rows(
        "SELECT s.gateway, s.epoch, s.class, g.first, g.last, g.source, g.reason, g.noted_at_ns, g.stream"
        f" FROM stream_gaps g JOIN streams s ON s.id = g.stream{text}"
        " ORDER BY g.noted_at_ns DESC, g.stream DESC, g.first DESC LIMIT ?",
        (*values, limit),
    )
    return [
        Gap(StreamKey(*key), first, last, told_by, reason, at_ns, place=GapPlace(at_ns, stream, first))
        for *key, first, last, told_by, reason, at_ns, stream in found
    ]


def _lost_stores(rows: Rows, wanted: GapFilter, limit: int) -> list[Gap]:
    """Return what is known of stores that were put aside: their streams, and how far those came."""
    before = wanted.get("before")
    conditions: list[Condition] = [
        ("l.gateway = ?", wanted.get("gateway")),
        ("l.noted_at_ns >= ?", wanted.get("since_ns")),
        ("l.noted_at_ns < ?", wanted.get("until_ns")),
        ("l.noted_at_ns <= ?", before and before.noted_at_ns),
    ]
    text, values = where(conditions)
    found = rows(
        "SELECT l.id, l.gateway, l.epoch, l.detail, l.noted_at_ns, s.class,"
        " coalesce((SELECT last FROM stream_spans p WHERE p.stream = s.id AND p.first = 1), 0)"
        " FROM lost_stores l LEFT JOIN streams s ON s.gateway = l.gateway AND s.epoch = l.epoch"
        f"{text} ORDER BY l.noted_at_ns DESC, l.id, s.class",
        values,
    )
    listed: list[Gap] = []
    for at, (number, name, epoch, detail, at_ns, record_class, mark) in enumerate(found):
        # Below every stream, and among themselves in an order of their own.
        same = at - next(i for i, row in enumerate(found) if row[0] == number)
        place = GapPlace(at_ns, -number, -same)
        if before is None or place < before:
            key = StreamKey(name, epoch, record_class or "")
            listed.append(Gap(key, mark + 1, mark, QUARANTINE, detail, at_ns, is_open=True, place=place))
    return listed[:limit]


def dead_letters(rows: Rows, wanted: LetterFilter, limit: int) -> list[StoredLetter]:
    """Return dead letters, the latest first, with the beginning of their payloads.

    One that comes again meanwhile moves to the front.
    """
    before = wanted.get("before")
    text, values = where(
        [
            ("reason = ?", wanted.get("reason")),
            ("gateway = ?", wanted.get("gateway")),
            ("last_at_ns >= ?", wanted.get("since_ns")),
            ("last_at_ns < ?", wanted.get("until_ns")),
        ],
        *([("(last_at_ns, id) < (?, ?)", tuple(before))] if before else []),
    )
    select = _LETTER.format(f"substr(payload, 1, {LISTED_BYTES})")
    found = rows(f"{select}{text} ORDER BY last_at_ns DESC, id DESC LIMIT ?", (*values, limit))
    return [_letter(row) for row in found]


def dead_letter(rows: Rows, letter_id: int) -> StoredLetter | None:
    """Return one dead letter, with all that is kept of its payload."""
    found = rows(f"{_LETTER.format('payload')} WHERE id = ?", (letter_id,))
    return _letter(found[0]) if found else None


def _letter(row: tuple[Any, ...]) -> StoredLetter:
    number, reason, topic, detail, payload, kept, size, gateway, epoch, record_class, seq, *times = row
    count, first_ns, last_ns = times
    key = StreamKey(gateway, epoch, record_class) if epoch is not None else None
    sender = (gateway, record_class) if gateway is not None and epoch is None else None
    letter = DeadLetter(reason, topic, detail, bytes(payload or b""), size, key, seq, sender, kept_bytes=kept)
    return StoredLetter(number, letter, count, first_ns, last_ns)


def rollups(rows: Rows, wanted: RollupFilter, limit: int) -> list[Rollup]:
    """Return rollups, the latest first."""
    text, values = where(
        [
            ("grain = ?", wanted.grain_seconds),
            ("gateway = ?", wanted.gateway),
            ("pipeline = ?", wanted.pipeline),
            ("label = ?", wanted.label),
            ("start_s >= ?", wanted.since_s),
            ("start_s < ?", wanted.until_s),
        ],
        *([("(start_s, gateway, pipeline, label) < (?, ?, ?, ?)", tuple(wanted.before))] if wanted.before else []),
    )
    order = " ORDER BY start_s DESC, gateway DESC, pipeline DESC, label DESC LIMIT ?"
    return [_rollup(row) for row in rows(f"{_ROLLUP}{text}{order}", (*values, limit))]


def _rollup(row: tuple[Any, ...]) -> Rollup:
    gateway, grain, pipeline, label, start_s, *sums = row
    events, updates, measures, inferences, findings, dropped, raw_bytes, sent_bytes, *spreads = sums
    return Rollup(
        gateway=gateway,
        grain_seconds=grain,
        pipeline=pipeline,
        label=label,
        start_s=start_s,
        events=events,
        updates=updates,
        score=_spread(*spreads[0:4]),
        measures=measures,
        inferences=inferences,
        findings=findings,
        level=_spread(*spreads[4:8]),
        latency_ms=_spread(*spreads[8:12]),
        dropped=dropped,
        raw_bytes=raw_bytes,
        sent_bytes=sent_bytes,
    )


def _spread(count: int, minimum: float | None, total: float | None, maximum: float | None) -> Spread:
    return Spread(count, minimum, total / count if count and total is not None else None, maximum)
