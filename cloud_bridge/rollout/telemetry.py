"""Reads what devices measured out of the store: their past once, and then what comes, record by record.

Nothing of it is kept: after a restart it is read again from the record that the rollout remembers.
"""

from array import array
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

import msgspec

from cloud_bridge.rollout.figures import MOST_SCORES, Figures, Side
from cloud_bridge.rollout.plan import Member
from cloud_bridge.rollout.releases import Release, release_from
from cloud_bridge.rollout.statistics import bin_of
from cloud_bridge.store.base import RecordFilter
from cloud_bridge.values import StoredRecord
from gateway.wire.histogram import Histogram
from gateway.wire.messages import ModelRef

PAST_EVENTS: Final = 500
PAST_MEASURES: Final = 500
"""Of the time before the release so many of the latest are read, for each device."""

_PAGE: Final = 1000
_HOUR_NS: Final = 3600 * 1_000_000_000


class Records(Protocol):
    """The part of a store that is read here."""

    def records(self, wanted: RecordFilter, *, limit: int = 100, with_blobs: bool = False) -> list[StoredRecord]:
        """Return records: the last received first, or from `after_id` on in order of receipt."""
        ...


class _EventGlance(msgspec.Struct, gc=False):
    """What is needed of an event."""

    type: str
    score: float
    captured_at_ns: int
    model: ModelRef


class _MeasureGlance(msgspec.Struct, gc=False):
    """What is needed of a measure."""

    captured_from_ns: int
    captured_to_ns: int
    inferences: int
    model: ModelRef | None = None
    errors: int = 0
    latencies_ms: Histogram | None = None


_events: Final = msgspec.json.Decoder(_EventGlance)
_measures: Final = msgspec.json.Decoder(_MeasureGlance)


def last_id(records: Records) -> int:
    """Return the id of the last record there is, 0 if there is none."""
    found = records.records(RecordFilter(), limit=1)
    return found[0].id if found else 0


@dataclass(slots=True)
class Watch:
    """Follows the devices of one wave. One thread uses it."""

    records: Records
    pipeline: str
    members: dict[str, Member]
    cursor: int
    past_hours: float
    figures: dict[str, Figures] = field(default_factory=dict)
    pool: "array[int]" = field(default_factory=lambda: array("H"))
    unread: list[Member] = field(default_factory=list)

    @classmethod
    def over(
        cls, records: Records, pipeline: str, members: Iterable[Member], cursor: int, past_hours: float
    ) -> "Watch":
        """Begin to follow devices; `cursor` is the last record before the wave."""
        found = list(members)
        watch = cls(records, pipeline, {one.gateway: one for one in found}, cursor, past_hours)
        watch.unread = found
        return watch

    def read(self, pages: int = 200, devices: int = 500) -> bool:
        """Read on; return False if there was more than so much.

        Raises:
            StoreError: the store cannot be read now; the next call goes on where this one stopped.
        """
        for _ in range(devices):
            if not self.unread:
                break
            self._read_past(self.unread[-1])
            self.unread.pop()
        for _ in range(pages):
            page = self.records.records(RecordFilter(after_id=self.cursor), limit=_PAGE)
            for record in page:
                self._take(record)
            if page:
                self.cursor = page[-1].id
            if len(page) < _PAGE:
                return not self.unread
        return False

    def _take(self, record: StoredRecord) -> None:
        if record.pipeline != self.pipeline:
            return
        member = self.members.get(record.key.gateway)
        if record.kind == "event":
            event = _event(record.body)
            if event is None or event.type != "new":
                return
            if member is None:
                if release_from(event.model) in self._olds and len(self.pool) < MOST_SCORES:
                    self.pool.append(bin_of(event.score))
            elif release_from(event.model) == member.release:
                self._of(member).new.add_event(event.score, event.captured_at_ns)
        elif record.kind == "measure" and member is not None:
            measure = _measure(record.body)
            if measure is not None and release_from(measure.model) == member.release:
                _add(self._of(member).new, measure)

    @property
    def _olds(self) -> Collection[Release | None]:
        return {one.previous for one in self.members.values() if one.previous is not None}

    def _of(self, member: Member) -> Figures:
        return self.figures.setdefault(member.gateway, Figures())

    def _read_past(self, member: Member) -> None:
        since_ns = member.assigned_ns - int(self.past_hours * _HOUR_NS)

        def latest(kind: str, limit: int) -> Sequence[StoredRecord]:
            wanted = RecordFilter(
                gateway=member.gateway,
                pipeline=self.pipeline,
                kind=kind,
                since_ns=since_ns,
                until_ns=member.assigned_ns,
            )
            return self.records.records(wanted, limit=limit)

        def is_old(model: ModelRef | None) -> bool:
            release = release_from(model)
            return release is not None and release == member.previous and release != member.release

        found = [_measure(record.body) for record in latest("measure", PAST_MEASURES)]
        measures = [one for one in found if one is not None and is_old(one.model)]
        heard = [_event(record.body) for record in latest("event", PAST_EVENTS)]
        events = [one for one in heard if one is not None and one.type == "new" and is_old(one.model)]
        side = self._of(member).old
        # A full page ends somewhere: a rate counts only the time that both pages cover.
        covered_ns = 0
        if len(heard) == PAST_EVENTS and events:
            covered_ns = min(one.captured_at_ns for one in events)
        if measures:
            covered_ns = max(covered_ns, min(one.captured_from_ns for one in measures))
        for event in events:
            side.add_event(event.score, event.captured_at_ns, since_ns=covered_ns)
        for measure in reversed(measures):
            if measure.captured_from_ns >= covered_ns:
                _add(side, measure)


def _add(side: Side, measure: _MeasureGlance) -> None:
    side.add_interval(measure.captured_from_ns, measure.captured_to_ns, measure.inferences, measure.errors)
    if measure.latencies_ms is not None:
        side.add_latencies(measure.latencies_ms)


def _event(body: bytes) -> _EventGlance | None:
    """Read an event; None for what was stored although it could not be read, which is in the dead letters."""
    try:
        return _events.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None


def _measure(body: bytes) -> _MeasureGlance | None:
    try:
        return _measures.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
