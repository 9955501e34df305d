"""Databases of twins and rollouts: over a file, and over PostgreSQL."""

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest

from cloud_bridge.identity.database import Database, PostgresDatabase, SqliteDatabase
from cloud_bridge.twins.database import FLEET
from tests.cloud_bridge.rollout.kit import Stage
from tests.simulators.postgres import PostgresServer

_names = itertools.count()


@pytest.fixture(params=["sqlite", "postgres"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    if request.param == "sqlite":
        opened: Database = SqliteDatabase(tmp_path / "fleet.db", FLEET)
    else:
        server: PostgresServer = request.getfixturevalue("postgres")
        opened = PostgresDatabase(server.make(f"fleet{next(_names)}"), schema=FLEET)
    yield opened
    opened.close()


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    opened = SqliteDatabase(tmp_path / "fleet.db", FLEET)
    yield Stage(opened)
    opened.close()
