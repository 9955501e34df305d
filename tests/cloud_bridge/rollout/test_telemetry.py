"""What is read of a store: the same from SQLite, from PostgreSQL and from the stand-in that the other tests use."""

from collections.abc import Callable

import pytest

from cloud_bridge.rollout.comparison import compare
from cloud_bridge.rollout.plan import Member
from cloud_bridge.rollout.telemetry import Records, Watch, last_id
from cloud_bridge.store.base import Store
from cloud_bridge.values import Arrival, Intake, Row, StreamKey
from tests.cloud_bridge.rollout.kit import MINUTE_NS, NEW, OLD, START_NS
from tests.simulators.fleet_store import FleetStore

GIVEN_NS = START_NS + 60 * MINUTE_NS
MEMBERS = [
    Member("gw-1", 0, NEW, OLD, GIVEN_NS, GIVEN_NS, 1),
    Member("gw-2", 0, NEW, OLD, GIVEN_NS, GIVEN_NS, 1),
]


def filled() -> tuple[FleetStore, int]:
    """An hour of the old release on three devices, then half an hour of the new one on two; and the cursor between."""
    made = FleetStore()
    for minute in range(60):
        at_ns = START_NS + minute * MINUTE_NS
        for name in ("gw-1", "gw-2", "gw-3"):
            made.add_event(name, OLD.ref, 0.75, at_ns + 1)
            made.add_event(name, OLD.ref, 0.1, at_ns + 2, pipeline="another")
            made.add_measure(name, OLD.ref, at_ns, at_ns + MINUTE_NS - 1)
    cursor = last_id(made)
    for minute in range(30):
        at_ns = GIVEN_NS + minute * MINUTE_NS
        for name, model in (("gw-1", NEW), ("gw-2", NEW), ("gw-3", OLD)):
            for number in range(2):
                made.add_event(name, model.ref, 0.5, at_ns + number)
            made.add_measure(name, model.ref, at_ns, at_ns + MINUTE_NS, errors=3, latency_ms=9.0)
    return made, cursor


def copied(source: FleetStore, store: Store) -> Records:
    for row in source.rows:
        key = StreamKey(row.key.gateway, row.key.epoch, "event")
        arrival = Arrival(key, 1, (Row(row.seq, row.kind, row.pipeline, row.recorded_at_ns, row.body),))
        store.ingest(Intake(row.received_at_ns, (arrival,)))
    return store


def test_past_and_present_of_each_device_are_kept_apart(make_store: Callable[[], Store]) -> None:
    source, cursor = filled()
    seen = []
    for records in (source, copied(source, make_store())):
        watch = Watch.over(records, "camera", MEMBERS, cursor, 24.0)
        assert watch.read()
        assert sorted(watch.figures) == ["gw-1", "gw-2"]
        one = watch.figures["gw-1"]
        assert (one.old.events, one.new.events) == (60, 60)
        assert (set(one.old.scores), set(one.new.scores)) == ({3072}, {2048})
        assert (one.old.errors, one.new.errors) == (0, 90)
        assert one.old.hours == pytest.approx(1.0)
        assert one.new.hours == pytest.approx(0.5)
        assert one.new.main_latencies() is not None
        assert len(watch.pool) == 60  # of the device that is not in the wave
        seen.append((one, watch.cursor))
    assert seen[0] == seen[1]


def test_reading_goes_on_where_it_stopped_and_misses_nothing() -> None:
    source, cursor = filled()
    watch = Watch.over(source, "camera", MEMBERS, cursor, 24.0)
    whole = Watch.over(source, "camera", MEMBERS, cursor, 24.0)
    assert whole.read()
    rows, source.rows = source.rows, source.rows[: cursor + 50]
    watch.read()
    source.rows = rows
    assert watch.read()
    assert watch.figures == whole.figures


def test_what_is_no_event_is_passed_over() -> None:
    source, cursor = filled()
    source.rows[-1] = type(source.rows[-1])(
        source.rows[-1].id, source.rows[-1].key, 1, "event", "camera", 0, 0, b'{"broken"', b""
    )
    assert Watch.over(source, "camera", MEMBERS, cursor, 24.0).read()


def test_releases_are_summed_up_side_by_side() -> None:
    source, _ = filled()
    members = [*MEMBERS, Member("gw-3", 0, OLD, None, GIVEN_NS, GIVEN_NS, 1)]
    found = compare(source, "camera", members, GIVEN_NS)
    assert [(arm.release, arm.devices, arm.events) for arm in found.arms] == [(OLD, 1, 60), (NEW, 2, 120)]
    assert [arm.mean_score for arm in found.arms] == [pytest.approx(0.5, abs=0.001)] * 2
    assert found.arms[1].error_share == pytest.approx(3 / 63)
    assert found.distances == (pytest.approx(0.0),)
