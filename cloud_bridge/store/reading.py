"""The queries, in SQL that both databases understand.

The texts are put together from constants of this file; values travel as parameters only.
"""

# ruff: noqa: S608

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, Final

import msgspec

from cloud_bridge.store.base import RecordFilter
from cloud_bridge.store.schema import RARE
from cloud_bridge.values import (
    Counts,
    DeadLetter,
    Gap,
    GatewayState,
    PipelineState,
    StoredEvent,
    StoredLetter,
    StoredRecord,
    Stream,
    StreamKey,
)
from gateway.wire.messages import Event, PipelineStatus

_events = msgspec.json.Decoder(Event)
_statuses = msgspec.json.Decoder(PipelineStatus)

_COMMON: Final = (None, "event", "measure")
_MIXED_IDS: Final = 10_000

_EVENT = (
    "SELECT e.id, e.received_at_ns, e.updated_at_ns, r.body"
    " FROM events e JOIN stream_records r ON r.stream = e.stream AND r.seq = e.seq"
)
_RECORD = (
    "SELECT r.id, s.gateway, s.epoch, s.class, r.seq, r.kind, r.pipeline, r.recorded_at_ns, r.received_at_ns, r.body,"
    " {} FROM stream_records r JOIN streams s ON s.id = r.stream"
)
_LETTER = (
    "SELECT id, reason, topic, detail, payload, payload_bytes, gateway, epoch, class, seq, count,"
    " first_at_ns, last_at_ns FROM dead_letters"
)


