"""PostgreSQL keeps records by class and month of receipt, and each of them once whatever the month."""

from collections.abc import Iterator
from datetime import UTC, datetime

import psycopg
import pytest
import structlog

from cloud_bridge.store import schema
from cloud_bridge.store.base import Limits, RecordFilter
from cloud_bridge.store.partitions import ahead, month_of, name_of, starts_ns
from cloud_bridge.store.postgres import PostgresStore
from cloud_bridge.values import Arrival, Intake, Row, StreamKey
from tests.simulators.postgres import PostgresServer
from tests.simulators.samples import EPOCH

KEY = StreamKey("dock", EPOCH, "bulk")


def ns(year: int, month: int, day: int = 15) -> int:
    return int(datetime(year, month, day, tzinfo=UTC).timestamp()) * 10**9


def rows(first: int, last: int, at_ns: int, key: StreamKey = KEY) -> Intake:
    taken = tuple(Row(seq, "notice", None, 1, b"{}") for seq in range(first, last + 1))
    return Intake(at_ns, (Arrival(key, 1, taken),))


@pytest.fixture
def url(postgres: PostgresServer, request: pytest.FixtureRequest) -> str:
    return postgres.make(f"months-{abs(hash(request.node.name))}")


@pytest.fixture
def store(url: str) -> Iterator[PostgresStore]:
    found = PostgresStore(url, wall_ns=lambda: ns(2026, 3))
    yield found
    found.close()


def partitions(store: PostgresStore) -> set[str]:
    named = "SELECT relname FROM pg_class WHERE relispartition AND relname ~ '^stream_records_[a-z]+_[0-9]+$'"
    return {name for (name,) in store._rows(named)}


def test_a_month_is_named_after_its_class_and_begins_at_midnight_utc() -> None:
    part = (3, month_of(ns(2026, 1, 31)))
    assert name_of(part) == "stream_records_bulk_202601"
    assert starts_ns(part[1]) == ns(2026, 1, 1)
    assert month_of(starts_ns(part[1]) - 1) == part[1] - 1
    assert len(ahead(ns(2026, 12))) == 12


def test_a_record_sent_again_in_another_month_is_a_duplicate(store: PostgresStore) -> None:
    assert store.ingest(rows(1, 10, ns(2026, 1, 31))).inserted == 10
    outcome = store.ingest(rows(1, 12, ns(2026, 2, 1)))
    assert (outcome.inserted, outcome.duplicates, outcome.marks) == (2, 10, {KEY: 12})
    assert store._rows("SELECT count(*) FROM records") == [(12,)]
    assert {"stream_records_bulk_202601", "stream_records_bulk_202602"} <= partitions(store)
    assert store.check() == []


def test_the_control_without_the_key_of_all_months_doubles_what_is_sent_again(store: PostgresStore) -> None:
    store.ingest(rows(1, 10, ns(2026, 1, 31)))
    store._with(lambda connection: connection.execute("DELETE FROM stream_spans"))
    assert store.ingest(rows(1, 10, ns(2026, 2, 1))).inserted == 10
    assert "doubled-key" in {violation.rule for violation in store.check()}, "and the check finds it"


def test_a_month_is_dropped_once_all_of_it_is_due_and_not_before(store: PostgresStore) -> None:
    store.ingest(rows(1, 10, ns(2026, 1)))
    store.ingest(rows(11, 30, ns(2026, 2)))
    store.ingest(rows(1, 5, ns(2026, 1), KEY._replace(record_class="event")))
    assert store.sweep(Limits({"bulk": ns(2026, 1, 31)}), 100).records == 0
    assert store.sweep(Limits({"bulk": ns(2026, 2, 20)}), 100).records == 10
    assert "stream_records_bulk_202601" not in partitions(store)
    assert "stream_records_event_202601" in partitions(store), "each class has months of its own"
    assert store.counts().deleted == 10
    assert [record.seq for record in store.records(RecordFilter(record_class="bulk"), limit=100)][-1] == 11
    assert store.check() == []


def test_a_record_of_a_dropped_month_is_a_counted_duplicate_and_no_failure(store: PostgresStore) -> None:
    store.ingest(rows(1, 10, ns(2026, 1)))
    store.ingest(rows(11, 20, ns(2026, 2)))
    store.sweep(Limits({"bulk": ns(2026, 2, 20)}), 100)
    outcome = store.ingest(rows(1, 25, ns(2026, 3)))
    assert (outcome.inserted, outcome.duplicates, outcome.marks) == (5, 20, {KEY: 25})
    assert store.counts().duplicates == 20
    assert store.check() == []


