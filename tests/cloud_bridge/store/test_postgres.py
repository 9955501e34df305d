import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest

from cloud_bridge.errors import StoreError
from cloud_bridge.store.base import Limits
from cloud_bridge.store.postgres import PostgresStore
from cloud_bridge.store.schema import POSTGRES
from cloud_bridge.values import Arrival, Intake, Outcome, Row, StreamKey
from gateway.wire.messages import Availability
from tests.simulators.postgres import PostgresServer, binaries
from tests.simulators.samples import EPOCH

KEY = StreamKey("dock", EPOCH, "event")


def rows(first: int, last: int) -> Intake:
    return Intake(1, (Arrival(KEY, 1, tuple(Row(seq, "notice", None, 1, b"{}") for seq in range(first, last + 1))),))


@pytest.fixture
def server() -> Iterator[PostgresServer]:
    """One that may be stopped and killed."""
    found = binaries()
    if found is None:
        pytest.skip("PostgreSQL is not installed: apt-get install postgresql")
    with PostgresServer(found) as running:
        yield running


def when_it_is_back(store: PostgresStore, intake: Intake) -> Outcome:
    """Ask until the pool has a connection again, as the bridge does: its tries get rarer while there is none."""
    deadline = time.monotonic() + 60.0
    while True:
        try:
            return store.ingest(intake)
        except StoreError:
            if time.monotonic() > deadline:
                raise


@pytest.mark.slow
def test_a_database_that_goes_away_is_an_error_now_and_no_loss_later(server: PostgresServer) -> None:
    url = server.make("bridge")
    server.stop()
    store = PostgresStore(url)
    with pytest.raises(StoreError, match="cannot be reached"):
        store.ingest(rows(1, 3))
    server.start()
    assert when_it_is_back(store, rows(1, 3)).marks == {KEY: 3}
    server.kill()
    with pytest.raises(StoreError):
        store.ingest(rows(4, 6))
    server.start()
    assert when_it_is_back(store, rows(4, 6)).marks == {KEY: 6}
    assert store.counts().records == 6
    store.close()


def test_a_commit_waits_for_the_disk_whatever_the_server_is_set_to(postgres: PostgresServer) -> None:
    url = postgres.make("lazy")
    with psycopg.connect(postgres.url("postgres"), autocommit=True) as connection:
        connection.execute("ALTER DATABASE lazy SET synchronous_commit TO off")
    store = PostgresStore(url)
    assert store._rows("SHOW synchronous_commit") == [("on",)]
    store.close()


def test_the_key_keeps_records_single_even_if_the_spans_were_lost(postgres: PostgresServer) -> None:
    store = PostgresStore(postgres.make("spanless"))
    store.ingest(rows(1, 5))
    store._with(lambda connection: connection.execute("DELETE FROM stream_spans"))
    outcome = store.ingest(rows(3, 8))
    assert (outcome.inserted, outcome.duplicates) == (3, 3)
    assert store._rows("SELECT count(*) FROM records") == [(8,)]
    store.close()


@pytest.mark.parametrize("encoding", ["SQL_ASCII", "LATIN1"])
def test_a_database_that_cannot_hold_every_name_is_refused_with_the_remedy(
    postgres: PostgresServer, encoding: str
) -> None:
    name = f"in_{encoding.lower()}"
    with psycopg.connect(postgres.url("postgres"), autocommit=True) as connection:
        connection.execute(
            f"CREATE DATABASE {name} ENCODING '{encoding}' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0"
        )
    store = PostgresStore(postgres.url(name))
    with pytest.raises(StoreError, match=rf"{encoding}.*createdb --encoding=UTF8"):
        store.ingest(rows(1, 3))
    store.close()


def test_the_environment_does_not_choose_in_which_encoding_it_is_spoken_to(
    postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGCLIENTENCODING", "LATIN1")
    store = PostgresStore(postgres.make("spoken"))
    label = Intake(1, (Arrival(KEY, 1, (Row(1, "notice", "門", 1, b"{}"),)),))
    assert store.ingest(label).marks == {KEY: 1}
    assert store._rows("SELECT pipeline FROM records") == [("門",)]
    store.close()


def test_an_address_that_cannot_be_read_is_an_error() -> None:
    with pytest.raises(StoreError, match="cannot be read"):
        PostgresStore("postgresql://[half")


def test_two_processes_that_start_together_make_the_tables_once(postgres: PostgresServer) -> None:
    url = postgres.make("together")
    stores = [PostgresStore(url) for _ in range(3)]
    for store in stores:
        store.open()
    versions = [(number + 1,) for number in range(len(POSTGRES))]
    assert stores[0]._rows("SELECT version FROM sluice_schema ORDER BY version") == versions
    for store in stores:
        store.close()


def test_a_right_that_is_missing_is_no_fault_of_the_records(postgres: PostgresServer) -> None:
    store = PostgresStore(postgres.make("rights"))
    store.ingest(rows(1, 5))
    store._with(lambda connection: connection.execute("ALTER TABLE lines RENAME TO lines_kept"))
    with pytest.raises(StoreError):
        store.ingest(rows(6, 8))
    store._with(lambda connection: connection.execute("ALTER TABLE lines_kept RENAME TO lines"))
    assert store.ingest(rows(6, 8)).marks == {KEY: 8}
    store.close()


def test_workers_that_hear_of_the_same_gateways_do_not_wait_in_a_circle(postgres: PostgresServer) -> None:
    store = PostgresStore(postgres.make("circle"))
    names = [f"g{number}" for number in range(40)]
    said = Availability(state="online", at="")

    def hear(worker: int) -> None:
        for turn in range(60):
            # The first worker of a broker hears of availability too.
            availability = tuple((name, said) for name in names[turn % 40 :]) if worker == 0 else ()
            store.ingest(Intake(turn, availability=availability, seen=frozenset(names)))

    store.ingest(Intake(1, seen=frozenset(names)))
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(hear, range(4)))
    store.close()


@pytest.mark.parametrize("whole_months", [True, False])
def test_retention_and_ingest_take_streams_in_the_same_order(postgres: PostgresServer, *, whole_months: bool) -> None:
    url = postgres.make(f"order{int(whole_months)}")
    store = PostgresStore(url, whole_months=whole_months)
    first, last = KEY._replace(gateway="a"), KEY._replace(gateway="z")
    for key in (last, first):  # so that the order of their ids is not that of their names
        store.ingest(Intake(1, (Arrival(key, 1, (Row(1, "notice", None, 1, b"{}"),)),)))
    locked = "SELECT 1 FROM streams WHERE gateway = %s FOR UPDATE"
    with psycopg.connect(url) as writer, ThreadPoolExecutor(1) as threads:
        writer.execute(locked, ("a",))
        swept = threads.submit(store.sweep, Limits({"event": 10**18}), 100)
        waiting = (
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
        )
        deadline = time.monotonic() + 10
        while writer.execute(waiting).fetchall() == [(0,)]:
            assert time.monotonic() < deadline
        writer.execute("SET LOCAL lock_timeout = '500ms'")
        writer.execute(locked, ("z",))  # what retention does not have yet
        writer.commit()
        assert swept.result().records == 2
    store.close()
