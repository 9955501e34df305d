"""Databases of twins: over a file, and over PostgreSQL."""

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest

from cloud_bridge.identity.database import Database, PostgresDatabase, SqliteDatabase
from cloud_bridge.twins.database import FLEET
from tests.simulators.postgres import PostgresServer

_names = itertools.count()


@pytest.fixture(params=["sqlite", "postgres"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    if request.param == "sqlite":
        opened: Database = SqliteDatabase(tmp_path / "fleet.db", FLEET)
    else:
        server: PostgresServer = request.getfixturevalue("postgres")
        opened = PostgresDatabase(server.make(f"twins{next(_names)}"), schema=FLEET)
    yield opened
    opened.close()
