"""Sums by hour and day: each record counted once, whenever it comes and whoever is killed."""

import json
from collections import defaultdict
from collections.abc import Callable

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cloud_bridge.ingest.decoding import arrival_of, intake_of
from cloud_bridge.ingest.incoming import Incoming
from cloud_bridge.store.base import Limits, RecordFilter, Rolled, RollupFilter, RollupPlace, Store
from cloud_bridge.store.rolling import DAY_SECONDS, HOUR_SECONDS, SLICE, fold, rows_of
from cloud_bridge.values import Intake, Rollup, StreamKey
from gateway.wire.messages import Event, Measure, Spread, Withheld, encode, record_digest
from tests.simulators.samples import EPOCH, batch, event, measure, record

HOUR_NS = HOUR_SECONDS * 10**9
NOON_S = 1_700_049_600  # 2023-11-15T12:00:00Z
NOON_NS = NOON_S * 10**9


def take(store: Store, payload: bytes, name: str = "event", *, at: int = 1) -> None:
    message = Incoming(f"sluice/v1/dock/records/{name}", payload, 1, 1, 1, 0)
    store.ingest(intake_of([message], root="sluice", received_at_ns=at))


def an_event(
    number: int, *, at_ns: int = NOON_NS, phase: str = "new", score: float = 0.5, label: str = "person"
) -> Event:
    made = event(f"e{number}", phase=phase, label=label)
    return msgspec.structs.replace(made, captured_at_ns=at_ns, score=score)


def a_measure(*, at_ns: int = NOON_NS, inferences: int = 60, mean: float = 0.2, pipeline: str = "camera") -> Measure:
    level = Spread(minimum=mean / 2, mean=mean, maximum=mean * 2, p50=mean, p95=mean)
    made = measure(pipeline)
    return msgspec.structs.replace(
        made, captured_from_ns=at_ns, inferences=inferences, score=level, dropped={"stale": 2}, sent_bytes=7
    )


def roll_all(store: Store, slice_rows: int = 1000) -> Rolled:
    records = buckets = 0
    while (rolled := store.roll_up(slice_rows)).records:
        records, buckets = records + rolled.records, buckets + rolled.buckets
    return Rolled(records, buckets)


def hours(store: Store) -> list[Rollup]:
    return store.rollups(RollupFilter(HOUR_SECONDS))[::-1]


def test_events_are_summed_up_by_hour_and_day_of_capture(store: Store) -> None:
    phases = [
        an_event(1, score=0.2),
        an_event(2, score=0.6, at_ns=NOON_NS + HOUR_NS - 1),
        msgspec.structs.replace(an_event(1, score=0.4, phase="end", at_ns=NOON_NS + HOUR_NS), revision=1),
        an_event(3, label="car", at_ns=NOON_NS + 20 * HOUR_NS),
    ]
    take(store, batch(*(record(n, body) for n, body in enumerate(phases, 1))))
    roll_all(store)
    first, second, car = hours(store)
    assert (first.start_s, first.label, first.events, first.updates) == (NOON_S, "person", 2, 0)
    assert first.score == (2, 0.2, pytest.approx(0.4), 0.6)
    assert (second.start_s, second.events, second.updates) == (NOON_S + HOUR_SECONDS, 0, 1)
    assert (car.label, car.events) == ("car", 1)
    days = store.rollups(RollupFilter(DAY_SECONDS, label="person"))
    assert [(day.start_s, day.events, day.updates) for day in days] == [(NOON_S - 12 * HOUR_SECONDS, 2, 1)]
    assert store.check() == []


def test_measures_are_summed_up_with_the_weight_of_their_inferences(store: Store) -> None:
    take(store, batch(record(1, a_measure(inferences=30, mean=0.2)), record(2, a_measure(inferences=90, mean=0.4))))
    roll_all(store)
    whole, person = hours(store)
    assert (whole.label, whole.measures, whole.inferences, whole.findings, whole.dropped) == ("", 2, 120, 6, 4)
    assert whole.level == (120, 0.1, pytest.approx(0.35), 0.8)
    assert (whole.sent_bytes, whole.latency_ms) == (14, (0, None, None, None))
    assert (person.label, person.findings, person.measures) == ("person", 6, 0)


def test_a_record_that_comes_late_adds_to_its_hour_even_when_the_others_are_gone(store: Store) -> None:
    take(store, batch(record(1, an_event(1, score=0.8))), at=10)
    roll_all(store)
    assert store.sweep(Limits({"event": 20, "critical": 20}, only_rolled=True), 100).records == 1
    take(store, batch(record(2, an_event(2, score=0.4))), at=30)
    roll_all(store)
    (hour,) = hours(store)
    assert (hour.events, hour.score) == (2, (2, 0.4, pytest.approx(0.6), 0.8))