class SqlReader:
    """The reading half of a store. `_rows` runs one query in a transaction of its own."""

    @abstractmethod
    def _rows(self, sql: str, parameters: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """Run one query and return all of its rows."""

    def gateways(self) -> list[GatewayState]:
        """See Reader."""
        rows = self._rows("SELECT gateway, state, at, version, seen_at_ns FROM gateways ORDER BY gateway")
        return [GatewayState(*row) for row in rows]

    def pipelines(self, gateway: str | None = None) -> list[PipelineState]:
        """See Reader."""
        where, parameters = _where([("gateway = ?", gateway)])
        rows = self._rows(
            f"SELECT gateway, received_at_ns, status FROM pipelines{where} ORDER BY gateway, pipeline", parameters
        )
        return [PipelineState(name, at_ns, _statuses.decode(status)) for name, at_ns, status in rows]

    def events(
        self,
        *,
        limit: int = 100,
        gateway: str | None = None,
        pipeline: str | None = None,
        label: str | None = None,
        since_ns: int | None = None,
        before_id: int | None = None,
    ) -> list[StoredEvent]:
        """See Reader."""
        where, parameters = _where(
            [
                ("e.gateway = ?", gateway),
                ("e.pipeline = ?", pipeline),
                ("e.label = ?", label),
                ("e.updated_at_ns >= ?", since_ns),
                ("e.id < ?", before_id),
            ]
        )
        rows = self._rows(f"{_EVENT}{where} ORDER BY e.id DESC LIMIT ?", (*parameters, limit))
        return [_event(row) for row in rows]

    def event(self, event_id: str, gateway: str | None = None) -> StoredEvent | None:
        """See Reader."""
        if gateway is not None:
            rows = self._rows(f"{_EVENT} WHERE e.gateway = ? AND e.event_id = ?", (gateway, event_id))
        else:
            # By gateway first: the key begins with it, and there are far fewer gateways than events.
            rows = self._rows(
                f"{_EVENT} WHERE e.event_id = ? AND e.gateway IN (SELECT gateway FROM gateways) ORDER BY e.id LIMIT 1",
                (event_id,),
            )
        return _event(rows[0]) if rows else None

    def records(self, wanted: RecordFilter, *, limit: int = 100, with_blobs: bool = False) -> list[StoredRecord]:
        """See Reader."""
        columns = _RECORD.format("r.blob" if with_blobs else "NULL")
        conditions: list[tuple[str, Any]] = [
            ("r.pipeline = ?", wanted.pipeline),
            ("r.kind = ?" if wanted.kind in _COMMON else f"r.{RARE} AND r.kind = ?", wanted.kind),
            ("r.id < ?", wanted.before_id),
            ("r.id > ?", wanted.after_id),
        ]
        if wanted.since_ns is not None:
            conditions += [("r.id >= ?", self._id_at(wanted.since_ns)), ("r.received_at_ns >= ?", wanted.since_ns)]
        order = "DESC" if wanted.after_id is None else "ASC"

        def rows(*more: tuple[str, Any]) -> list[tuple[Any, ...]]:
            where, parameters = _where([*more, *conditions])
            return self._rows(f"{columns}{where} ORDER BY r.id {order} LIMIT ?", (*parameters, limit))

        if wanted.gateway is None and wanted.record_class is None:
            return [_record(row) for row in rows()]
        # Stream by stream: each has its rows in order, and a planner would rather read and sort all of them.
        found = [row for stream in self._stream_ids(wanted) for row in rows(("r.stream = ?", stream))]
        found.sort(key=lambda row: row[0], reverse=order == "DESC")
        return [_record(row) for row in found[:limit]]

    def _stream_ids(self, wanted: RecordFilter) -> list[int]:
        where, parameters = _where([("gateway = ?", wanted.gateway), ("class = ?", wanted.record_class)])
        return [row[0] for row in self._rows(f"SELECT id FROM streams{where} ORDER BY id", parameters)]

    def _id_at(self, since_ns: int) -> int:
        """Return an id somewhat before the first record received since then; ids rise with the time of receipt."""
        ((low, high),) = self._rows(
            "SELECT coalesce((SELECT id FROM stream_records ORDER BY id LIMIT 1), 0),"
            " coalesce((SELECT id FROM stream_records ORDER BY id DESC LIMIT 1), 0)"
        )
        while low < high:
            middle = (low + high) // 2
            ((at_ns,),) = self._rows(
                "SELECT received_at_ns FROM stream_records WHERE id >= ? ORDER BY id LIMIT 1", (middle,)
            )
            if at_ns < since_ns:
                low = middle + 1
            else:
                high = middle
        # Several processes, or a clock set back, may have mixed them a little.
        return max(0, int(low) - _MIXED_IDS)

    def record(self, key: StreamKey, seq: int) -> StoredRecord | None:
        """See Reader."""
        where = " WHERE s.gateway = ? AND s.epoch = ? AND s.class = ? AND r.seq = ?"
        rows = self._rows(_RECORD.format("r.blob") + where, (*key, seq))
        return _record(rows[0]) if rows else None

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
        where, parameters = _where([("e.evidence_id = ?", evidence_id), ("e.gateway = ?", gateway)])
        rows = self._rows(
            "SELECT e.content_type, r.blob FROM evidence e"
            f" JOIN stream_records r ON r.stream = e.stream AND r.seq = e.seq{where} ORDER BY e.gateway LIMIT 1",
            parameters,
        )
        return (rows[0][0], bytes(rows[0][1] or b"")) if rows else None

    def streams(self) -> list[Stream]:
        """See Reader."""
        rows = self._rows(
            "SELECT s.gateway, s.epoch, s.class,"
            " coalesce((SELECT last FROM stream_spans p WHERE p.stream = s.id AND p.first = 1), 0),"
            " coalesce((SELECT last FROM stream_spans p WHERE p.stream = s.id ORDER BY first DESC LIMIT 1), 0),"
            " s.records - s.deleted, s.duplicates, s.last_received_at_ns"
            " FROM streams s ORDER BY s.gateway, s.epoch, s.class"
        )
        return [Stream(StreamKey(*row[:3]), *row[3:]) for row in rows]

    def gaps(self, *, gateway: str | None = None, limit: int = 1000) -> list[Gap]:
        """See Reader."""
        where, parameters = _where([("gateway = ?", gateway)])
        rows = self._rows(
            f"SELECT gateway, epoch, class, first, last, source, reason, noted_at_ns FROM gaps{where}"
            " ORDER BY noted_at_ns DESC, gateway, epoch, class, first LIMIT ?",
            (*parameters, limit),
        )
        return [Gap(StreamKey(*row[:3]), *row[3:]) for row in rows]

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

    def dead_letters(self, *, limit: int = 100, reason: str | None = None) -> list[StoredLetter]:
        """See Reader."""
        where, parameters = _where([("reason = ?", reason)])
        rows = self._rows(f"{_LETTER}{where} ORDER BY last_at_ns DESC, id DESC LIMIT ?", (*parameters, limit))
        return [_letter(row) for row in rows]

    def dead_letter(self, letter_id: int) -> StoredLetter | None:
        """See Reader."""
        rows = self._rows(f"{_LETTER} WHERE id = ?", (letter_id,))
        return _letter(rows[0]) if rows else None


def _where(conditions: list[tuple[str, Any]]) -> tuple[str, tuple[Any, ...]]:
    used = [(condition, value) for condition, value in conditions if value is not None]
    text = " AND ".join(condition for condition, _ in used)
    return (f" WHERE {text}" if text else ""), tuple(value for _, value in used)


def _event(row: tuple[Any, ...]) -> StoredEvent:
    number, received_at_ns, updated_at_ns, body = row
    return StoredEvent(number, received_at_ns, updated_at_ns, _events.decode(body))


def _record(row: tuple[Any, ...]) -> StoredRecord:
    number, gateway, epoch, record_class, seq, kind, pipeline, recorded_ns, received_ns, body, blob = row
    key = StreamKey(gateway, epoch, record_class)
    return StoredRecord(number, key, seq, kind, pipeline, recorded_ns, received_ns, bytes(body), bytes(blob or b""))


def _letter(row: tuple[Any, ...]) -> StoredLetter:
    number, reason, topic, detail, payload, size, gateway, epoch, record_class, seq, count, first_ns, last_ns = row
    key = StreamKey(gateway, epoch, record_class) if gateway is not None else None
    letter = DeadLetter(reason, topic, detail, bytes(payload), size, key, seq)
    return StoredLetter(number, letter, count, first_ns, last_ns)
