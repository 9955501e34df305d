"""A SQLite store of an older layout becomes one of the present layout, with everything in it."""

import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from cloud_bridge.errors import StoreError
from cloud_bridge.store import schema
from cloud_bridge.store.base import RecordFilter
from cloud_bridge.store.sqlite import SqliteReader, SqliteStore
from cloud_bridge.values import StreamKey
from gateway.wire.messages import encode
from tests.cloud_bridge.store.test_contract import take
from tests.simulators.samples import EPOCH, batch, event, record
from tests.simulators.waiting import wait_for

KEY = StreamKey("dock", EPOCH, "event")
ROWS = 200


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A store as the first version left it."""
    path = tmp_path / "bridge.db"
    with closing(sqlite3.connect(path)) as old:
        old.execute("PRAGMA journal_mode = WAL")
        for statement in schema.SQLITE[0]:
            old.execute(statement)
        old.execute("PRAGMA user_version = 1")
        old.execute(
            "INSERT INTO streams (gateway, epoch, class, records) VALUES ('dock', ?, 'event', ?)", (EPOCH, ROWS)
        )
        for number in range(1, ROWS + 1):
            old.execute(
                "INSERT INTO stream_records (stream, seq, kind, pipeline, recorded_at_ns, received_at_ns, body)"
                " VALUES (1, ?, 'event', 'camera', 1, ?, ?)",
                (number, number, encode(event(f"e{number}", label=f"l{number % 3}"))),
            )
            old.execute(
                "INSERT INTO events (gateway, event_id, pipeline, label, phase, revision, captured_at_ns,"
                " received_at_ns, updated_at_ns, stream, seq) VALUES ('dock', ?, 'camera', ?, 'new', 0, 1, ?, ?, 1, ?)",
                (f"e{number}", f"l{number % 3}", number, number, number),
            )
        old.execute("INSERT INTO stream_spans VALUES (1, 1, ?)", (ROWS,))
        old.commit()
    return path


def test_an_older_store_keeps_everything_and_is_found_by_every_filter(path: Path) -> None:
    store = SqliteStore(path)
    outcome = take(store, batch(*(record(n, event(f"e{n}", label="l0")) for n in range(ROWS, ROWS + 3))))
    assert (outcome.inserted, outcome.marks) == (2, {KEY: ROWS + 2})
    assert len(store.records(RecordFilter(pipeline="camera"), limit=1000)) == ROWS + 2
    assert len(store.records(RecordFilter(kind="event", gateway="dock"), limit=1000)) == ROWS + 2
    assert len(store.events(label="l1", limit=1000)) == 67
    while store.roll_up(1000).records:
        pass
    assert store.check() == []
    store.close()


def as_of_version_2(path: Path, *, rows: int = ROWS) -> list[tuple[object, ...]]:
    """Make a store as the second version left it: three streams in turn, some of it late, some of it removed."""
    with closing(sqlite3.connect(path)) as old:
        for statements in schema.SQLITE[:2]:
            for statement in statements:
                old.execute(statement)
        old.execute("PRAGMA user_version = 2")
        for stream in (1, 2, 3):
            old.execute(
                "INSERT INTO streams (gateway, epoch, class, records, deleted) VALUES (?, ?, 'event', ?, 5)",
                (f"g{stream}", EPOCH, rows),
            )
            old.execute("INSERT INTO stream_spans VALUES (?, 1, ?)", (stream, rows))
            old.execute("INSERT INTO lines VALUES (?, 'event', 'camera')", (stream,))
            old.execute("INSERT INTO event_lines VALUES (?, 'camera', 'person')", (f"g{stream}",))
        # Seven at a time, from each stream in turn; the second half of each seven before the first.
        order = [
            (stream, seq)
            for first in range(1, rows + 1, 7)
            for stream in (1, 2, 3)
            for seq in (*range(first + 4, first + 7), *range(first, first + 4))
            if seq <= rows
        ]
        for stream, seq in order:
            body = encode(event(f"e{stream}-{seq}"))
            old.execute(
                "INSERT INTO stream_records (stream, seq, kind, pipeline, recorded_at_ns, received_at_ns, body)"
                " VALUES (?, ?, 'event', 'camera', 1, 1, ?)",
                (stream, seq, body),
            )
            old.execute(
                "INSERT INTO events (gateway, event_id, pipeline, label, phase, revision, captured_at_ns,"
                " received_at_ns, updated_at_ns, stream, seq)"
                " VALUES (?, ?, 'camera', 'person', 'new', 0, 1, 1, 1, ?, ?)",
                (f"g{stream}", f"e{stream}-{seq}", stream, seq),
            )
        old.execute("DELETE FROM events WHERE seq <= 5")
        old.execute("DELETE FROM stream_records WHERE seq <= 5")
        old.execute("UPDATE rollup_state SET through_id = 1000000")
        old.commit()
        return old.execute("SELECT id, stream, seq, body FROM stream_records ORDER BY id").fetchall()


def test_a_store_with_an_index_of_numbers_answers_the_same_with_runs(tmp_path: Path) -> None:
    path = tmp_path / "bridge.db"
    held = as_of_version_2(path)
    with closing(SqliteStore(path)) as store:
        store.open()
        found = store.records(RecordFilter(after_id=0), limit=10_000)
        assert [(one.id, int(one.key.gateway[1:]), one.seq, one.body) for one in found] == held
        for number, stream, seq, body in held:
            one = store.record(StreamKey(f"g{stream}", EPOCH, "event"), seq)  # type: ignore[arg-type]
            assert one is not None
            assert (one.id, one.body) == (number, body)
        assert store.record(StreamKey("g1", EPOCH, "event"), 5) is None
        assert len(store.events(pipeline="camera", limit=10_000)) == len(held)
        assert len(store.records(RecordFilter(gateway="g2", pipeline="camera"), limit=10_000)) == ROWS - 5
        assert store._rows("SELECT count(*) < ? FROM stream_runs", (len(held) // 2,)) == [(1,)]
        again = take(store, batch(*(record(n, event(f"e1-{n}")) for n in range(1, ROWS + 2))), gateway="g1")
        assert (again.inserted, again.duplicates, again.conflicts) == (1, ROWS, ())
        assert store.check() == []


def test_a_migration_to_runs_that_is_cut_off_leaves_the_older_layout_whole(tmp_path: Path) -> None:
    path = tmp_path / "bridge.db"
    held = as_of_version_2(path)
    with closing(sqlite3.connect(path)) as old:
        old.execute("CREATE TABLE line_buckets (in_the_way)")  # so that it fails when the runs are made
    with closing(SqliteStore(path)) as store, pytest.raises(StoreError, match="already exists"):
        store.open()
    with closing(sqlite3.connect(path)) as old:
        assert old.execute("PRAGMA user_version").fetchone() == (2,)
        assert old.execute("SELECT count(*) FROM stream_records").fetchone() == (len(held),)
        names = {name for (name,) in old.execute("SELECT name FROM sqlite_schema")}
        assert "stream_records_key" in names
        assert "stream_runs" not in names
        old.execute("DROP TABLE line_buckets")
    with closing(SqliteStore(path)) as store:
        store.open()
        assert store.counts().records == len(held)
        assert store.check() == []


_MIGRATE = """
import sys
from pathlib import Path
from cloud_bridge.store.sqlite import SqliteStore
store = SqliteStore(Path(sys.argv[1]))
print("opening", flush=True)
store.open()
"""


@pytest.mark.parametrize("after_bytes", [4096 * n for n in (0, 1, 5, 40)])
def test_a_migration_killed_in_the_middle_is_made_from_the_start_the_next_time(
    tmp_path: Path, after_bytes: int
) -> None:
    """Killed once its log has grown so far: some of it is on the disk, none of it is committed, or all of it is."""
    path = tmp_path / "bridge.db"
    held = as_of_version_2(path, rows=3000)
    log = Path(f"{path}-wal")
    with subprocess.Popen(
        [sys.executable, "-c", _MIGRATE, str(path)], stdout=subprocess.PIPE, cwd=Path(__file__).parents[3]
    ) as victim:
        assert victim.stdout is not None
        victim.stdout.readline()
        wait_for(lambda: victim.poll() is not None or (log.exists() and log.stat().st_size >= after_bytes))
        victim.kill()
    with closing(SqliteStore(path)) as store:
        store.open()
        assert store.counts().records == len(held)
        assert store.check() == []
        one = store.record(StreamKey("g3", EPOCH, "event"), 3000)
        assert one is not None


def test_a_reader_of_the_older_layout_is_told_what_to_do(path: Path) -> None:
    reader = SqliteReader(path)
    with pytest.raises(StoreError, match="start this version of the bridge on it once"):
        reader.counts()
    reader.close()


def test_a_migration_that_is_cut_off_leaves_the_older_layout_whole(path: Path) -> None:
    with closing(sqlite3.connect(path)) as old:
        old.execute("CREATE TABLE lost_stores (in_the_way)")  # so that it fails half-way
    store = SqliteStore(path)
    with pytest.raises(StoreError, match="already exists"):
        store.open()
    store.close()
    with closing(sqlite3.connect(path)) as old:
        assert old.execute("PRAGMA user_version").fetchone() == (1,)
        assert old.execute("SELECT count(*) FROM stream_records").fetchone() == (ROWS,)
        old.execute("DROP TABLE lost_stores")
    store = SqliteStore(path)
    store.open()
    assert store.counts().records == ROWS
    store.close()
