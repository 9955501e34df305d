"""Stores for the tests of the cloud side."""

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cloud_bridge.store.base import Store
from cloud_bridge.store.postgres import PostgresStore
from cloud_bridge.store.sqlite import SqliteStore
from tests.simulators.postgres import PostgresServer, binaries

_names = itertools.count()


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    found = binaries()
    if found is None:
        pytest.skip("PostgreSQL is not installed: apt-get install postgresql")
    with PostgresServer(found) as server:
        yield server


@pytest.fixture(params=["sqlite", "postgres"])
def make_store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[[], Store]]:
    """Opens the same store as often as it is called; all are closed at the end."""
    opened: list[Store] = []
    if request.param == "sqlite":

        def make() -> Store:
            for store in opened:
                store.close()
            return SqliteStore(tmp_path / "bridge.db")
    else:
        server: PostgresServer = request.getfixturevalue("postgres")
        url = server.make(f"bridge{next(_names)}")

        def make() -> Store:
            return PostgresStore(url, whole_months=False)

    def keep() -> Store:
        opened.append(make())
        return opened[-1]

    yield keep
    for store in opened:
        store.close()


@pytest.fixture
def store(make_store: Callable[[], Store]) -> Store:
    return make_store()
