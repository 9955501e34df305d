"""What must be true of a store, whatever happened to it. Reads only, in one snapshot."""

# ruff: noqa: S608  # the texts are put together from constants; values travel as parameters only

import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import closing
from itertools import pairwise
from typing import Any, Final

import msgspec

from cloud_bridge.store.keys import SHIFT, Keys
from cloud_bridge.store.ledger import Span, Spans
from cloud_bridge.store.lines import Rows
from cloud_bridge.values import Violation

SHOWN: Final = 20
"""So many violations of one rule are told one by one."""

_PAGE: Final = 5000


class _Named(msgspec.Struct, frozen=True, gc=False):
    event_id: str
    revision: int = 0


_named: Final = msgspec.json.Decoder(_Named)


def check(rows: Rows, keys: Keys, *, hours_from_s: int = 0) -> list[Violation]:
    """Look for everything that both databases have. hours_from_s: hours of captures before then may be removed."""
    return shortened(
        _streams(rows, keys),
        _doubled_keys(rows),
        _doubled_revisions(rows),
        _dangling(rows, keys),
        _lines(rows),
        _rollups(rows, hours_from_s),
    )


def shortened(*rules: Iterable[Violation]) -> list[Violation]:
    """Put together what some rules have found, and tell only some of it where there is much."""
    return [violation for rule in rules for violation in _shortened(list(rule))]


def _shortened(violations: list[Violation]) -> list[Violation]:
    if len(violations) <= SHOWN:
        return violations
    last = violations[SHOWN - 1]
    more = len(violations) - SHOWN
    return [*violations[:SHOWN], Violation(last.rule, "", f"and {more} more of this kind")]


def _streams(rows: Rows, keys: Keys) -> Iterator[Violation]:
    """Check each stream's books: spans, gaps, rows and counters tell the same story."""
    rows_of: dict[int, int] = dict(rows(keys.present, ()))
    for stream, gateway, epoch, name, records, deleted in rows(
        "SELECT id, gateway, epoch, class, records, deleted FROM streams ORDER BY id", ()
    ):
        where = f"{gateway}/{name} ({epoch})"
        spans = [Span(*row) for row in rows(
            "SELECT first, last FROM stream_spans WHERE stream = ? ORDER BY first", (stream,)
        )]  # fmt: skip
        gaps = [Span(*row) for row in rows(
            "SELECT first, last FROM stream_gaps WHERE stream = ? ORDER BY first", (stream,)
        )]  # fmt: skip
        for problem in (*_span_problems(spans), *_gap_problems(spans, gaps)):
            yield Violation(problem[0], where, problem[1])
        known = sum(span.last - span.first + 1 for span in spans)
        missing = sum(gap.last - gap.first + 1 for gap in gaps)
        if known - missing != records:
            detail = f"{known} numbers are known and {missing} of them missing, but {records} records were taken"
            yield Violation("marks-and-records", where, detail)
        present = rows_of.get(stream, 0)
        if present != records - deleted:
            detail = f"{present} rows are there; {records} were taken and {deleted} removed by retention"
            yield Violation("rows-and-counters", where, detail)
        yield from _rows_elsewhere(rows, keys, (stream, where), spans, gaps)


def _span_problems(spans: list[Span]) -> Iterator[tuple[str, str]]:
    for span in spans:
        if not 1 <= span.first <= span.last:
            yield "spans", f"{span.first}..{span.last} is no range"
    for earlier, later in pairwise(spans):
        if later.first <= earlier.last + 1:
            yield "spans", f"{earlier.first}..{earlier.last} and {later.first}..{later.last} are not apart"


def _gap_problems(spans: list[Span], gaps: list[Span]) -> Iterator[tuple[str, str]]:
    known = Spans(spans)
    for gap in gaps:
        if gap.first > gap.last:
            yield "gaps", f"{gap.first}..{gap.last} is no range"
        elif known.missing(gap.first, gap.last):
            yield "gaps", f"{gap.first}..{gap.last} is explained as missing, but not among the numbers known"
    for earlier, later in pairwise(gaps):
        if later.first <= earlier.last:
            yield "gaps", f"{earlier.first}..{earlier.last} and {later.first}..{later.last} overlap"


