"""What every store does, whichever database is behind it."""

import itertools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cloud_bridge.errors import StoreRefusedError
from cloud_bridge.ingest.decoding import intake_of
from cloud_bridge.ingest.incoming import Incoming
from cloud_bridge.store.base import Limits, RecordFilter, Store
from cloud_bridge.values import Arrival, DeadLetter, Intake, Outcome, Row, StreamKey
from gateway.wire.messages import CLASSES, Availability, PipelineStatus, RecordClass, encode
from tests.simulators.samples import AT, EPOCH, batch, event, eviction, evidence, measure, record

KEY = StreamKey("dock", EPOCH, "event")
DAY = 86_400 * 10**9


def take(store: Store, payload: bytes, name: str = "event", *, gateway: str = "dock", at: int = 1) -> Outcome:
    message = Incoming(f"sluice/v1/{gateway}/records/{name}", payload, 1, 1, 1, 0)
    return store.ingest(intake_of([message], root="sluice", received_at_ns=at))


def seqs(store: Store, key: StreamKey = KEY) -> list[int]:
    wanted = RecordFilter(gateway=key.gateway, record_class=key.record_class)
    return sorted(r.seq for r in store.records(wanted, limit=100_000) if r.key == key)


def test_records_are_kept_as_they_came(store: Store) -> None:
    blob = b"\xff\x00jpeg"
    outcome = take(store, batch(record(1, event()), record(2, evidence(), blob=blob), blobs=(b"", blob)))
    assert (outcome.inserted, outcome.duplicates, outcome.marks) == (2, 0, {KEY: 2})
    second, first = store.records(RecordFilter(), with_blobs=True)
    assert (first.key, first.seq, first.kind, first.pipeline) == (KEY, 1, "event", "camera")
    assert first.body == encode(event())
    assert (second.blob, second.recorded_at_ns, second.received_at_ns) == (blob, 1002, 1)
    assert store.record(KEY, 2) == second


def test_a_batch_received_again_changes_nothing_and_is_counted(store: Store) -> None:
    payload = batch(record(1), record(2), record(3))
    take(store, payload)
    outcome = take(store, payload)
    assert (outcome.inserted, outcome.duplicates, outcome.marks) == (0, 3, {KEY: 3})
    assert store.counts().records == 3
    assert store.counts().duplicates == 3


def test_duplicates_are_known_even_when_their_rows_are_gone(store: Store) -> None:
    payload = batch(record(1), record(2))
    take(store, payload, at=1)
    assert store.sweep(Limits({"event": 10}), 100).records == 2
    assert seqs(store) == []
    outcome = take(store, payload, at=20)
    assert (outcome.inserted, outcome.duplicates, outcome.marks) == (0, 2, {KEY: 2})
    assert store.counts().deleted == 2


def test_the_same_numbers_of_another_epoch_class_or_gateway_are_other_records(store: Store) -> None:
    take(store, batch(record(1)))
    take(store, batch(record(1), epoch="00000000000000bb"))
    take(store, batch(record(1)), "critical")
    take(store, batch(record(1)), gateway="gate")
    assert store.counts().records == 4
    assert [stream.mark for stream in store.streams()] == [1, 1, 1, 1]


def test_a_base_above_the_mark_becomes_a_gap_so_that_the_device_is_not_stuck(store: Store) -> None:
    outcome = take(store, batch(record(101), record(102), base=101))
    assert outcome.marks == {KEY: 102}
    assert outcome.gap_rows == 100
    (gap,) = store.gaps()
    assert (gap.key, gap.first, gap.last, gap.source) == (KEY, 1, 100, "base")
    assert store.counts().gaps == 100


def test_an_eviction_record_fills_the_class_it_names_and_moves_its_mark(store: Store) -> None:
    take(store, batch(record(1), record(2)))
    outcome = take(store, batch(record(1, eviction("event", 3, 7))), "critical")
    assert outcome.marks == {KEY: 7, KEY._replace(record_class="critical"): 1}
    (gap,) = store.gaps()
    assert (gap.first, gap.last, gap.source, gap.reason) == (3, 7, "eviction", "bytes")


