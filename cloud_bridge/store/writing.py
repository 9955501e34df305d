"""What is written for one intake, in SQL that both databases understand.

The phases go over all streams at once, so that the number of round trips does not grow with the number of devices.
Rows that several processes may want are taken in the same order (streams, gateways, pipelines, dead letters, each by
key), so that they do not wait for each other in a circle; everything else is behind the lock of its stream.
"""

# ruff: noqa: S608  # the texts are put together from constants; values travel as parameters only

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

from cloud_bridge.store import rolling
from cloud_bridge.store.collisions import WITHHELD, conflict_of, sort_known
from cloud_bridge.store.keys import Keys
from cloud_bridge.store.ledger import (
    BASE,
    DEAD_LETTER,
    EVICTION,
    QUARANTINE,
    GapSpan,
    Span,
    Spans,
    StreamLedger,
    runs_of,
)
from cloud_bridge.store.schema import FORGOTTEN
from cloud_bridge.values import Arrival, DeadLetter, Intake, Outcome, Row, StreamKey
from gateway.wire.messages import Event, Eviction, Evidence, Notice, encode, record_digest

Range = tuple[int, int, int]
"""A stream, and the first and the last of some of its numbers."""

SqlRow = tuple[Any, ...]

_MAX_DETAIL: Final = 500


class Transaction(Protocol):
    """One open transaction of either database. Placeholders are question marks."""

    @property
    def keys(self) -> Keys:
        """How this database finds records by their numbers."""
        ...

    def rows(self, sql: str, parameters: Sequence[Any] = ()) -> list[SqlRow]:
        """Run a query."""
        ...

    def change(self, sql: str, parameters: Sequence[Any] = ()) -> int:
        """Run a statement and return how many rows it changed."""
        ...

    def change_many(self, sql: str, parameters: Sequence[Sequence[Any]]) -> None:
        """Run a statement once for each row of parameters."""
        ...

    def open_streams(self, keys: Sequence[StreamKey]) -> dict[StreamKey, int]:
        """Return the ids of streams, made if need be, locked against other writers."""
        ...

    def spans_over(self, ranges: Sequence[Range]) -> list[SqlRow]:
        """Return (stream, first, last) of the spans that share a number with the ranges."""
        ...

    def gaps_over(self, ranges: Sequence[Range]) -> list[SqlRow]:
        """Return (stream, first, last, source, reason) of the gaps that share a number with the ranges."""
        ...

    def insert_records(self, rows: Sequence[SqlRow]) -> int:
        """Insert (stream, seq, kind, pipeline, recorded, received, body, blob); return how many were new.

        No record is stored under a number that has one, whatever the spans say: PostgreSQL skips it, SQLite raises.

        Raises:
            StoreRefusedError: a number has a record already.
        """
        ...


@dataclass(slots=True)
class _Work:
    """What one stream gets in this transaction."""

    arrivals: list[Arrival] = field(default_factory=list)
    evictions: list[Eviction] = field(default_factory=list)
    # What is of this stream and will not come as records: in a store that its device has lost, or in a dead letter.
    put_aside: list[GapSpan] = field(default_factory=list)
    fresh: list[Row] = field(default_factory=list)
    indexed: list[Row] = field(default_factory=list)
    again: list[Row] = field(default_factory=list)  # their numbers are known
    in_place: set[int] = field(default_factory=set)  # numbers of records that took the place of their stand-ins
    conflicts: int = 0
    received: int = 0
    given_up: int = 0

    @property
    def base(self) -> int:
        return max((arrival.base for arrival in self.arrivals), default=1)

    def runs(self) -> list[Span]:
        return [run for arrival in self.arrivals for run in runs_of([row.seq for row in arrival.rows])]


