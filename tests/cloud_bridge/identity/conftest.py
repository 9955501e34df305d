"""Desks for the tests of identities: over a file, and over PostgreSQL."""

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest

from cloud_bridge.identity.database import Database, PostgresDatabase, SqliteDatabase
from tests.cloud_bridge.identity.kit import Desk, desk_at
from tests.simulators.postgres import PostgresServer

_names = itertools.count()


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    with desk_at(tmp_path) as found:
        yield found


@pytest.fixture(params=["sqlite", "postgres"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    if request.param == "sqlite":
        opened: Database = SqliteDatabase(tmp_path / "identity.db")
    else:
        server: PostgresServer = request.getfixturevalue("postgres")
        opened = PostgresDatabase(server.make(f"identity{next(_names)}"))
    yield opened
    opened.close()
