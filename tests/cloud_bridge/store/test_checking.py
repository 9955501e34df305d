"""The check finds nothing in a sound store, and finds each thing that cannot be."""

import pytest

from cloud_bridge.store.base import Limits, RollupFilter, Store
from cloud_bridge.store.postgres import PostgresStore
from cloud_bridge.store.sqlite import SqliteStore
from tests.cloud_bridge.store.test_contract import take
from tests.simulators.samples import batch, event, eviction, evidence, measure, record


def fill(store: Store) -> None:
    take(store, batch(*(record(n, event(f"e{n}")) for n in range(1, 21))), at=1)
    take(store, batch(record(30, evidence(), blob=b"x"), base=25, blobs=(b"x",)), "bulk", at=1)
    take(store, batch(record(1, eviction("event", 22, 25))), "critical", at=1)
    take(store, batch(record(1, measure()), record(3, measure())), "measure", at=1)
    while store.roll_up(7).records:
        pass


def test_a_store_with_gaps_holes_and_retention_is_sound(store: Store) -> None:
    fill(store)
    assert store.check() == []
    store.sweep(Limits({"event": 10, "bulk": 10, "measure": 10, "critical": 10}), 100)
    assert store.counts().records == 0
    assert store.check() == []


def test_marks_need_no_rows_so_retention_takes_nothing_from_them(store: Store) -> None:
    fill(store)
    before = {stream.key: (stream.mark, stream.last) for stream in store.streams()}
    store.sweep(Limits({"event": 10, "bulk": 10, "measure": 10, "critical": 10}), 100)
    assert {stream.key: (stream.mark, stream.last) for stream in store.streams()} == before
    take(store, batch(*(record(n, event(f"e{n}")) for n in range(1, 21))), at=20)
    take(store, batch(record(2, measure())), "measure", at=20)
    marks = {stream.key.record_class: stream.mark for stream in store.streams()}
    assert (marks["event"], marks["measure"]) == (20, 3), "a hole is filled although what lies beyond it is gone"
    assert store.check() == []


BROKEN = {
    "UPDATE streams SET records = records + 1 WHERE class = 'event'": {"marks-and-records", "rows-and-counters"},
    "DELETE FROM stream_records WHERE kind = 'event' AND seq = 7": {"rows-and-counters", "record-missing"},
    "DELETE FROM stream_spans WHERE first = 22": {"gaps", "marks-and-records"},
    "UPDATE stream_spans SET last = 19 WHERE first = 1 AND last = 20": {"row-unknown", "marks-and-records"},
    "INSERT INTO stream_spans SELECT id, 21, 21 FROM streams WHERE class = 'event'": {"spans", "marks-and-records"},
    "UPDATE stream_gaps SET last = 30 WHERE first = 1 AND source = 'base'": {"gaps", "row-in-gap"},
    "DELETE FROM lines WHERE kind = 'event'": {"line-missing"},
    "DELETE FROM event_lines": {"line-missing"},
    "UPDATE rollups SET events = events + 1 WHERE grain = 86400": {"rollups"},
}


@pytest.mark.parametrize("breakage", BROKEN)
def test_each_thing_that_cannot_be_is_found(store: Store, breakage: str) -> None:
    fill(store)
    assert isinstance(store, SqliteStore | PostgresStore)
    store._write(lambda tx: tx.change(breakage))
    found = {violation.rule for violation in store.check()}
    assert BROKEN[breakage] <= found, store.check()


def test_hours_that_retention_has_removed_are_not_missed(store: Store) -> None:
    fill(store)
    assert isinstance(store, SqliteStore | PostgresStore)
    store._write(lambda tx: tx.change("DELETE FROM rollups WHERE grain = 3600"))
    assert {violation.rule for violation in store.check()} == {"rollups"}, "the control"
    days = [rollup.start_s for rollup in store.rollups(RollupFilter(86_400), limit=100)]
    assert {violation.rule for violation in store.check(hours_from_s=min(days))} == {"rollups"}
    assert store.check(hours_from_s=max(days) + 1) == []


def test_a_phase_that_came_under_two_numbers_is_found(store: Store) -> None:
    take(store, batch(record(1, event("e1", revision=3)), record(2, event("e1", revision=3))))
    take(store, batch(record(3, b"{}", kind="event"), record(4, event("e1", revision=4))))
    (violation,) = store.check()
    assert (violation.rule, violation.where) == ("doubled-revision", "dock")
    assert violation.detail == "revision 3 of event e1: 2 records"


def test_a_thousand_violations_are_told_in_a_few_lines(store: Store) -> None:
    take(store, batch(*(record(n, event("same")) for n in range(1, 101)), *()))
    take(store, batch(*(record(n, event(f"e{n // 2}")) for n in range(102, 202)), base=102))
    found = store.check()
    assert len(found) <= 21
    assert "more of this kind" in found[-1].detail


def test_a_damaged_file_is_found(store: Store) -> None:
    if not isinstance(store, SqliteStore):
        pytest.skip("PostgreSQL has checksums of its own")
    for first in range(1, 3000, 500):
        take(store, batch(*(record(n, event(f"e{n}")) for n in range(first, first + 500))))
    store.close()
    data = bytearray(store.path.read_bytes())
    data[8 * 4096 : 12 * 4096] = b"\xee" * 4 * 4096
    store.path.write_bytes(data)
    again = SqliteStore(store.path)
    try:
        assert again.check()[0].rule == "damage"
    finally:
        again.close()