def test_rolling_up_again_or_after_opening_again_counts_nothing_twice(make_store: Callable[[], Store]) -> None:
    store = make_store()
    take(store, batch(*(record(n, an_event(n)) for n in range(1, 101))))
    assert store.roll_up(30).records == 30
    again = make_store()
    assert roll_all(again, 30).records == 70
    assert again.roll_up(30) == Rolled()
    assert again.rollup_backlog() == 0
    take(again, batch(*(record(n, an_event(n)) for n in range(1, 101))))  # sent again
    roll_all(again)
    assert [hour.events for hour in hours(again)] == [100]


def test_of_two_that_roll_up_the_same_slice_only_one_counts(store: Store) -> None:
    take(store, batch(*(record(n, an_event(n)) for n in range(1, 11))))
    horizon = store._horizon  # type: ignore[attr-defined]  # in the midst of the slower one, the faster one is done
    faster: list[Rolled] = []

    def overtaken() -> int:
        reached: int = horizon()
        if not faster:
            faster.append(Rolled())
            faster[0] = store.roll_up(100)
        return reached

    vars(store)["_horizon"] = overtaken
    assert store.roll_up(100) == Rolled()
    assert faster[0].records == 10
    assert [hour.events for hour in hours(store)] == [10]


def test_a_stand_in_that_gives_way_while_its_slice_is_folded_is_counted(store: Store) -> None:
    late = encode(an_event(1))
    stand_in = Withheld(kind="event", reason="too-large", size_bytes=9, digest=record_digest("event", late, b""))
    take(store, batch(record(1, encode(stand_in), kind="withheld"), record(2, an_event(2))))
    read = store._rows  # type: ignore[attr-defined]

    def overtaken(sql: str, *parameters: object) -> list[tuple[object, ...]]:
        found: list[tuple[object, ...]] = read(sql, *parameters)
        if sql == SLICE and vars(store).pop("_rows", None):
            take(store, batch(record(1, late, kind="event")))
        return found

    vars(store)["_rows"] = overtaken
    assert store.roll_up(100) == Rolled()
    roll_all(store)
    assert [hour.events for hour in hours(store)] == [2]


def test_retention_leaves_records_until_they_are_rolled_up(store: Store) -> None:
    take(store, batch(*(record(n, an_event(n)) for n in range(1, 11))), at=1)
    waiting = Limits({"event": 10}, only_rolled=True)
    assert store.sweep(waiting, 100).records == 0
    assert store.sweep(Limits({"event": 10}), 4).records == 4, "the control: without the condition they go"
    roll_all(store)
    assert store.sweep(waiting, 100).records == 6


def test_rollups_have_a_retention_of_their_own(store: Store) -> None:
    for day in range(3):
        take(store, batch(record(day + 1, an_event(day, at_ns=NOON_NS + day * 24 * HOUR_NS)), base=day + 1))
    roll_all(store)
    swept = store.sweep(Limits({}, rollups_before_s={HOUR_SECONDS: NOON_S + 24 * HOUR_SECONDS + HOUR_SECONDS}), 100)
    assert swept.rollups == 2
    assert [hour.start_s for hour in hours(store)] == [NOON_S + 48 * HOUR_SECONDS]
    assert len(store.rollups(RollupFilter(DAY_SECONDS))) == 3


def test_a_body_that_is_not_what_its_kind_says_adds_nothing_and_stops_nothing(store: Store) -> None:
    take(store, batch(record(1, b"{}", kind="event"), record(2, b"[1]", kind="measure"), record(3, an_event(1))))
    roll_all(store)
    assert [hour.events for hour in hours(store)] == [1]


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("measure", {"inferences": 2**62}),
        ("measure", {"inferences": -(2**62), "raw_bytes": 10**30, "sent_bytes": -1}),
        ("measure", {"labels": {"a\0b": 1, "x" * 9999: 1, "ok": 2**62}}),
        ("measure", {"labels": {f"l{n}": 1 for n in range(100_000)}}),
        ("measure", {"score": {"minimum": -1e308, "mean": 1e308, "maximum": 1e308, "p50": 0, "p95": 0}}),
        ("measure", {"captured_from_ns": 2**70}),
        ("measure", {"captured_from_ns": -5}),
        ("measure", {"pipeline": "a\0"}),
        ("event", {"label": "a\0b"}),
        ("event", {"captured_at_ns": 2**63}),
        ("event", {"score": 1e308}),
    ],
)
def test_no_device_can_stop_the_sums_of_the_others(store: Store, kind: str, changes: dict[str, object]) -> None:
    hostile = json.loads(encode(a_measure() if kind == "measure" else an_event(1))) | changes
    body = json.dumps(hostile).encode()
    for first in range(1, 9, 2):
        take(store, batch(record(first, body, kind=kind), record(first + 1, an_event(first)), base=first))
    roll_all(store)
    assert sum(hour.events for hour in hours(store) if hour.label == "person") >= 4
    assert len(hours(store)) <= 260


