"""Where SQLite keeps the numbers of a stream: runs instead of an index, and an index of lines in buckets."""

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from cloud_bridge.errors import StoreRefusedError
from cloud_bridge.store import keys
from cloud_bridge.store.base import Limits, RecordFilter
from cloud_bridge.store.sqlite import SqliteStore
from cloud_bridge.values import Arrival, Intake, Row, StreamKey
from tests.simulators.samples import EPOCH

DOCK = StreamKey("dock", EPOCH, "event")
GATE = StreamKey("gate", EPOCH, "event")


def arrival(key: StreamKey, *seqs: int, pipeline: str | None = "camera", base: int = 1) -> Arrival:
    return Arrival(key, base, tuple(Row(seq, "notice", pipeline, 1, b"%d" % seq) for seq in seqs))


def take(store: SqliteStore, *arrivals: Arrival, at: int = 1) -> None:
    store.ingest(Intake(at, arrivals))


def runs(store: SqliteStore) -> list[tuple[int, ...]]:
    found = store._rows("SELECT stream, first, last, first_id FROM stream_runs ORDER BY stream, first")
    return [tuple(row) for row in found]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "bridge.db"


@pytest.fixture
def store(path: Path) -> Iterator[SqliteStore]:
    with closing(SqliteStore(path)) as store:
        yield store


# ---- runs ----------------------------------------------------------------------------------------


def test_one_stream_alone_is_one_run_and_streams_in_turn_have_one_for_each_arrival(store: SqliteStore) -> None:
    for first in range(1, 31, 10):
        take(store, arrival(DOCK, *range(first, first + 10)))
    assert runs(store) == [(1, 1, 30, 1)]
    take(store, arrival(GATE, 1, 2), arrival(DOCK, 31, 32))
    take(store, arrival(GATE, 3, 4), arrival(DOCK, 33, 34))
    ids = {one.id: (one.key.gateway, one.seq) for one in store.records(RecordFilter(), limit=100)}
    for stream, first, last, first_id in runs(store):
        name = {1: "dock", 2: "gate"}[stream]
        assert [ids[first_id + at] for at in range(last - first + 1)] == [(name, n) for n in range(first, last + 1)]
    assert store.check() == []


def test_records_are_found_whatever_the_order_in_which_they_came(store: SqliteStore) -> None:
    take(store, arrival(DOCK, 5, 6, 9), arrival(GATE, 1), arrival(DOCK, 1, 2))
    take(store, arrival(DOCK, 3, 4, 7), arrival(DOCK, 10, 11))
    for seq in (1, 2, 3, 4, 5, 6, 7, 9, 10, 11):
        found = store.record(DOCK, seq)
        assert found is not None
        assert (found.seq, found.body, found.key) == (seq, b"%d" % seq, DOCK)
    for seq in (0, 8, 12, 2**63 - 1):
        assert store.record(DOCK, seq) is None, "of no run, however near one is"
    numbers = store._rows(
        f"SELECT r.seq FROM stream_records r WHERE {store._keys.some} ORDER BY r.seq", store._keys.range(1, 2, 9)
    )
    assert [seq for (seq,) in numbers] == [2, 3, 4, 5, 6, 7, 9]
    assert store.check() == []


def test_retention_takes_runs_with_their_records_and_cuts_the_one_it_ends_in(store: SqliteStore) -> None:
    for turn in range(4):
        take(store, arrival(DOCK, *range(turn * 5 + 1, turn * 5 + 6)), arrival(GATE, turn + 1), at=turn + 1)
    store.sweep(Limits({"event": 4}), 7)
    assert [one.seq for one in store.records(RecordFilter(gateway="dock"))] == list(range(20, 7, -1))
    assert [run[:3] for run in runs(store) if run[0] == 1] == [(1, 8, 10), (1, 11, 15), (1, 16, 20)]
    assert store.record(DOCK, 7) is None
    assert store.check() == []
    for _ in range(9):
        store.sweep(Limits({"event": 99}), 7)
    assert runs(store) == []
    assert store._rows("SELECT count(*) FROM line_buckets") == [(0,)]
    take(store, arrival(DOCK, 21, 22))
    assert [one.seq for one in store.records(RecordFilter(pipeline="camera"))] == [22, 21]
    assert min(one.id for one in store.records(RecordFilter())) == 25, (
        "the id of a record that is gone is not given again"
    )
    assert store.check() == []