def test_an_eviction_names_what_a_base_had_left_open(store: Store) -> None:
    take(store, batch(record(8), base=8))
    take(store, batch(record(1, eviction("event", 1, 5))), "critical")
    found = {(gap.first, gap.last, gap.source) for gap in store.gaps()}
    assert found == {(1, 5, "eviction"), (6, 7, "base")}
    assert store.counts().gaps == 7


def test_a_record_that_comes_after_all_closes_its_gap(store: Store) -> None:
    take(store, batch(record(5), base=5))
    outcome = take(store, batch(record(2), record(3)))
    assert (outcome.inserted, outcome.marks) == (2, {KEY: 5})
    assert {(gap.first, gap.last) for gap in store.gaps()} == {(1, 1), (4, 4)}
    assert seqs(store) == [2, 3, 5]


def test_a_hole_holds_the_mark_until_it_is_filled(store: Store) -> None:
    assert take(store, batch(record(4), record(5))).marks == {KEY: 0}
    assert take(store, batch(record(1), record(2))).marks == {KEY: 2}
    (stream,) = store.streams()
    assert (stream.mark, stream.last) == (2, 5)
    assert take(store, batch(record(3))).marks == {KEY: 5}


def test_an_event_is_shown_in_its_latest_phase_whatever_the_order(store: Store) -> None:
    new, update, end = (event(phase=p, revision=r) for r, p in enumerate(("new", "update", "end")))
    take(store, batch(record(1, new)), at=1)
    take(store, batch(record(3, end)), at=3)
    take(store, batch(record(2, update)), at=4)
    (stored,) = store.events()
    assert (stored.event.phase, stored.received_at_ns, stored.updated_at_ns) == ("end", 1, 3)
    assert store.event("e1") == stored
    assert store.event("e1", "dock") == stored
    assert store.event("e2") is None
    assert store.counts().events == 1


def test_events_of_two_gateways_may_have_the_same_id(store: Store) -> None:
    take(store, batch(record(1, event())))
    take(store, batch(record(1, event())), gateway="gate")
    assert store.counts().events == 2


def test_events_are_filtered_and_paged(store: Store) -> None:
    take(store, batch(*(record(n, event(f"e{n}", label="car" if n % 2 else "person")) for n in range(1, 11))), at=5)
    assert [s.event.event_id for s in store.events(limit=3)] == ["e10", "e9", "e8"]
    before = store.events(limit=3)[-1].id
    assert [s.event.event_id for s in store.events(limit=2, before_id=before)] == ["e7", "e6"]
    assert len(store.events(label="car")) == 5
    assert len(store.events(gateway="gate")) == 0
    assert len(store.events(pipeline="camera", since_ns=5)) == 10
    assert len(store.events(since_ns=6)) == 0


def test_records_are_filtered_and_paged_both_ways(store: Store) -> None:
    take(store, batch(*(record(n, measure() if n % 2 else event(f"e{n}")) for n in range(1, 11))), at=5)
    newest = store.records(RecordFilter(kind="measure"), limit=2)
    assert [r.seq for r in newest] == [9, 7]
    older = store.records(RecordFilter(kind="measure", before_id=newest[-1].id), limit=10)
    assert [r.seq for r in older] == [5, 3, 1]
    onwards = store.records(RecordFilter(after_id=newest[-1].id), limit=10)
    assert [r.seq for r in onwards] == [8, 9, 10]
    assert [r.seq for r in store.measures(pipeline="camera", limit=1)] == [9]
    assert store.records(RecordFilter(since_ns=6)) == []


def test_evidence_is_found_by_its_id(store: Store) -> None:
    take(store, batch(record(1, evidence(), blob=b"jpeg"), blobs=(b"jpeg",)), "bulk")
    assert store.evidence("v1") == ("image/jpeg", b"jpeg")
    assert store.evidence("v1", "dock") == ("image/jpeg", b"jpeg")
    assert store.evidence("v1", "gate") is None
    assert store.evidence("v2") is None


def test_the_fleet_is_shown_as_it_was_last_heard_of(store: Store) -> None:
    online = Availability(state="online", at=AT, version="1.0")
    will = Availability(state="offline", at=AT)
    status = PipelineStatus(pipeline="camera", state="running", source_state="streaming", at=AT)
    store.ingest(Intake(7, availability=(("dock", online),), statuses=(("dock", status),), seen=frozenset({"dock"})))
    store.ingest(Intake(9, availability=(("dock", will),)))
    (gateway,) = store.gateways()
    assert (gateway.state, gateway.version, gateway.seen_at_ns) == ("offline", "1.0", 7)
    (pipeline,) = store.pipelines("dock")
    assert (pipeline.status, pipeline.received_at_ns) == (status, 7)
    assert store.pipelines("gate") == []


