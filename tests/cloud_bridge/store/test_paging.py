"""Pages: complete, without overlap, whatever is written meanwhile; and none of them reads the whole table."""

import re
import threading
from collections.abc import Callable
from dataclasses import replace

import pytest

from cloud_bridge.cursors import BadCursorError, cursor_of, place_of
from cloud_bridge.store import rolling
from cloud_bridge.store.base import Limits, RecordFilter, Store
from cloud_bridge.store.lines import event_ids, event_line, merged_ids, record_line, where
from cloud_bridge.store.postgres import PostgresStore
from cloud_bridge.store.sqlite import SqliteStore
from cloud_bridge.values import Arrival, DeadLetter, GapPlace, Intake, LetterPlace, Row, StreamKey
from tests.cloud_bridge.store.test_contract import DAY, take
from tests.simulators.samples import EPOCH, batch, event, eviction, record

KEY = StreamKey("dock", EPOCH, "event")
SECOND = 10**9


def rows(gateway: str, first: int, count: int, *, pipeline: str | None = "camera", kind: str = "notice") -> Arrival:
    made = tuple(Row(seq, kind, pipeline, 1, b"{}") for seq in range(first, first + count))
    return Arrival(StreamKey(gateway, EPOCH, "event"), 1, made)


FILTERS = [
    RecordFilter(),
    RecordFilter(pipeline="p1"),
    RecordFilter(gateway="g1"),
    RecordFilter(kind="measure"),
    RecordFilter(record_class="event"),
    RecordFilter(gateway="g0", pipeline="p2", kind="notice"),
]


@pytest.mark.parametrize("wanted", FILTERS)
def test_pages_of_records_meet_whatever_the_filter_and_come_in_order(store: Store, wanted: RecordFilter) -> None:
    next_seq = dict.fromkeys(range(3), 1)
    for turn in range(60):
        gateway = turn % 3
        made = rows(
            f"g{gateway}", next_seq[gateway], 5, pipeline=f"p{turn % 4}", kind="measure" if turn % 5 else "notice"
        )
        next_seq[gateway] += 5
        store.ingest(Intake(turn + 1, (made,)))
    whole = store.records(wanted, limit=1000)
    paged: list[int] = []
    before: int | None = None
    while page := store.records(replace(wanted, before_id=before), limit=7):
        paged += [one.id for one in page]
        before = page[-1].id
        store.ingest(Intake(100, (rows("late", before + 10_000, 3, pipeline="p1"),)))  # stays above what is read
    assert paged == [one.id for one in whole]
    assert paged == sorted(paged, reverse=True)
    upwards: list[int] = []
    after = 0
    while page := store.records(replace(wanted, after_id=after), limit=7):
        upwards += [one.id for one in page if one.key.gateway != "late"]
        after = page[-1].id
    assert upwards == sorted(paged)


def test_a_time_range_holds_what_was_received_in_it(store: Store) -> None:
    for second in range(20):
        take(store, batch(record(second + 1, event(f"e{second}"))), at=second * SECOND)
    wanted = RecordFilter(since_ns=5 * SECOND, until_ns=9 * SECOND)
    assert [one.seq for one in store.records(wanted)] == [9, 8, 7, 6]
    assert [one.seq for one in store.records(RecordFilter(since_ns=17 * SECOND, pipeline="camera"))] == [20, 19, 18]
    events = store.events(since_ns=5 * SECOND, until_ns=9 * SECOND)
    assert [one.event.event_id for one in events] == ["e8", "e7", "e6", "e5"]
    assert store.events(since_ns=99 * SECOND) == []
    assert store.received_since(15 * SECOND) == 5


def test_a_page_of_events_is_full_although_retention_has_taken_the_bodies_of_some(store: Store) -> None:
    for number in range(1, 7):
        take(store, batch(record(number, event(f"c{number}")), base=number), "critical", at=number)
        take(store, batch(record(number, event(f"e{number}")), base=number), "event", at=number)
    store.sweep(Limits({"event": 6}), 100)  # events stay as long as the longer of both classes
    assert [one.event.event_id for one in store.events(pipeline="camera", limit=4)] == ["e6", "c6", "c5", "c4"]
    found = [one.event.event_id for one in store.events(pipeline="camera", limit=100)]
    assert found == ["e6", "c6", "c5", "c4", "c3", "c2", "c1"]