def forget_spans(store: SqliteStore) -> None:
    """What tells duplicates apart is gone, as no fault of this program should make it."""
    store._write(lambda tx: tx.change("DELETE FROM stream_spans"))


@pytest.mark.parametrize("seqs", [(3,), (5, 6), (1, 2, 3, 4, 5, 6, 7, 8), (6, 7, 8)])
def test_a_second_row_of_a_known_number_is_refused_although_the_spans_do_not_know_it(
    store: SqliteStore, seqs: tuple[int, ...]
) -> None:
    take(store, arrival(DOCK, 3, 4, 5), arrival(GATE, 1))
    take(store, arrival(DOCK, 6, 8))
    forget_spans(store)
    with pytest.raises(StoreRefusedError, match=r"is stored already.*store check"):
        take(store, arrival(DOCK, *seqs))
    assert sorted(one.seq for one in store.records(RecordFilter(gateway="dock"))) == [3, 4, 5, 6, 8]
    take(store, arrival(DOCK, 7), arrival(GATE, 2))
    assert len(store.records(RecordFilter())) == 8


def test_the_control_without_the_runs_it_would_be_there_twice(
    store: SqliteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    take(store, arrival(DOCK, 3, 4, 5))
    forget_spans(store)
    monkeypatch.setattr("cloud_bridge.store.sqlitetransaction.add_runs", lambda *_: None)
    take(store, arrival(DOCK, 3))
    assert [one.seq for one in store.records(RecordFilter())].count(3) == 2
    assert {"doubled-key", "run-missing"} <= {violation.rule for violation in store.check()}


@pytest.mark.parametrize(
    ("breakage", "rule"),
    [
        ("DELETE FROM stream_runs WHERE first = 4", "run-missing"),
        ("UPDATE stream_runs SET first_id = first_id + 1 WHERE first = 4", "run-missing"),
        ("UPDATE stream_runs SET last = last + 1 WHERE first = 1", "runs"),
        ("INSERT INTO stream_runs VALUES (1, 90, 91, 4711)", "runs"),
        ("DELETE FROM line_buckets WHERE pipeline = 'camera'", "line-missing"),
    ],
)
def test_the_check_finds_runs_and_buckets_that_do_not_lead_to_their_records(
    store: SqliteStore, breakage: str, rule: str
) -> None:
    take(store, arrival(DOCK, 1, 2, 3), arrival(GATE, 1))
    take(store, arrival(DOCK, 4, 5, 6))
    assert store.check() == []
    store._write(lambda tx: tx.change(breakage))
    assert rule in {violation.rule for violation in store.check()}
    for seq in range(1, 7):
        found = store.record(DOCK, seq)
        assert found is None or found.seq == seq, "a wrong run leads to nothing rather than to another record"


# ---- buckets -------------------------------------------------------------------------------------


def far(store: SqliteStore, number: int) -> None:
    """Let ids go on from a number, as if so many records had come and gone."""
    store._write(lambda tx: tx.change("UPDATE sqlite_sequence SET seq = ? WHERE name = 'stream_records'", (number,)))


def test_pages_go_on_from_bucket_to_bucket_in_both_directions(store: SqliteStore) -> None:
    size = 2**keys.SHIFT
    for bucket in (0, 1, 2, 40):
        if bucket:
            far(store, bucket * size - 4)
        for turn in range(4):
            first = bucket * 100 + turn * 5 + 1
            names = ("camera", None, "rare" if bucket == 1 else "camera")
            made = [arrival(StreamKey(f"g{at}", EPOCH, "event"), first, first + 1, pipeline=name)
                    for at, name in enumerate(names)]  # fmt: skip
            take(store, *made)
    whole = [(one.id, one.pipeline) for one in store.records(RecordFilter(), limit=1000)]
    assert len({number >> keys.SHIFT for number, _ in whole}) >= 4
    for wanted in (RecordFilter(pipeline="camera"), RecordFilter(pipeline="rare"), RecordFilter(gateway="g1")):
        expected = [
            one.id
            for one in store.records(RecordFilter(), limit=1000)
            if wanted.pipeline in (None, one.pipeline) and wanted.gateway in (None, one.key.gateway)
        ]
        down: list[int] = []
        while page := store.records(
            RecordFilter(wanted.gateway, wanted.pipeline, before_id=down[-1] if down else None), limit=3
        ):
            down += [one.id for one in page]
        up: list[int] = []
        while page := store.records(
            RecordFilter(wanted.gateway, wanted.pipeline, after_id=up[-1] if up else 0), limit=3
        ):
            up += [one.id for one in page]
        assert down == expected
        assert up == expected[::-1]
    assert store.check() == []


def test_a_line_is_looked_for_in_its_own_buckets_only(store: SqliteStore) -> None:
    take(store, arrival(DOCK, 1, pipeline="rare"))
    for bucket in range(1, 50):
        far(store, bucket << keys.SHIFT)
        take(store, arrival(DOCK, bucket + 1))
    assert [one.seq for one in store.records(RecordFilter(pipeline="rare"))] == [1]
    assert store._rows("SELECT bucket FROM line_buckets WHERE pipeline = 'rare'") == [(0,)]
    assert store._rows("SELECT count(*) FROM line_buckets") == [(50,)]


# ---- cost ----------------------------------------------------------------------------------------

STREAMS = 800
ROWS = 50
BODY = b"x" * 200


def written_bytes() -> int:
    """What this process has written so far, to its log and its files."""
    lines = Path("/proc/self/io").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("wchar")).split()[1])