def write(tx: Transaction, intake: Intake) -> Outcome:
    """Write an intake inside an open transaction."""
    works = _works(intake.arrivals)
    ids = tx.open_streams(sorted(works)) if works else {}
    ledgers = _ledgers(tx, works, ids)
    for key, work in works.items():
        _decide(work, ledgers[key])
    now_ns = intake.received_at_ns
    rows = [
        (ids[key], row.seq, row.kind, row.pipeline, row.recorded_at_ns, now_ns, row.body, row.blob or None)
        for key, work in works.items()
        for row in work.fresh
    ]
    inserted = tx.insert_records(rows) if rows else 0
    _write_ledgers(tx, ledgers, ids, now_ns)
    conflicts = _compare(tx, works, ids)  # after the insert: two records of one number may have come together
    tx.change_many(
        "UPDATE streams SET records = records + ?, duplicates = duplicates + ?,"
        " last_received_at_ns = coalesce(?, last_received_at_ns), marked_at_ns = coalesce(?, marked_at_ns)"
        " WHERE id = ?",
        [
            (
                len(work.fresh),
                work.received - len(work.fresh) - work.conflicts,
                now_ns if work.arrivals else None,
                now_ns if ledgers[key].mark_moved else None,
                ids[key],
            )
            for key, work in sorted(works.items())
        ],
    )
    tx.change_many(
        f"UPDATE stream_records AS r SET pipeline = ? WHERE {tx.keys.one}",
        [(row.pipeline, *tx.keys.place(ids[a.key], row.seq)) for a in intake.arrivals if a.reindex for row in a.rows],
    )
    _write_lines(tx, works, ids)
    _fold_late(tx, works, ids)
    _write_events(tx, works, ids, now_ns)
    _write_evidence(tx, works, ids)
    _write_lost_stores(tx, works, now_ns)
    _write_fleet(tx, intake)
    _write_letters(tx, (*intake.dead_letters, *conflicts), now_ns)
    return Outcome(
        # Not of a store that was put aside: its device has another by now, and waits for the marks of that one.
        marks={key: ledgers[key].mark for key, work in works.items() if work.arrivals or work.evictions},
        inserted=inserted,
        duplicates=sum(work.received for work in works.values()) - inserted - len(conflicts),
        gap_rows=sum(work.given_up for work in works.values()),
        digests={key: _digest_at(tx, ids[key], work, ledgers[key].mark) for key, work in works.items()},
        conflicts=tuple(conflicts),
    )


def _compare(tx: Transaction, works: dict[StreamKey, _Work], ids: dict[StreamKey, int]) -> list[DeadLetter]:
    """Look at what came under known numbers; return the dead letters of those that are other records."""
    conflicts: list[DeadLetter] = []
    for key, work in works.items():
        if not work.again:
            continue
        found = sort_known(tx, ids[key], work.again)
        work.conflicts = len(found.others)
        conflicts.extend(conflict_of(key, row) for row in found.others)
        for row in found.in_place_of_withheld:
            tx.change(
                "UPDATE stream_records AS r SET kind = ?, pipeline = ?, recorded_at_ns = ?, body = ?, blob = ?"
                f" WHERE {tx.keys.one}",
                (
                    *(row.kind, row.pipeline, row.recorded_at_ns, row.body, row.blob or None),
                    *tx.keys.place(ids[key], row.seq),
                ),
            )
            tx.change(
                "DELETE FROM dead_letters WHERE reason = ? AND gateway = ? AND epoch = ? AND class = ? AND seq = ?",
                (WITHHELD, *key, row.seq),
            )
            work.indexed.append(row)
            work.in_place.add(row.seq)
    return conflicts


def _digest_at(tx: Transaction, stream: int, work: _Work, mark: int) -> str:
    """Name the record that carries a mark; "" if it is not there any more, or was given up."""
    if not mark or not work.arrivals:
        return ""
    for row in reversed(work.fresh):
        if row.seq == mark:
            return record_digest(row.kind, row.body, row.blob)
    for kind, body, blob in tx.rows(
        f"SELECT kind, body, blob FROM stream_records r WHERE {tx.keys.one}", tx.keys.place(stream, mark)
    ):
        return record_digest(kind, bytes(body), bytes(blob or b""))
    return ""