def test_a_gateway_that_was_forgotten_is_not_shown_until_it_is_heard_of_again(store: Store) -> None:
    online = Availability(state="online", at=AT, version="1.0")
    status = PipelineStatus(pipeline="camera", state="running", source_state="streaming", at=AT)
    told = Intake(7, availability=(("dock", online),), statuses=(("dock", status), ("gate", status)))
    take(store, batch(record(1)))
    store.ingest(replace(told, seen=frozenset({"dock", "gate"})))
    assert store.forget("dock")
    assert not store.forget("dock")
    assert not store.forget("nobody")
    store.ingest(told)  # what the broker has retained, when the bridge starts again
    assert [one.gateway for one in store.gateways()] == ["gate"]
    assert [one.gateway for one in store.pipelines()] == ["gate"]
    assert store.pipelines("dock") == []
    assert seqs(store) == [1]
    assert take(store, batch(record(1)), at=8).duplicates == 1  # it speaks
    store.ingest(told)
    assert [(one.gateway, one.state) for one in store.gateways()] == [("dock", "online"), ("gate", "unknown")]
    assert [one.gateway for one in store.pipelines()] == ["dock", "gate"]
    assert store.check() == []


def test_dead_letters_of_a_class_that_nobody_knows_go_with_the_others(store: Store) -> None:
    for at, name in enumerate(("nonsense", "event")):
        take(store, b"junk %d" % at, name, at=1)
    assert store.counts().dead_letters == {"unknown-class": 1, "bad-payload": 1}
    kept = {"event": 0}  # for ever, as are the custody letters of the class
    assert store.sweep(Limits(kept, dead_letters_before_ns=1), 100).dead_letters == 0
    assert store.sweep(Limits(kept, dead_letters_before_ns=2), 100).dead_letters == 1
    assert store.counts().dead_letters == {"bad-payload": 1}


def test_the_same_poison_again_and_again_is_one_row_with_a_count(store: Store) -> None:
    letter = DeadLetter("bad-payload", "sluice/v1/dock/records/event", "no JSON", b"\x00\xff", 2)
    store.ingest(Intake(1, dead_letters=(letter, letter)))
    store.ingest(Intake(2, dead_letters=(letter, replace(letter, payload=b"other"))))
    assert store.counts().dead_letters == {"bad-payload": 4}
    other, same = sorted(store.dead_letters(), key=lambda s: s.count)
    assert (same.letter, same.count, same.first_at_ns, same.last_at_ns) == (letter, 3, 1, 2)
    assert store.dead_letter(other.id) == other
    assert store.dead_letters(reason="bad-topic") == []


def test_retained_poison_is_one_letter_however_often_the_bridge_connects(store: Store) -> None:
    kept = DeadLetter("bad-payload", "sluice/v1/dock/availability/gateway", "no JSON", b"junk", 4, retained=True)
    live = DeadLetter("bad-payload", "sluice/v1/dock/availability/gateway", "no JSON", b"other", 5)
    for now_ns in (1, 2, 3):
        store.ingest(Intake(now_ns, dead_letters=(kept, kept, live)))
    found = {one.letter.payload: (one.count, one.first_at_ns, one.last_at_ns) for one in store.dead_letters()}
    assert found == {b"junk": (1, 1, 1), b"other": (3, 1, 3)}, "what is not retained counts: that is the control"


def test_a_dead_letter_is_settled_together_with_what_was_made_of_it(store: Store) -> None:
    letter = DeadLetter("bad-payload", "t", "d", b"x", 1, KEY, 3)
    store.ingest(Intake(1, dead_letters=(letter,)))
    (stored,) = store.dead_letters()
    assert stored.letter == letter
    row = Row(1, "notice", None, 1, b"{}")
    assert store.settle(stored.id, Intake(2, (Arrival(KEY, 1, (row,)),))).inserted == 1
    assert store.dead_letters() == []
    assert store.counts().records == 1