def growth(store: SqliteStore, sizes: tuple[int, int]) -> float:
    """Return by how much more is written for a record at the second size than at the first."""
    reached = dict.fromkeys(range(STREAMS), 0)
    costs = []
    done = turn = 0

    def go_on() -> None:
        nonlocal done, turn
        arrivals = []
        for _ in range(40):
            stream = turn * 7 % STREAMS
            turn += 1
            made = tuple(Row(reached[stream] + n, "measure", f"p{stream % 5}", 1, BODY) for n in range(1, ROWS + 1))
            arrivals.append(Arrival(StreamKey(f"g{stream:03}", EPOCH, "measure"), 1, made))
            reached[stream] += ROWS
        store.ingest(Intake(1, tuple(arrivals)))
        done += 40 * ROWS

    for size in sizes:
        while done < size:
            go_on()
        before, rows_before = written_bytes(), done
        for _ in range(40):
            go_on()
        costs.append((written_bytes() - before) / (done - rows_before))
    return costs[1] / costs[0]


SIZES = (20_000, 20_000 + 2**keys.SHIFT)
"""At the same place of a bucket: a page of the index of lines is shared by fewer arrivals the fuller its bucket is."""

MOST_GROWTH = 1.15


def test_a_record_is_written_with_as_many_bytes_in_a_store_of_ten_times_the_size(store: SqliteStore) -> None:
    assert growth(store, SIZES) <= MOST_GROWTH


def test_the_control_with_an_index_of_numbers_through_all_records_it_would_grow(store: SqliteStore, path: Path) -> None:
    store.open()
    with closing(sqlite3.connect(path)) as db:
        db.execute("CREATE UNIQUE INDEX stream_records_key ON stream_records (stream, seq)")
    assert growth(store, SIZES) > MOST_GROWTH
