"""Pages of rows that belong to several lines, merged in the order of their ids.

One index holds the ids of each line in order, so a page costs what it shows, not what it leaves out: from each line
come a few ids at a time, and only as far as the page reaches into it.
"""

# ruff: noqa: S608  # the texts are put together from constants; values travel as parameters only

import heapq
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final, Protocol

from cloud_bridge.store.keys import SHIFT

Rows = Callable[[str, Sequence[Any]], list[tuple[Any, ...]]]
Condition = tuple[str, Any]
"""A text with one question mark, and its value; None means: no such condition."""

Line = tuple[str, tuple[Any, ...]]
"""A condition that names a line, and its values."""

_LEAST_IDS: Final = 8
_IDS_AT_ONCE: Final = 500


def where(conditions: Sequence[Condition], *lines: Line) -> tuple[str, tuple[Any, ...]]:
    """Put conditions together, leaving out those without a value."""
    used = [(text, value) for text, value in conditions if value is not None]
    texts = [text for text, _ in lines] + [text for text, _ in used]
    values = [value for _, named in lines for value in named] + [value for _, value in used]
    return (f" WHERE {' AND '.join(texts)}" if texts else ""), tuple(values)


def record_line(kind: str, pipeline: str, stream: int) -> Line:
    """Name a line of records; "" is for records of no pipeline."""
    if pipeline:
        return "r.stream = ? AND r.kind = ? AND r.pipeline = ?", (stream, kind, pipeline)
    return "r.stream = ? AND r.kind = ? AND r.pipeline IS NULL", (stream, kind)


def event_line(gateway: str, pipeline: str, label: str) -> Line:
    """Name a line of events."""
    return "r.gateway = ? AND r.pipeline = ? AND r.label = ?", (gateway, pipeline, label)


class IdsOf(Protocol):
    """Makes the query for the ids of one line in their order, but for its LIMIT; the table is known as `r`."""

    def __call__(self, line: Line, bounds: Sequence[Condition], *, newest_first: bool) -> tuple[str, tuple[Any, ...]]:
        """Return the text and its values."""
        ...


def record_ids(line: Line, bounds: Sequence[Condition], *, newest_first: bool) -> tuple[str, tuple[Any, ...]]:
    """See IdsOf. Of records, by an index that holds each line as a whole."""
    return _ids_in("stream_records", line, bounds, newest_first=newest_first)


def event_ids(line: Line, bounds: Sequence[Condition], *, newest_first: bool) -> tuple[str, tuple[Any, ...]]:
    """See IdsOf. Of events."""
    return _ids_in("events", line, bounds, newest_first=newest_first)


def _ids_in(table: str, line: Line, bounds: Sequence[Condition], *, newest_first: bool) -> tuple[str, tuple[Any, ...]]:
    text, values = where(bounds, line)
    return f"SELECT r.id FROM {table} r{text} ORDER BY r.id {_order(newest_first=newest_first)}", values


def bucketed_record_ids(line: Line, bounds: Sequence[Condition], *, newest_first: bool) -> tuple[str, tuple[Any, ...]]:
    """See IdsOf. Of records in SQLite, whose index holds each line bucket by bucket.

    `line_buckets` says which buckets have a record of the line, so that none of the others is looked into.
    """
    stream, kind, *pipeline = line[1]
    named = ("k.stream = ? AND k.kind = ? AND k.pipeline = ?", (stream, kind, *(pipeline or [""])))
    around: list[Condition] = [
        ("k.bucket <= ?" if "<" in text else "k.bucket >= ?", value >> SHIFT)
        for text, value in bounds
        if text.startswith("r.id ") and value is not None
    ]
    text, values = where([*around, *bounds], named, line)
    order = _order(newest_first=newest_first)
    return (
        # The sign takes the type from the bucket: else SQLite would not compare it by an index on an expression.
        f"SELECT r.id FROM line_buckets k CROSS JOIN stream_records r ON r.id >> {SHIFT} = +k.bucket{text}"
        f" ORDER BY k.bucket {order}, r.id {order}"
    ), values


def _order(*, newest_first: bool) -> str:
    return "DESC" if newest_first else "ASC"


def merged_ids(
    rows: Rows, ids_of: IdsOf, lines: Sequence[Line], bounds: Sequence[Condition], *, limit: int, newest_first: bool
) -> list[int]:
    """Return the first `limit` ids of some lines together."""
    if not lines or not limit:
        return []
    beyond = "r.id < ?" if newest_first else "r.id > ?"
    at_once = limit if len(lines) == 1 else min(limit, max(_LEAST_IDS, 2 * limit // len(lines)))

    def ids(line: Line) -> Iterator[int]:
        last: int | None = None
        while True:
            sql, values = ids_of(line, [*bounds, (beyond, last)], newest_first=newest_first)
            found = rows(f"{sql} LIMIT ?", (*values, at_once))
            yield from (number for (number,) in found)
            if len(found) < at_once:
                return
            last = found[-1][0]

    merged = heapq.merge(*(ids(line) for line in lines), reverse=newest_first)
    return list(itertools.islice(merged, limit))


def by_ids(rows: Rows, select: str, ids: Sequence[int]) -> list[tuple[Any, ...]]:
    """Return rows, whose first column is their id, in the order of the ids."""
    found: dict[int, tuple[Any, ...]] = {}
    for first in range(0, len(ids), _IDS_AT_ONCE):
        some = ids[first : first + _IDS_AT_ONCE]
        marks = ", ".join("?" * len(some))
        found.update((row[0], row) for row in rows(f"{select} WHERE r.id IN ({marks})", some))
    return [found[number] for number in ids if number in found]  # retention may have been faster