def test_a_record_understood_only_later_is_rolled_up_then(store: Store) -> None:
    key = StreamKey("dock", EPOCH, "event")
    take(store, batch(record(1, b"{}", kind="event")))
    roll_all(store)
    understood, _ = arrival_of(key, 1, [record(1, an_event(1))], [], "t", reindex=True)
    store.ingest(Intake(2, (understood,)))
    assert [hour.events for hour in hours(store)] == [1]
    assert [r.seq for r in store.records(RecordFilter(pipeline="camera"))] == [1]


def test_a_record_that_was_rolled_up_before_it_was_understood_is_not_counted_twice(store: Store) -> None:
    key = StreamKey("dock", EPOCH, "event")
    body = json.loads(encode(an_event(1)))
    body["phase_of_a_later_version"] = body.pop("event_id")  # enough for the sums, too little for the list of events
    take(store, batch(record(1, json.dumps(body).encode(), kind="event")))
    assert store.counts().dead_letters == {"bad-body": 1}
    roll_all(store)
    understood, _ = arrival_of(key, 1, [record(1, an_event(1))], [], "t", reindex=True)
    store.ingest(Intake(2, (understood,)))
    assert [hour.events for hour in hours(store)] == [1]


def test_pages_of_rollups_meet_without_gap_or_overlap(store: Store) -> None:
    for number in range(20):
        made = an_event(number, at_ns=NOON_NS + number // 4 * HOUR_NS, label=f"l{number % 4}")
        take(store, batch(record(number + 1, made), base=number + 1))
    roll_all(store)
    seen: list[tuple[int, str]] = []
    before: RollupPlace | None = None
    while page := store.rollups(RollupFilter(HOUR_SECONDS, before=before), limit=3):
        seen += [(one.start_s, one.label) for one in page]
        before = RollupPlace(page[-1].start_s, page[-1].gateway, page[-1].pipeline, page[-1].label)
    assert len(seen) == len(set(seen)) == 20
    assert seen == sorted(seen, reverse=True)
    assert len(store.rollups(RollupFilter(HOUR_SECONDS, pipeline="camera", label="l1", gateway="dock"))) == 5
    until = RollupFilter(HOUR_SECONDS, since_s=NOON_S + 3600, until_s=NOON_S + 3 * 3600)
    assert len(store.rollups(until)) == 8


events_told = st.lists(
    st.tuples(
        st.integers(0, 3),  # hours
        st.sampled_from(["a", "b"]),
        st.sampled_from(["new", "update", "end"]),
        st.floats(0, 1, allow_nan=False),
    ),
    max_size=30,
)


@settings(deadline=None)
@given(events_told, st.integers(1, 7))
def test_the_sums_of_slices_are_the_sums_of_the_whole(told: list[tuple[int, str, str, float]], cut: int) -> None:
    bodies = [
        ("dock", "event", encode(an_event(n, at_ns=NOON_NS + h * HOUR_NS, label=name, phase=phase, score=score)))
        for n, (h, name, phase, score) in enumerate(told)
    ]
    whole = {key: (b.sums.get("events", 0), b.sums.get("updates", 0)) for key, b in fold(bodies).items()}
    parts: dict[tuple[object, ...], tuple[float, float]] = defaultdict(lambda: (0, 0))
    for first in range(0, len(bodies), cut):
        for key, bucket in fold(bodies[first : first + cut]).items():
            events, updates = parts[key]
            parts[key] = (events + bucket.sums.get("events", 0), updates + bucket.sums.get("updates", 0))
    assert whole == dict(parts)
    assert len(rows_of(fold(bodies))) == len(whole)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(events_told, st.integers(1, 9))
def test_the_table_holds_what_was_told_however_it_was_cut(
    store: Store, told: list[tuple[int, str, str, float]], cut: int
) -> None:
    store.open()
    before = sum(hour.events + hour.updates for hour in hours(store))
    base = store.counts().records + 1
    for n, (h, name, phase, score) in enumerate(told):
        made = an_event(base + n, at_ns=NOON_NS + h * HOUR_NS, label=name, phase=phase, score=score)
        take(store, batch(record(base + n, msgspec.structs.replace(made, revision=n)), base=1))
    roll_all(store, cut)
    assert sum(hour.events + hour.updates for hour in hours(store)) == before + len(told)
    assert store.check() == []