def _rows_elsewhere(
    rows: Rows, keys: Keys, named: tuple[int, str], spans: list[Span], gaps: list[Span]
) -> Iterator[Violation]:
    """Check that no row stands where none can be: between the spans, or in a gap."""
    stream, where = named
    edges = [0, *(edge for span in spans for edge in span), 2**63 - 1]
    between = [(edges[at] + 1, edges[at + 1] - 1) for at in range(0, len(edges), 2)]
    for first, last in between:
        for (seq,) in _first_row(rows, keys, keys.range(stream, first, last)):
            yield Violation("row-unknown", where, f"record {seq} is there, but its number is not known")
    for gap in gaps:
        for (seq,) in _first_row(rows, keys, keys.range(stream, gap.first, gap.last)):
            yield Violation("row-in-gap", where, f"record {seq} is there, but stands in a gap")


def _first_row(rows: Rows, keys: Keys, numbers: tuple[int, ...]) -> list[tuple[Any, ...]]:
    return rows(f"SELECT r.seq FROM stream_records r WHERE {keys.some} ORDER BY r.seq LIMIT 1", numbers)


def _doubled_keys(rows: Rows) -> Iterator[Violation]:
    for gateway, name, epoch, seq, count in rows(
        "SELECT s.gateway, s.class, s.epoch, d.seq, d.n FROM"
        " (SELECT stream, seq, count(*) AS n FROM stream_records GROUP BY stream, seq HAVING count(*) > 1) d"
        " JOIN streams s ON s.id = d.stream ORDER BY s.gateway, s.class, s.epoch, d.seq",
        (),
    ):
        yield Violation("doubled-key", f"{gateway}/{name} ({epoch})", f"record {seq} is there {count} times")


def _doubled_revisions(rows: Rows) -> Iterator[Violation]:
    """Look for phases of events that came under two numbers: the same record, made twice by its device."""
    # In a database of its own, which goes to the disk when there are many.
    with closing(sqlite3.connect("", isolation_level=None)) as seen:
        seen.execute("CREATE TABLE seen (gateway TEXT, event_id TEXT, revision TEXT)")
        last_id = 0
        while page := rows(
            "SELECT r.id, s.gateway, r.body FROM stream_records r JOIN streams s ON s.id = r.stream"
            " WHERE r.id > ? AND r.kind = 'event' ORDER BY r.id LIMIT ?",
            (last_id, _PAGE),
        ):
            last_id = page[-1][0]
            seen.executemany("INSERT INTO seen VALUES (?, ?, ?)", _revisions(page))
        for gateway, event_id, revision, count in seen.execute(
            "SELECT *, count(*) FROM seen GROUP BY 1, 2, 3 HAVING count(*) > 1 ORDER BY 1, 2, 3"
        ):
            yield Violation("doubled-revision", gateway, f"revision {revision} of event {event_id}: {count} records")


def _revisions(page: list[tuple[Any, ...]]) -> Iterator[tuple[str, str, str]]:
    for _, gateway, body in page:
        try:
            event = _named.decode(body)
            event.event_id.encode()
        except (msgspec.DecodeError, UnicodeError, RecursionError):
            continue
        yield gateway, event.event_id, str(event.revision)


def _dangling(rows: Rows, keys: Keys) -> Iterator[Violation]:
    for table, column in (("events", "event_id"), ("evidence", "evidence_id")):
        for gateway, name in rows(
            f"SELECT e.gateway, e.{column} FROM {table} e WHERE NOT EXISTS"
            f" (SELECT 1 FROM stream_records r WHERE {keys.joined('r', 'e')})"
            " AND NOT EXISTS (SELECT 1 FROM streams s WHERE s.id = e.stream AND s.deleted > 0)",
            (),
        ):
            yield Violation("record-missing", str(gateway), f"{table}: the record of {name} is not there")