def test_a_store_that_refuses_has_written_nothing(store: Store) -> None:
    good = Arrival(KEY, 1, (Row(1, "notice", None, 1, b"{}"),))
    bad = Arrival(KEY._replace(record_class="bulk"), 1, (Row(2**70, "notice", None, 1, b"{}"),))
    with pytest.raises(StoreRefusedError):
        store.ingest(Intake(1, (good, bad)))
    assert store.counts().records == 0
    assert store.ingest(Intake(1, (good,))).inserted == 1


def test_everything_is_there_after_opening_again(make_store: Callable[[], Store]) -> None:
    take(make_store(), batch(record(1, event()), record(2)))
    again = make_store()
    assert seqs(again) == [1, 2]
    assert take(again, batch(record(2), record(3))).marks == {KEY: 3}
    assert again.counts().records == 3


def test_the_change_counter_rises_with_every_commit_and_only_then(store: Store) -> None:
    take(store, batch(record(1)))
    before = store.change_counter()
    assert store.change_counter() == before
    take(store, batch(record(2)))
    after = store.change_counter()
    assert after > before
    store.ingest(Intake(1, availability=(("dock", Availability(state="online", at=AT)),)))
    assert store.change_counter() > after


def test_retention_removes_the_old_of_each_class_and_keeps_the_rest(store: Store) -> None:
    for at in (1, 5):
        take(store, batch(record(at, event(f"e{at}")), base=at), "event", at=at * DAY)
        take(store, batch(record(at, evidence(f"v{at}"), blob=b"x"), base=at, blobs=(b"x",)), "bulk", at=at * DAY)
    store.ingest(Intake(1 * DAY, dead_letters=(DeadLetter("bad-topic", "t", "", b"", 0),)))
    assert store.sweep(Limits({"bulk": 3 * DAY}), 100).records == 1
    assert store.evidence("v1") is None
    assert store.evidence("v5") is not None
    assert store.counts().events == 2
    swept = store.sweep(Limits({"bulk": 3 * DAY, "event": 3 * DAY, "critical": 4 * DAY}, 3 * DAY), 100)
    assert (swept.records, swept.events, swept.dead_letters) == (1, 1, 1)
    assert store.counts().records == 2
    assert [stream.mark for stream in store.streams()] == [5, 5]
    store.tidy()
    assert store.size_bytes() > 0


def test_a_slice_of_retention_is_no_longer_than_asked(store: Store) -> None:
    take(store, batch(*(record(n) for n in range(1, 101))), at=1)
    assert store.sweep(Limits({"event": 10}), 30).records == 30
    assert seqs(store)[0] == 31


def test_names_as_long_as_can_be_stop_nobody(store: Store) -> None:
    # Each sign takes three bytes, and none of them repeats: an index of PostgreSQL holds 2704 bytes of a row.
    def name(first: int) -> str:
        return "".join(chr(first + 7 * at % 9973) for at in range(512))

    odd = msgspec.structs.replace(event(), pipeline=name(0x4E00), label=name(0x5001))
    assert take(store, batch(record(1, odd), record(2, event("e2")))).marks == {KEY: 2}
    assert seqs(store) == [1, 2]
    store.roll_up(100)
    assert store.rollup_backlog() == 0


@pytest.mark.parametrize("count", [15, 16, 17, 95, 97, 399, 401, 499, 1000])
def test_a_batch_of_any_length_is_written_whole_and_once(store: Store, count: int) -> None:
    known = count // 3
    take(store, batch(*(record(n, event(f"e{n}")) for n in range(1, known + 1))))
    outcome = take(store, batch(*(record(n, event(f"e{n}")) for n in range(1, count + 1))))
    assert (outcome.inserted, outcome.duplicates, outcome.marks) == (count - known, known, {KEY: count})
    assert seqs(store) == list(range(1, count + 1))
    assert store.counts().events == count
    assert store.check() == []


def test_many_threads_write_the_same_stream_and_each_record_is_there_once(store: Store) -> None:
    def send(worker: int) -> int:
        inserted = 0
        for first in range(1, 200, 10):
            inserted += take(store, batch(*(record(n) for n in range(first, first + 10)))).inserted
        return inserted

    with ThreadPoolExecutor(4) as threads:
        counts = list(threads.map(send, range(4)))
    assert sum(counts) == 200
    assert seqs(store) == list(range(1, 201))
    assert store.counts().duplicates == 600
    assert store.streams()[0].mark == 200


