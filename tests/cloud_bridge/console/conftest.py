"""Fixtures of the console's tests."""

from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from cloud_bridge.config import Rollout as Defaults
from cloud_bridge.console.app import create_app
from cloud_bridge.console.settings import ConsoleSettings
from cloud_bridge.drift import book
from cloud_bridge.drift.book import Finding, FindingKey
from cloud_bridge.drift.judging import Standing
from cloud_bridge.drift.schema import DRIFT
from cloud_bridge.drift.statistics import Comparison
from cloud_bridge.errors import StoreError
from cloud_bridge.identity.database import Database, SqliteDatabase, Transaction
from cloud_bridge.rollout.records import Rollout, add_rollout
from cloud_bridge.rollout.releases import Release
from cloud_bridge.rollout.service import RolloutDesk, plan_from
from cloud_bridge.rollout.waves import waves_of
from cloud_bridge.twins.database import FLEET
from tests.simulators.bridge_data import BridgeData, a_fleet
from tests.simulators.fleet_store import FleetStore


def metrics_text() -> bytes:
    """Stand in for the registry of the bridge."""
    return b"# HELP sluice_bridge_records_total Records.\n"


@pytest.fixture
def data() -> BridgeData:
    """Two gateways with a little of everything."""
    return a_fleet()


class Breakable:
    """A database that cannot be read while the store cannot."""

    def __init__(self, database: Database, data: BridgeData) -> None:
        self._database = database
        self._data = data

    @contextmanager
    def transaction(self, *, durable: bool = True) -> Iterator[Transaction]:
        if self._data.failing:
            raise StoreError("away")
        with self._database.transaction(durable=durable) as tx:
            yield tx

    def close(self) -> None:
        self._database.close()


@pytest.fixture
def rollouts(data: BridgeData, tmp_path: Path) -> Iterator[RolloutDesk]:
    """The rollouts of a bridge: one, with the id `a1b2c3`, that waits."""
    database = Breakable(SqliteDatabase(tmp_path / "fleet.db", FLEET), data)
    release = Release("detector", "1.1.0")
    plan = plan_from(Defaults(), pipeline="camera", release=release, waves=waves_of("1, rest"))
    with database.transaction() as tx:
        add_rollout(tx, Rollout("a1b2c3", 1, 1, "running", "4 devices have the pipeline", 1, plan), "operator")
    yield RolloutDesk(database, FleetStore(), lambda: 2)
    database.close()


@pytest.fixture
def drift(data: BridgeData, tmp_path: Path) -> Iterator[Database]:
    """What a bridge knows of drift: an alarm, and what is proposed."""
    database = Breakable(SqliteDatabase(tmp_path / "drift.db", DRIFT), data)
    compared = Comparison(0.4, 0.3, 1e-9, 0.3, 1e-9, 5000, 400.0)
    with database.transaction() as tx:
        for subject, level in (("plant-a/motor", "alarm"), ("plant-b/motor", "ok")):
            key = FindingKey("vibration", "1.0.0", "device", subject, "rms", "shape")
            book.put_findings(tx, [Finding(key, Standing(level, 5), 7, compared)])  # type: ignore[arg-type]  # a level
            book.note(tx, key, level, "as it is", 7)
        book.propose(tx, "vibration", "1.0.0", "it drifts", 8)
    yield database
    database.close()


@pytest.fixture
async def client(data: BridgeData, rollouts: RolloutDesk, drift: Database) -> AsyncIterator[httpx.AsyncClient]:
    """The console on loopback without a token, of a bridge with everything."""
    app = create_app(data, ConsoleSettings(), metrics_text, rollouts=rollouts, drift=drift)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://127.0.0.1:8470") as client:
        yield client
