"""The queries, in SQL that both databases understand.

The texts are put together from constants of this file; values travel as parameters only.
"""

# ruff: noqa: S608

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, Final, Unpack

import msgspec

from cloud_bridge.store import listing
from cloud_bridge.store.base import EventFilter, GapFilter, LetterFilter, RecordFilter, RollupFilter
from cloud_bridge.store.keys import Keys
from cloud_bridge.store.lines import (
    Condition,
    IdsOf,
    Line,
    by_ids,
    event_ids,
    event_line,
    merged_ids,
    record_ids,
    record_line,
    where,
)
from cloud_bridge.store.schema import FORGOTTEN
from cloud_bridge.values import (
    Counts,
    Gap,
    GatewayState,
    PipelineState,
    Rollup,
    StoredEvent,
    StoredLetter,
    StoredRecord,
    Stream,
    StreamKey,
)
from gateway.wire.messages import Event, PipelineStatus

_events = msgspec.json.Decoder(Event)
_statuses = msgspec.json.Decoder(PipelineStatus)

_MIXED_IDS: Final = 10_000

_EVENT = "SELECT r.id, r.received_at_ns, r.updated_at_ns, b.body FROM events r JOIN stream_records b ON {}"
_RECORD = (
    "SELECT r.id, s.gateway, s.epoch, s.class, r.seq, r.kind, r.pipeline, r.recorded_at_ns, r.received_at_ns, r.body,"
    " {} FROM stream_records r JOIN streams s ON s.id = r.stream"
)