def test_threads_that_write_many_streams_in_different_orders_do_not_block_each_other(store: Store) -> None:
    def send(worker: int) -> None:
        order = list(itertools.product(("a", "b", "c"), CLASSES))
        for turn in range(10):
            rotated = order[worker:] + order[:worker]
            messages = [
                Incoming(
                    f"sluice/v1/{g}/records/{c}", batch(record(turn + 1, event(f"e{turn}")), base=turn + 1), 1, 1, 1, 0
                )
                for g, c in (rotated if worker % 2 else rotated[::-1])
            ]
            store.ingest(intake_of(messages, root="sluice", received_at_ns=1))

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(send, range(4)))
    assert store.counts().records == 120


# ---- any order, any repetition, any cut -------------------------------------------------------------

names: st.SearchStrategy[RecordClass] = st.sampled_from(["critical", "event"])
keys = st.tuples(st.sampled_from(["a", "b"]), st.sampled_from(["0" * 16, "1" * 16]), names)
sent_seqs = st.sets(st.integers(1, 30), min_size=1, max_size=8)
sendings = st.lists(
    st.tuples(keys, sent_seqs, st.integers(1, 30), st.none() | st.tuples(names, st.integers(1, 30), st.integers(0, 6))),
    min_size=1,
    max_size=12,
)
_runs = itertools.count()


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(sendings, st.data())
def test_every_record_is_there_once_and_the_mark_is_right(
    store: Store,
    sent: list[tuple[tuple[str, str, RecordClass], set[int], int, tuple[RecordClass, int, int] | None]],
    data: st.DataObject,
) -> None:
    """The model: a set of received numbers and a set of given-up ones for each stream."""
    run = f"run{next(_runs)}"
    received: dict[StreamKey, set[int]] = {}
    claimed: dict[StreamKey, set[int]] = {}
    messages: list[Incoming] = []
    for (gateway, epoch, name), drawn, wish, evicted in sent:
        key = StreamKey(f"{run}-{gateway}", epoch, name)
        numbers = set(drawn)
        base = min(wish, *numbers, 99)
        records = [record(n) for n in sorted(numbers)]
        if evicted is not None:
            # The highest number of the batch carries the eviction record; one number always has one content.
            target, first, length = evicted
            number = max(numbers) + 100 * (1 + len(messages))
            records.append(record(number, eviction(target, first, first + length)))
            numbers.add(number)
            gone = claimed.setdefault(key._replace(record_class=target), set())
            gone.update(range(first, first + length + 1))
        received.setdefault(key, set()).update(numbers)
        claimed.setdefault(key, set()).update(range(1, base))
        payload = batch(*records, base=base, epoch=epoch)
        messages.append(Incoming(f"sluice/v1/{key.gateway}/records/{name}", payload, 1, 1, 1, 0))
    again = data.draw(st.lists(st.sampled_from(messages), max_size=6))
    order = data.draw(st.permutations([*messages, *again]))
    marks: dict[StreamKey, int] = {}
    while order:
        cut = data.draw(st.integers(1, len(order)))
        outcome = store.ingest(intake_of(order[:cut], root="sluice", received_at_ns=1))
        for key, mark in outcome.marks.items():
            assert mark >= marks.get(key, 0)
            marks[key] = mark
        order = order[cut:]
    streams = {stream.key: stream for stream in store.streams()}
    gaps: dict[StreamKey, list[int]] = {}
    for gap in store.gaps(limit=10_000):
        gaps.setdefault(gap.key, []).extend(range(gap.first, gap.last + 1))
    for key in received.keys() | claimed.keys():
        here, gone = received.get(key, set()), claimed.get(key, set())
        if not here and not gone:
            continue
        known = here | gone
        mark = next(n for n in itertools.count(1) if n not in known) - 1
        assert seqs(store, key) == sorted(here)
        assert sorted(gaps.get(key, [])) == sorted(gone - here)
        assert (streams[key].mark, marks[key]) == (mark, mark)
        assert streams[key].records == len(here)