def _works(arrivals: Iterable[Arrival]) -> dict[StreamKey, _Work]:
    works: dict[StreamKey, _Work] = {}
    for arrival in arrivals:
        work = works.setdefault(arrival.key, _Work())
        work.arrivals.append(arrival)
        work.put_aside.extend(GapSpan(one.first, one.last, DEAD_LETTER, one.digest) for one in arrival.kept)
        for row in arrival.rows:
            if isinstance(row.index, Eviction):
                target = arrival.key._replace(record_class=row.index.record_class)
                works.setdefault(target, _Work()).evictions.append(row.index)
            elif isinstance(row.index, Notice):
                for target, lost in _put_aside(arrival.key, row.index):
                    works.setdefault(target, _Work()).put_aside.append(lost)
    return works


def _put_aside(key: StreamKey, notice: Notice) -> Iterator[tuple[StreamKey, GapSpan]]:
    """Read from a notice which numbers of which streams went with a store."""
    if notice.epoch is not None and notice.epoch != key.epoch:
        for record_class, (first, last) in notice.missing.items():
            target = StreamKey(key.gateway, notice.epoch, record_class)
            yield target, GapSpan(first, last, QUARANTINE, notice.detail[:_MAX_DETAIL])


def _write_lost_stores(tx: Transaction, works: dict[StreamKey, _Work], now_ns: int) -> None:
    lost = {
        (key.gateway, row.index.epoch): row.index.detail[:_MAX_DETAIL].replace("\0", "\\x00")
        for key, work in works.items()
        for row in work.indexed
        if isinstance(row.index, Notice) and row.index.epoch not in (None, key.epoch)
    }
    tx.change_many(
        "INSERT INTO lost_stores (gateway, epoch, detail, noted_at_ns) VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING",
        [(*name, detail, now_ns) for name, detail in sorted(lost.items())],
    )


def _ledgers(
    tx: Transaction, works: dict[StreamKey, _Work], ids: dict[StreamKey, int]
) -> dict[StreamKey, StreamLedger]:
    """Read what the database knows about the numbers that came."""
    wanted: list[Range] = []
    runs = {
        key: [run for a in work.arrivals for run in runs_of([row.seq for row in a.rows])] for key, work in works.items()
    }
    for key, work in works.items():
        around = Spans()
        around.add(1, work.base)  # the span that holds 1 carries the mark
        for eviction in work.evictions:
            around.add(eviction.first_seq - 1, eviction.last_seq + 1)
        for lost in work.put_aside:
            around.add(lost.first - 1, lost.last + 1)
        for run in runs[key]:
            around.add(run.first - 1, run.last + 1)
        wanted.extend((ids[key], span.first, span.last) for span in around)
    spans: dict[int, list[tuple[int, int]]] = {}
    for stream, first, last in tx.spans_over(wanted) if wanted else ():
        spans.setdefault(stream, []).append((first, last))
    again: list[Range] = []
    for key, work in works.items():
        known = Spans(set(spans.get(ids[key], ())))
        evicted = [Span(eviction.first_seq, eviction.last_seq) for eviction in work.evictions]
        overlapped = Spans()
        evicted += [Span(lost.first, lost.last) for lost in work.put_aside]
        for run in (*runs[key], *evicted):
            if known.overlapping(*run):
                overlapped.add(*run)
        again.extend((ids[key], span.first, span.last) for span in overlapped)
    gaps: dict[int, set[GapSpan]] = {}
    for stream, *gap in tx.gaps_over(again) if again else ():
        gaps.setdefault(stream, set()).add(GapSpan(*gap))
    return {key: StreamLedger(spans.get(ids[key], ()), gaps.get(ids[key], ())) for key in works}


