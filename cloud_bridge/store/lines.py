"""Pages of rows that belong to several lines, merged in the order of their ids.

One index holds the ids of each line in order, so a page costs what it shows, not what it leaves out: from each line
come a few ids at a time, and only as far as the page reaches into it.
"""

# ruff: noqa: S608  # the texts are put together from constants; values travel as parameters only

import heapq
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

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


def merged_ids(
    rows: Rows, table: str, lines: Sequence[Line], bounds: Sequence[Condition], *, limit: int, newest_first: bool
) -> list[int]:
    """Return the first `limit` ids of some lines together; `table` is known as `r` in all conditions."""
    if not lines or not limit:
        return []
    order, beyond = ("DESC", "r.id < ?") if newest_first else ("ASC", "r.id > ?")
    at_once = limit if len(lines) == 1 else min(limit, max(_LEAST_IDS, 2 * limit // len(lines)))

    def ids(line: Line) -> Iterator[int]:
        last: int | None = None
        while True:
            text, values = where([*bounds, (beyond, last)], line)
            found = rows(f"SELECT r.id FROM {table} r{text} ORDER BY r.id {order} LIMIT ?", (*values, at_once))
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