def test_gaps_are_paged_and_filtered(store: Store) -> None:
    for number in range(1, 11):
        gone = record(number, eviction("bulk", number * 10, number * 10 + 2))
        take(store, batch(gone), "critical", gateway="a" if number % 2 else "b", at=number // 3 * DAY)
    seen: list[tuple[str, int]] = []
    before: GapPlace | None = None
    while page := store.gaps(limit=3, before=before):
        seen += [(gap.key.gateway, gap.first) for gap in page if gap.key.record_class == "bulk"]
        before = page[-1].place
        assert before is not None
        assert place_of(cursor_of(before), GapPlace) == before
        later = 9000 + len(seen) * 2
        take(store, batch(record(500 + len(seen), eviction("bulk", later, later))), "critical", at=99 * DAY)
    assert sorted(seen) == sorted(("a" if n % 2 else "b", n * 10) for n in range(1, 11))
    bulk = [gap for gap in store.gaps(gateway="a", since_ns=DAY, until_ns=3 * DAY) if gap.key.record_class == "bulk"]
    assert sorted(gap.first for gap in bulk) == [30, 50, 70]
    assert store.gaps(source="base") == []


def test_dead_letters_are_paged_and_filtered(store: Store) -> None:
    for number in range(1, 11):
        key = KEY if number % 2 else None
        letter = DeadLetter("bad-body" if key else "bad-payload", "t", "d", bytes([number]), 1, key, number)
        store.ingest(Intake(number // 4 * DAY + 1, dead_letters=(letter,)))
    seen: list[int] = []
    before: LetterPlace | None = None
    while page := store.dead_letters(limit=3, before=before):
        seen += [stored.letter.payload[0] for stored in page]
        before = page[-1].place
        store.ingest(Intake(50 * DAY, dead_letters=(DeadLetter("new", "t", "d", bytes([100 + len(seen)]), 1),)))
    assert seen == list(range(10, 0, -1))
    assert len(store.dead_letters(gateway="dock")) == 5
    assert [one.letter.payload[0] for one in store.dead_letters(reason="bad-payload", until_ns=DAY)] == [2]
    assert len(store.dead_letters(since_ns=DAY, until_ns=3 * DAY)) == 7


@pytest.mark.parametrize("text", ["", "x", "%%%", "W10", "WzEsMl0", "bnVsbA", "A" * 5000, cursor_of((2**70, 1, 1))])
def test_what_is_no_cursor_of_a_list_is_refused(text: str) -> None:
    with pytest.raises(BadCursorError):
        place_of(text, GapPlace)


def test_nothing_is_passed_over_by_one_who_follows_while_others_write(store: Store) -> None:
    """With several writers, ids are given out before they are committed; a page never goes beyond an open one."""
    store.open()
    done = threading.Event()

    def write(number: int) -> None:
        for turn in range(40):
            store.ingest(Intake(1, (rows(f"g{number}", turn * 5 + 1, 5, pipeline=f"p{turn % 3}"),)))

    writers = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for writer in writers:
        writer.start()

    def wait() -> None:
        for writer in writers:
            writer.join()
        done.set()

    threading.Thread(target=wait).start()
    seen: list[int] = []
    after = 0
    is_last = False
    while not is_last:
        is_last = done.is_set()
        while page := store.records(RecordFilter(record_class="event", after_id=after), limit=50):
            seen += [one.id for one in page]
            after = page[-1].id
    assert len(seen) == len(set(seen)) == 800
    assert seen == sorted(seen)


def test_the_control_without_the_horizon_passes_over_what_another_writer_has_in_hand(
    make_store: Callable[[], Store],
) -> None:
    store = make_store()
    if not isinstance(store, PostgresStore):
        pytest.skip("SQLite has one writer, whose ids are committed in order")
    store.ingest(Intake(1, (rows("g0", 1, 1),)))
    with store._pool.connection() as slow:
        slow.execute("SELECT nextval('record_ids')")  # an id below the next one, and not committed yet
        slow.execute("SELECT pg_advisory_xact_lock_shared(%s)", (0x51_1C_E7,))
        store.ingest(Intake(1, (rows("g0", 2, 1),)))
        (top,) = store._rows("SELECT max(id) FROM stream_records")[0]
        assert len(store._rows("SELECT id FROM stream_records WHERE id <= ?", (top,))) < top, "what a reader would take"
        waiting = threading.Thread(target=lambda: found.append(store._horizon()))
        found: list[int] = []
        waiting.start()
        waiting.join(0.3)
        assert waiting.is_alive(), "the horizon waits for the one in hand"
        slow.commit()
    waiting.join(5)
    assert found == [top]


# ---- plans ---------------------------------------------------------------------------------------------

QUERIES = {
    "records of a pipeline": ("records", record_line("notice", "p1", 1), "stream_records_line"),
    "records of no pipeline": ("records", record_line("notice", "", 1), "stream_records_line"),
    "events of a pipeline": ("events", event_line("dock", "camera", "person"), "events_line"),
}


@pytest.mark.parametrize("query", QUERIES)
def test_a_filter_by_pipeline_alone_reads_an_index_and_never_the_table(store: Store, query: str) -> None:
    for turn in range(40):
        store.ingest(Intake(1, (rows(f"g{turn % 4}", turn // 4 * 50 + 1, 50, pipeline=f"p{turn % 4}"),)))
    table, line, index = QUERIES[query]
    plans: list[str] = []

    def explained(sql: str, parameters: object) -> list[tuple[object, ...]]:
        assert isinstance(store, SqliteStore | PostgresStore)
        prefix = "EXPLAIN QUERY PLAN " if isinstance(store, SqliteStore) else "EXPLAIN "
        if isinstance(store, PostgresStore):
            store._with(lambda c: c.execute("ANALYZE stream_records"))
        plans.extend(str(row[-1]) for row in store._rows(prefix + sql, parameters))  # type: ignore[arg-type]
        return []

    assert isinstance(store, SqliteStore | PostgresStore)
    ids_of = event_ids if table == "events" else store._record_ids
    merged_ids(explained, ids_of, [line], [("r.id < ?", 10**6)], limit=50, newest_first=True)
    told = "\n".join(plans)
    if isinstance(store, SqliteStore):
        assert f"USING COVERING INDEX {index}" in told, told
        assert "SCAN" not in told, told
        assert "TEMP B-TREE" not in told, told
    else:
        assert "Index" in told, told
        read_whole = [part for part in plans if "Seq Scan" in part and int(re.findall(r"rows=(\d+)", part)[0]) > 100]
        assert not read_whole, told  # the planner reads what is as good as empty as it likes


def test_what_is_asked_on_every_look_reads_an_index_too(store: Store) -> None:
    if not isinstance(store, SqliteStore):
        pytest.skip("told by SQLite's plan")
    store.open()
    keys = store._keys
    asked = [
        (rolling.SLICE, (1, 2, 3)),
        ("SELECT min(+id) FROM events WHERE updated_at_ns >= ?", (1,)),
        ("SELECT id FROM events WHERE updated_at_ns < ? ORDER BY updated_at_ns LIMIT ?", (1, 2)),
        (f"SELECT body FROM stream_records r WHERE {keys.some}", keys.range(1, 2, 3)),
        (f"SELECT body FROM stream_records r WHERE {keys.one}", keys.place(1, 2)),
        (f"SELECT 1 FROM events e JOIN stream_records r ON {keys.joined('r', 'e')} WHERE e.id IN (?, ?)", (1, 2)),
        ("SELECT min(start_s) FROM rollups WHERE grain = ?", (3600,)),
    ]
    for sql, values in asked:
        plan = [str(row[-1]) for row in store._rows(f"EXPLAIN QUERY PLAN {sql}", values)]
        assert not [step for step in plan if step.startswith("SCAN")], (sql, plan)


def test_the_control_a_filter_on_a_column_without_an_index_would_scan(store: Store) -> None:
    if not isinstance(store, SqliteStore):
        pytest.skip("told by SQLite's plan")
    store.open()
    text, values = where([("r.pipeline = ?", "p1")])
    plan = store._rows(f"EXPLAIN QUERY PLAN SELECT r.id FROM stream_records r{text} ORDER BY r.id LIMIT 5", values)
    assert any("SCAN" in str(row[-1]) for row in plan)


def test_lines_that_nobody_has_written_cost_no_query(store: Store) -> None:
    store.open()
    assert store.records(RecordFilter(pipeline="nothing")) == []
    assert merged_ids(lambda *_: pytest.fail("asked"), event_ids, [], [], limit=5, newest_first=True) == []