def _decide(work: _Work, ledger: StreamLedger) -> None:
    """Take what is new. What came counts before what is given up, so that the order of messages does not matter."""
    for arrival in work.arrivals:
        new = ledger.receive([row.seq for row in arrival.rows])
        fresh = arrival.rows if new is None else [arrival.rows[at] for at in new]
        work.received += len(arrival.rows)
        work.fresh.extend(fresh)
        if new is not None and not arrival.reindex:
            taken = set(new)
            work.again.extend(row for at, row in enumerate(arrival.rows) if at not in taken)
        work.indexed.extend(arrival.rows if arrival.reindex else fresh)
    for eviction in work.evictions:
        work.given_up += ledger.give_up(eviction.first_seq, eviction.last_seq, EVICTION, eviction.reason)
    for lost in work.put_aside:
        work.given_up += ledger.give_up(*lost)
    if work.base > 1:
        work.given_up += ledger.give_up(1, work.base - 1, BASE)


def _write_ledgers(
    tx: Transaction, ledgers: dict[StreamKey, StreamLedger], ids: dict[StreamKey, int], now_ns: int
) -> None:
    spans_gone: list[SqlRow] = []
    spans_new: list[SqlRow] = []
    gaps_gone: list[SqlRow] = []
    gaps_new: list[SqlRow] = []
    for key, ledger in ledgers.items():
        removed, added = ledger.span_changes()
        spans_gone.extend((ids[key], span.first) for span in removed)
        spans_new.extend((ids[key], span.first, span.last) for span in added)
        gaps_removed, gaps_added = ledger.gap_changes()
        gaps_gone.extend((ids[key], gap.first) for gap in gaps_removed)
        gaps_new.extend((ids[key], gap.first, gap.last, gap.source, gap.reason, now_ns) for gap in gaps_added)
    tx.change_many("DELETE FROM stream_spans WHERE stream = ? AND first = ?", spans_gone)
    tx.change_many("INSERT INTO stream_spans (stream, first, last) VALUES (?, ?, ?)", spans_new)
    tx.change_many("DELETE FROM stream_gaps WHERE stream = ? AND first = ?", gaps_gone)
    tx.change_many(
        "INSERT INTO stream_gaps (stream, first, last, source, reason, noted_at_ns) VALUES (?, ?, ?, ?, ?, ?)", gaps_new
    )


def _write_lines(tx: Transaction, works: dict[StreamKey, _Work], ids: dict[StreamKey, int]) -> None:
    lines = {
        (ids[key], row.kind, row.pipeline or "")
        for key, work in works.items()
        for rows in (work.fresh, work.indexed)
        for row in rows
    }
    tx.change_many("INSERT INTO lines (stream, kind, pipeline) VALUES (?, ?, ?) ON CONFLICT DO NOTHING", sorted(lines))
    event_lines = {
        (key.gateway, row.index.pipeline, row.index.label)
        for key, work in works.items()
        for row in work.indexed
        if isinstance(row.index, Event)
    }
    tx.change_many(
        "INSERT INTO event_lines (gateway, pipeline, label) VALUES (?, ?, ?) ON CONFLICT DO NOTHING",
        sorted(event_lines),
    )


def _fold_late(tx: Transaction, works: dict[StreamKey, _Work], ids: dict[StreamKey, int]) -> None:
    """Roll up what was there already, and is understood only now; what is new is folded in its turn."""
    late = []
    for key, work in works.items():
        if len(work.indexed) == len(work.fresh):
            continue
        fresh = {row.seq for row in work.fresh}
        for row in work.indexed:
            if row.seq in fresh or row.kind not in rolling.FOLDED_KINDS:
                continue
            if _was_passed_over(tx, key.gateway, ids[key], row.seq, in_place=row.seq in work.in_place):
                late.append((key.gateway, row.kind, row.body))
    tx.change_many(rolling.UPSERT, rolling.rows_of(rolling.fold(late)))