def test_a_record_that_was_captured_long_ago_and_comes_now_is_kept_in_full(store: PostgresStore) -> None:
    store.sweep(Limits({"bulk": ns(2026, 3, 1)}), 100)
    old = Arrival(KEY, 1, (Row(1, "notice", None, ns(2019, 1), b"{}"),))
    assert store.ingest(Intake(ns(2026, 3), (old,))).inserted == 1
    assert store.sweep(Limits({"bulk": ns(2026, 3, 1)}), 100).records == 0
    assert store.counts().records == 1


def test_months_are_made_ahead_so_that_no_record_waits_for_one(store: PostgresStore) -> None:
    store.open()
    assert {"stream_records_event_202603", "stream_records_event_202605"} <= partitions(store)
    now = ns(2026, 6)
    store._wall_ns = lambda: now
    store.tidy()
    assert "stream_records_critical_202608" in partitions(store)


def test_a_month_that_another_process_has_dropped_is_made_again_when_a_clock_goes_back(
    store: PostgresStore, url: str
) -> None:
    store.ingest(rows(1, 5, ns(2026, 1)))
    other = PostgresStore(url, wall_ns=lambda: ns(2026, 3))
    assert other.sweep(Limits({"bulk": ns(2026, 3, 1)}), 100).records == 5
    assert store.ingest(rows(6, 9, ns(2026, 1, 20))).marks == {KEY: 9}
    assert store.counts().records == 4
    other.close()


def test_a_month_that_someone_reads_is_dropped_the_next_time_and_ingest_goes_on(store: PostgresStore, url: str) -> None:
    store.ingest(rows(1, 10, ns(2026, 1)))
    with psycopg.connect(url) as reader:
        reader.execute("SELECT count(*) FROM stream_records_bulk_202601").fetchall()  # and its transaction stays open
        with structlog.testing.capture_logs() as logs:
            assert store.sweep(Limits({"bulk": ns(2026, 3, 1)}), 100).records == 0
        assert [entry["event"] for entry in logs] == ["partition_in_use"]
        assert store.ingest(rows(11, 12, ns(2026, 3))).inserted == 2
    assert store.counts().deleted == 0
    assert store.sweep(Limits({"bulk": ns(2026, 3, 1)}), 100).records == 10


def test_a_month_waits_until_it_is_rolled_up(store: PostgresStore) -> None:
    store.ingest(rows(1, 10, ns(2026, 1)))
    limits = Limits({"bulk": ns(2026, 3, 1)}, only_rolled=True)
    assert store.sweep(limits, 100).records == 0
    while store.roll_up(1000).records:
        pass
    assert store.sweep(limits, 100).records == 10


OLD_ROWS = 50


def old_layout(url: str) -> None:
    """Make a database as the version before partitions left it."""
    with psycopg.connect(url) as old:
        old.execute("CREATE TABLE sluice_schema (version INTEGER NOT NULL)")
        for statement in schema.POSTGRES[0]:
            old.execute(statement)
        old.execute("INSERT INTO sluice_schema VALUES (1)")
        old.execute(
            "INSERT INTO streams (gateway, epoch, class, records) VALUES ('dock', %s, 'bulk', %s)", (EPOCH, OLD_ROWS)
        )
        old.execute(
            "INSERT INTO stream_records (stream, seq, kind, pipeline, recorded_at_ns, received_at_ns, body)"
            " SELECT 1, n, 'notice', CASE WHEN n %% 2 = 0 THEN 'camera' END, n, %s, '{}' FROM generate_series(1, %s) n",
            (ns(2025, 11), OLD_ROWS),
        )
        old.execute("INSERT INTO stream_spans VALUES (1, 1, %s)", (OLD_ROWS,))


def test_a_database_of_the_older_layout_keeps_every_record_and_goes_on(url: str) -> None:
    old_layout(url)
    store = PostgresStore(url, wall_ns=lambda: ns(2026, 3))
    outcome = store.ingest(rows(OLD_ROWS - 1, OLD_ROWS + 5, ns(2026, 3)))
    assert (outcome.inserted, outcome.duplicates, outcome.marks) == (5, 2, {KEY: OLD_ROWS + 5})
    found = store.records(RecordFilter(after_id=0), limit=100)
    assert [record.seq for record in found] == list(range(1, OLD_ROWS + 6)), "ids go on where they were"
    assert len(store.records(RecordFilter(pipeline="camera"), limit=100)) == OLD_ROWS // 2
    assert store.check() == []
    limits = Limits({"bulk": ns(2026, 1)})
    assert store.sweep(limits, 30).records == 30, "the old part goes row by row"
    assert store.sweep(limits, 30).records == 20
    store.tidy()
    assert store._rows("SELECT to_regclass('stream_records_legacy') IS NULL") == [(True,)]
    assert store.sweep(limits, 30).records == 0
    assert store.counts().records == 5
    assert store.check() == []
    store.close()