class SqlReader:
    """The reading half of a store. `_rows` runs one query in a transaction of its own."""

    _keys = Keys()

    def _record_ids(
        self, line: Line, bounds: Sequence[Condition], *, newest_first: bool
    ) -> tuple[str, tuple[Any, ...]]:
        return record_ids(line, bounds, newest_first=newest_first)

    @abstractmethod
    def _rows(self, sql: str, parameters: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """Run one query and return all of its rows."""

    def gateways(self) -> list[GatewayState]:
        """See Reader."""
        sql = "SELECT gateway, state, at, version, seen_at_ns FROM gateways WHERE state <> ? ORDER BY gateway"
        rows = self._rows(sql, (FORGOTTEN,))
        return [GatewayState(*row) for row in rows]

    def pipelines(self, gateway: str | None = None) -> list[PipelineState]:
        """See Reader."""
        text, values = where([("gateway = ?", gateway)])
        hidden = "EXISTS (SELECT 1 FROM gateways g WHERE g.gateway = pipelines.gateway AND g.state = ?)"
        text = f"{text} {'AND' if text else 'WHERE'} NOT {hidden}"
        rows = self._rows(
            f"SELECT gateway, received_at_ns, status FROM pipelines{text} ORDER BY gateway, pipeline",
            (*values, FORGOTTEN),
        )
        return [PipelineState(name, at_ns, _statuses.decode(status)) for name, at_ns, status in rows]

    def events(self, *, limit: int = 100, **wanted: Unpack[EventFilter]) -> list[StoredEvent]:
        """See Reader."""
        select = _EVENT.format(self._keys.joined("b", "r"))
        gateway, pipeline, label = wanted.get("gateway"), wanted.get("pipeline"), wanted.get("label")
        since_ns, until_ns = wanted.get("since_ns"), wanted.get("until_ns")
        bounds: list[Condition] = [("r.id < ?", wanted.get("before_id"))]
        if since_ns is not None:
            # Without the lower end of what changed since then, a page that is not full would read to the first event.
            # The sign keeps SQLite from looking for the smallest id by trying one after the other.
            ((lowest,),) = self._rows("SELECT min(+id) FROM events WHERE updated_at_ns >= ?", (since_ns,))
            if lowest is None:
                return []
            bounds += [("r.id >= ?", lowest), ("r.updated_at_ns >= ?", since_ns)]
        if until_ns is not None:
            bounds += [("r.id < ?", self._id_at("events", until_ns) + _MIXED_IDS), ("r.updated_at_ns < ?", until_ns)]
        if gateway is None and pipeline is None and label is None:
            text, values = where(bounds)
            rows = self._rows(f"{select}{text} ORDER BY r.id DESC LIMIT ?", (*values, limit))
        else:
            chosen, values = where([("gateway = ?", gateway), ("pipeline = ?", pipeline), ("label = ?", label)])
            found = self._rows(f"SELECT gateway, pipeline, label FROM event_lines{chosen}", values)
            lines = [event_line(*line) for line in found]
            rows = self._page(select, (event_ids, lines, bounds), limit=limit, newest_first=True)
        return [_event(row) for row in rows]

    def _page(
        self,
        select: str,
        chosen: tuple[IdsOf, Sequence[Line], Sequence[Condition]],
        *,
        limit: int,
        newest_first: bool,
    ) -> list[tuple[Any, ...]]:
        """Return the first rows of some lines of a table.

        What retention has taken, or the body of, must not shorten a page: a short one says that the list ends.
        """
        ids_of, lines, bounds = chosen
        beyond: list[Condition] = []
        rows: list[tuple[Any, ...]] = []
        ask = limit
        while len(rows) < limit:
            ids = merged_ids(self._rows, ids_of, lines, [*bounds, *beyond], limit=ask, newest_first=newest_first)
            rows += by_ids(self._rows, select, ids)
            if len(ids) < ask:
                break
            beyond = [("r.id < ?" if newest_first else "r.id > ?", ids[-1])]
            ask = min(2 * ask, max(limit, _MIXED_IDS))
        return rows[:limit]

    def event(self, event_id: str, gateway: str | None = None) -> StoredEvent | None:
        """See Reader."""
        select = _EVENT.format(self._keys.joined("b", "r"))
        if gateway is not None:
            rows = self._rows(f"{select} WHERE r.gateway = ? AND r.event_id = ?", (gateway, event_id))
        else:
            # By gateway first: the key begins with it, and there are far fewer gateways than events.
            rows = self._rows(
                f"{select} WHERE r.event_id = ? AND r.gateway IN (SELECT gateway FROM gateways) ORDER BY r.id LIMIT 1",
                (event_id,),
            )
        return _event(rows[0]) if rows else None

    def records(self, wanted: RecordFilter, *, limit: int = 100, with_blobs: bool = False) -> list[StoredRecord]:
        """See Reader."""
        select = _RECORD.format("r.blob" if with_blobs else "NULL")
        newest_first = wanted.after_id is None
        bounds: list[Condition] = [("r.id < ?", wanted.before_id), ("r.id > ?", wanted.after_id)]
        if not newest_first:
            bounds.append(("r.id <= ?", self._horizon()))
        if wanted.since_ns is not None:
            # Several processes, or a clock set back, may have mixed ids and times a little.
            lowest = max(0, self._id_at("stream_records", wanted.since_ns) - _MIXED_IDS)
            bounds += [("r.id >= ?", lowest), ("r.received_at_ns >= ?", wanted.since_ns)]
        if wanted.until_ns is not None:
            highest = self._id_at("stream_records", wanted.until_ns) + _MIXED_IDS
            bounds += [("r.id < ?", highest), ("r.received_at_ns < ?", wanted.until_ns)]
        if (wanted.gateway, wanted.record_class, wanted.kind, wanted.pipeline) == (None,) * 4:
            text, values = where(bounds)
            order = "DESC" if newest_first else "ASC"
            rows = self._rows(f"{select}{text} ORDER BY r.id {order} LIMIT ?", (*values, limit))
        else:
            chosen = (self._record_ids, self._lines(wanted), bounds)
            rows = self._page(select, chosen, limit=limit, newest_first=newest_first)
        return [_record(row) for row in rows]

    def _lines(self, wanted: RecordFilter) -> list[tuple[str, tuple[Any, ...]]]:
        chosen, values = where(
            [
                ("s.gateway = ?", wanted.gateway),
                ("s.class = ?", wanted.record_class),
                ("l.kind = ?", wanted.kind),
                ("l.pipeline = ?", wanted.pipeline),
            ]
        )
        rows = self._rows(
            f"SELECT l.kind, l.pipeline, l.stream FROM lines l JOIN streams s ON s.id = l.stream{chosen}", values
        )
        return [record_line(*row) for row in rows]

    def _horizon(self) -> int:
        """Return an id up to which every record is committed that ever will be."""
        return self._highest_id()

    def _highest_id(self) -> int:
        ((highest,),) = self._rows(
            "SELECT coalesce((SELECT id FROM stream_records ORDER BY id DESC LIMIT 1), 0)",
        )
        return int(highest)

    def _id_at(self, table: str, at_ns: int) -> int:
        """Return the id of the first row received at or after a time; ids rise with the time of receipt."""
        ((low, high),) = self._rows(
            f"SELECT coalesce((SELECT id FROM {table} ORDER BY id LIMIT 1), 0),"
            f" coalesce((SELECT id FROM {table} ORDER BY id DESC LIMIT 1), 0) + 1"
        )
        while low < high:
            middle = (low + high) // 2
            found = self._rows(f"SELECT received_at_ns FROM {table} WHERE id >= ? ORDER BY id LIMIT 1", (middle,))
            if found and found[0][0] < at_ns:
                low = middle + 1
            else:
                high = middle
        return int(low)

    def record(self, key: StreamKey, seq: int) -> StoredRecord | None:
        """See Reader."""
        for (stream,) in self._rows("SELECT id FROM streams WHERE gateway = ? AND epoch = ? AND class = ?", key):
            for row in self._rows(f"{_RECORD.format('r.blob')} WHERE {self._keys.one}", self._keys.place(stream, seq)):
                return _record(row)
        return None

    def measures(
        self,
        *,
        gateway: str | None = None,
        pipeline: str | None = None,
        since_ns: int | None = None,
        limit: int = 1000,
    ) -> list[StoredRecord]:
        """See Reader."""
        wanted = RecordFilter(gateway=gateway, pipeline=pipeline, since_ns=since_ns, kind="measure")
        return self.records(wanted, limit=limit)

    def evidence(self, evidence_id: str, gateway: str | None = None) -> tuple[str, bytes] | None:
        """See Reader."""
        text, values = where([("e.evidence_id = ?", evidence_id), ("e.gateway = ?", gateway)])
        rows = self._rows(
            "SELECT e.content_type, r.blob FROM evidence e"
            f" JOIN stream_records r ON {self._keys.joined('r', 'e')}{text} ORDER BY e.gateway LIMIT 1",
            values,
        )
        return (rows[0][0], bytes(rows[0][1] or b"")) if rows else None

    def streams(self) -> list[Stream]:
        """See Reader."""
        rows = self._rows(
            "SELECT s.gateway, s.epoch, s.class,"
            " coalesce((SELECT last FROM stream_spans p WHERE p.stream = s.id AND p.first = 1), 0),"
            " coalesce((SELECT last FROM stream_spans p WHERE p.stream = s.id ORDER BY first DESC LIMIT 1), 0),"
            " s.records - s.deleted, s.duplicates, s.last_received_at_ns, s.marked_at_ns"
            " FROM streams s ORDER BY s.gateway, s.epoch, s.class"
        )
        return [Stream(StreamKey(*row[:3]), *row[3:]) for row in rows]

    def gaps(self, *, limit: int = 1000, **wanted: Unpack[GapFilter]) -> list[Gap]:
        """See Reader."""
        return listing.gaps(self._rows, wanted, limit)

    def identity(self) -> str:
        """Return the id that the store was given when it was made."""
        ((found,),) = self._rows("SELECT id FROM store_identity")
        return str(found)

    def counts(self) -> Counts:
        """See Reader."""
        ((stored, deleted, duplicates),) = self._rows(
            "SELECT coalesce(sum(records), 0), coalesce(sum(deleted), 0), coalesce(sum(duplicates), 0) FROM streams"
        )
        ((events,),) = self._rows("SELECT count(*) FROM events")
        # In floating point, because SQLite refuses to overflow and one gap may be as long as the numbers go.
        ((gaps,),) = self._rows("SELECT coalesce(sum(last - first + 1.0), 0) FROM stream_gaps")
        letters = self._rows("SELECT reason, sum(count) FROM dead_letters GROUP BY reason ORDER BY reason")
        return Counts(
            records=int(stored) - int(deleted),
            events=events,
            duplicates=int(duplicates),
            gaps=int(gaps),
            dead_letters={reason: int(count) for reason, count in letters},
            deleted=int(deleted),
        )

    def dead_letters(self, *, limit: int = 100, **wanted: Unpack[LetterFilter]) -> list[StoredLetter]:
        """See Reader."""
        return listing.dead_letters(self._rows, wanted, limit)

    def dead_letter(self, letter_id: int) -> StoredLetter | None:
        """See Reader."""
        return listing.dead_letter(self._rows, letter_id)

    def rollups(self, wanted: RollupFilter, *, limit: int = 1000) -> list[Rollup]:
        """See Reader."""
        return listing.rollups(self._rows, wanted, limit)

    def rollup_backlog(self) -> int:
        """See Reader."""
        ((through,),) = self._rows("SELECT through_id FROM rollup_state")
        return max(0, self._highest_id() - int(through))

    def received_since(self, since_ns: int) -> int:
        """See Reader."""
        return max(0, self._highest_id() + 1 - self._id_at("stream_records", since_ns))


def _event(row: tuple[Any, ...]) -> StoredEvent:
    number, received_at_ns, updated_at_ns, body = row
    return StoredEvent(number, received_at_ns, updated_at_ns, _events.decode(body))


def _record(row: tuple[Any, ...]) -> StoredRecord:
    number, gateway, epoch, record_class, seq, kind, pipeline, recorded_ns, received_ns, body, blob = row
    key = StreamKey(gateway, epoch, record_class)
    return StoredRecord(number, key, seq, kind, pipeline, recorded_ns, received_ns, bytes(body), bytes(blob or b""))