def _was_passed_over(tx: Transaction, gateway: str, stream: int, seq: int, *, in_place: bool) -> bool:
    """Tell whether its turn is over, and added nothing: what the list of events cannot use the sums often can."""
    found = tx.rows(
        "SELECT r.kind, r.body FROM stream_records r"
        f" WHERE {tx.keys.one} AND r.id <= (SELECT through_id FROM rollup_state)",
        tx.keys.place(stream, seq),
    )
    return bool(found) and (in_place or not rolling.fold((gateway, kind, bytes(body)) for kind, body in found))


def _write_events(tx: Transaction, works: dict[StreamKey, _Work], ids: dict[StreamKey, int], now_ns: int) -> None:
    latest: dict[tuple[str, str], tuple[Event, int, int]] = {}
    for key, work in works.items():
        for row in work.indexed:
            if isinstance(row.index, Event):
                name = (key.gateway, row.index.event_id)
                other = latest.get(name)
                if other is None or row.index.revision >= other[0].revision:
                    latest[name] = (row.index, ids[key], row.seq)
    tx.change_many(
        "INSERT INTO events (gateway, event_id, pipeline, label, phase, revision, captured_at_ns, received_at_ns,"
        " updated_at_ns, stream, seq) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
        " ON CONFLICT (gateway, event_id) DO UPDATE SET pipeline = excluded.pipeline, label = excluded.label,"
        " phase = excluded.phase, revision = excluded.revision, captured_at_ns = excluded.captured_at_ns,"
        " updated_at_ns = excluded.updated_at_ns, stream = excluded.stream, seq = excluded.seq"
        " WHERE excluded.revision >= events.revision",
        [
            (*name, e.pipeline, e.label, e.phase, e.revision, e.captured_at_ns, now_ns, now_ns, stream, seq)
            for name, (e, stream, seq) in latest.items()  # in the order of receipt, which their ids keep
        ],
    )


def _write_evidence(tx: Transaction, works: dict[StreamKey, _Work], ids: dict[StreamKey, int]) -> None:
    found = {
        (row.index.evidence_id, key.gateway): (ids[key], row.seq, row.index.content_type)
        for key, work in works.items()
        for row in work.indexed
        if isinstance(row.index, Evidence)
    }
    tx.change_many(
        "INSERT INTO evidence (evidence_id, gateway, stream, seq, content_type) VALUES (?, ?, ?, ?, ?)"
        " ON CONFLICT (evidence_id, gateway) DO UPDATE SET stream = excluded.stream, seq = excluded.seq,"
        " content_type = excluded.content_type",
        [(*name, *rest) for name, rest in sorted(found.items())],
    )


def _write_fleet(tx: Transaction, intake: Intake) -> None:
    availability = dict(intake.availability)  # the last of each gateway
    # All of them in one statement, by name: one after the other, two writers could wait for each other in a circle.
    tx.change_many(
        "INSERT INTO gateways (gateway, seen_at_ns) VALUES (?, ?) ON CONFLICT (gateway) DO UPDATE SET seen_at_ns ="
        " CASE WHEN excluded.seen_at_ns = 0 THEN gateways.seen_at_ns ELSE excluded.seen_at_ns END,"
        # A sign of life brings one back that was forgotten.
        f" state = CASE WHEN excluded.seen_at_ns <> 0 AND gateways.state = '{FORGOTTEN}' THEN 'unknown'"
        " ELSE gateways.state END",
        [(name, intake.received_at_ns * (name in intake.seen)) for name in sorted(intake.seen | availability.keys())],
    )
    tx.change_many(
        "INSERT INTO gateways (gateway, state, at, version) VALUES (?, ?, ?, ?)"
        # What a broker has retained of one that was forgotten is no news.
        f" ON CONFLICT (gateway) DO UPDATE SET state = CASE WHEN gateways.state = '{FORGOTTEN}' THEN gateways.state"
        " ELSE excluded.state END, at = excluded.at,"
        # A will was written before the version could have changed, and may carry none.
        " version = CASE WHEN excluded.version = '' THEN gateways.version ELSE excluded.version END",
        [(name, said.state, said.at, said.version) for name, said in sorted(availability.items())],
    )
    statuses = {(name, status.pipeline): status for name, status in intake.statuses}
    tx.change_many(
        "INSERT INTO pipelines (gateway, pipeline, received_at_ns, status) VALUES (?, ?, ?, ?)"
        " ON CONFLICT (gateway, pipeline) DO UPDATE SET received_at_ns = excluded.received_at_ns,"
        " status = excluded.status",
        [
            (*name, intake.received_at_ns, encode(status))
            for name, status in sorted(statuses.items(), key=lambda i: i[0])
        ],
    )


