"""A SQLite store of the first layout becomes one of the present layout, with everything in it."""

import sqlite3
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