def _lines(rows: Rows) -> Iterator[Violation]:
    for stream, kind, pipeline in rows(
        "SELECT DISTINCT r.stream, r.kind, coalesce(r.pipeline, '') FROM stream_records r WHERE NOT EXISTS"
        " (SELECT 1 FROM lines l WHERE l.stream = r.stream AND l.kind = r.kind"
        " AND l.pipeline = coalesce(r.pipeline, ''))",
        (),
    ):
        yield Violation("line-missing", f"stream {stream}", f"records of {kind} {pipeline!r} are not found by filters")
    for gateway, pipeline, label in rows(
        "SELECT DISTINCT e.gateway, e.pipeline, e.label FROM events e WHERE NOT EXISTS"
        " (SELECT 1 FROM event_lines l WHERE l.gateway = e.gateway AND l.pipeline = e.pipeline"
        " AND l.label = e.label)",
        (),
    ):
        yield Violation("line-missing", str(gateway), f"events {label!r} of {pipeline} are not found by filters")


def runs(rows: Rows) -> Iterator[Violation]:
    """Check that SQLite's runs lead to every record, and its buckets to every record of a line."""
    for gateway, name, epoch, seq in rows(
        "SELECT s.gateway, s.class, s.epoch, r.seq FROM stream_records r JOIN streams s ON s.id = r.stream"
        " WHERE r.id IS NOT (SELECT CASE WHEN r.seq <= u.last THEN u.first_id - u.first + r.seq END FROM stream_runs u"
        " WHERE u.stream = r.stream AND u.first <= r.seq ORDER BY u.first DESC LIMIT 1)",
        (),
    ):
        yield Violation("run-missing", f"{gateway}/{name} ({epoch})", f"no run leads to record {seq}")
    for stream, first, last in rows(
        "SELECT stream, first, last FROM (SELECT stream, first, last, first_id,"
        "   lead(first) OVER (PARTITION BY stream ORDER BY first) AS next FROM stream_runs) u"
        " WHERE last < first OR last >= next OR NOT EXISTS (SELECT 1 FROM stream_records r WHERE r.id = u.first_id)",
        (),
    ):
        yield Violation("runs", f"stream {stream}", f"{first}..{last} is no range, overlaps, or its first is not there")
    for stream, kind, pipeline, bucket in rows(
        f"SELECT DISTINCT r.stream, r.kind, coalesce(r.pipeline, ''), r.id >> {SHIFT} FROM stream_records r"
        " WHERE NOT EXISTS (SELECT 1 FROM line_buckets k WHERE k.stream = r.stream AND k.kind = r.kind"
        f" AND k.pipeline = coalesce(r.pipeline, '') AND k.bucket = r.id >> {SHIFT})",
        (),
    ):
        detail = f"records of {kind} {pipeline!r} are not found by filters among the ids from {bucket << SHIFT} on"
        yield Violation("line-missing", f"stream {stream}", detail)


def _rollups(rows: Rows, hours_from_s: int) -> Iterator[Violation]:
    """Check that the hours of each day add up to it, where all of them are still there.

    Retention removes hours by their time, and a device that was away for years brings old ones afterwards: the oldest
    hour that is there does not say which were removed.
    """
    for gateway, pipeline, label, start_s, of_day, of_hours in rows(
        "SELECT d.gateway, d.pipeline, d.label, d.start_s, d.events + d.updates + d.measures,"
        " (SELECT coalesce(sum(h.events + h.updates + h.measures), 0) FROM rollups h WHERE h.gateway = d.gateway"
        "   AND h.grain = 3600 AND h.pipeline = d.pipeline AND h.label = d.label"
        "   AND h.start_s >= d.start_s AND h.start_s < d.start_s + 86400)"
        " FROM rollups d WHERE d.grain = 86400"
        " AND d.start_s >= ? AND d.start_s >= (SELECT coalesce(min(start_s), 0) FROM rollups WHERE grain = 3600)",
        (hours_from_s,),
    ):
        if of_day != of_hours:
            detail = f"the day at {start_s} counts {of_day} records, its hours {int(of_hours)}"
            yield Violation("rollups", f"{gateway}/{pipeline} {label!r}", detail)