def digest_of(letter: DeadLetter) -> str:
    """Name a dead letter after its content, so that the same poison sent again and again is one row."""
    digest = hashlib.sha256()
    for part in (letter.reason, letter.topic, str(letter.key and tuple(letter.key)), str(letter.seq)):
        digest.update(part.encode("utf-8", "surrogatepass") + b"\0")
    digest.update(letter.payload)
    return digest.hexdigest()


def _write_letters(tx: Transaction, letters: Sequence[DeadLetter], now_ns: int) -> None:
    counted: dict[str, tuple[DeadLetter, int]] = {}
    retained: dict[str, tuple[DeadLetter, int]] = {}
    for letter in letters:
        digest = digest_of(letter)
        if letter.retained:
            retained[digest] = (letter, 1)
            continue
        counted[digest] = (letter, counted[digest][1] + 1 if digest in counted else 1)
    for chosen, known in (
        # Those that an earlier version has kept did not say whose they are.
        (
            counted,
            "UPDATE SET count = dead_letters.count + excluded.count,"
            " gateway = excluded.gateway, class = excluded.class, last_at_ns = excluded.last_at_ns",
        ),
        (retained, "NOTHING"),  # that it comes again says that the bridge has connected again, and no more
    ):
        if chosen:
            tx.change_many(
                "INSERT INTO dead_letters (digest, reason, topic, detail, gateway, epoch, class, seq, payload,"
                " payload_bytes, count, first_at_ns, last_at_ns) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
                f" ON CONFLICT (digest) DO {known}",
                [
                    (
                        *(digest, one.reason, one.topic, one.detail, *_place_of(one), one.seq),
                        *(one.payload, one.payload_bytes, count, now_ns, now_ns),
                    )
                    for digest, (one, count) in sorted(chosen.items(), key=lambda item: item[0])
                ],
            )


def _place_of(letter: DeadLetter) -> tuple[str | None, str | None, str | None]:
    """Return gateway, epoch and class; where only the epoch is missing, a message of records is in it as a whole."""
    if letter.key is not None:
        return letter.key
    return (letter.sender[0], None, letter.sender[1]) if letter.sender is not None else (None, None, None)


def forget(tx: Transaction, gateway: str) -> bool:
    """Show a gateway and its pipelines no more until it is heard of again; False if it is not shown.

    Its records stay, and so do its streams: should it come back, what it sends again is known.
    """
    tx.change("DELETE FROM pipelines WHERE gateway = ?", (gateway,))
    sql = "UPDATE gateways SET state = ? WHERE gateway = ? AND state <> ?"
    return tx.change(sql, (FORGOTTEN, gateway, FORGOTTEN)) == 1


def settle(tx: Transaction, letter_id: int, intake: Intake | None) -> Outcome:
    """Remove a dead letter and write what was made of it."""
    outcome = write(tx, intake) if intake is not None else Outcome()
    tx.change("DELETE FROM dead_letters WHERE id = ?", (letter_id,))
    return outcome
