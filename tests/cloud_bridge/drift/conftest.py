"""A watch over a store, with a clock that tests set."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from cloud_bridge.config import Drift
from cloud_bridge.drift import book
from cloud_bridge.drift.baselines import SHIPPED, Baselines
from cloud_bridge.drift.book import DriftEvent, Finding, Proposal
from cloud_bridge.drift.metrics import DriftMetrics
from cloud_bridge.drift.schema import DRIFT
from cloud_bridge.drift.watch import DriftWatch
from cloud_bridge.identity.database import Database, SqliteDatabase
from cloud_bridge.store.base import Store

START_NS = 1_800_000_000 * 1_000_000_000
HOUR = 3600


@dataclass
class Bench:
    """A watch with what it rests on."""

    store: Store
    database: Database
    settings: Drift
    releases: list[Path] = field(default_factory=lambda: [SHIPPED])
    labels: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    now_ns: int = START_NS
    retrained: list[Proposal] = field(default_factory=list)

    def watch(self) -> DriftWatch:
        """Make one, as a bridge that starts does."""
        return DriftWatch(
            self.settings,
            self.database,
            self.store,
            Baselines(self.releases),
            DriftMetrics(CollectorRegistry()),
            labels=lambda: lambda gateway: self.labels.get(gateway, {}),
            retrain=lambda proposal, _stopping: self.retrained.append(proposal),
            wall_ns=lambda: self.now_ns,
        )

    def findings(self) -> dict[tuple[str, str, str], Finding]:
        """By subject, statistic and basis."""
        with self.database.transaction() as tx:
            return {(key.subject, key.statistic, key.basis): one for key, one in book.findings(tx).items()}

    def events(self) -> list[DriftEvent]:
        with self.database.transaction() as tx:
            return book.events(tx, limit=10_000)[::-1]

    def proposals(self) -> list[Proposal]:
        with self.database.transaction() as tx:
            return book.proposals(tx)


@pytest.fixture
def make_bench(store: Store, tmp_path: Path) -> Iterator[Callable[..., Bench]]:
    databases: list[Database] = []

    def make(**settings: object) -> Bench:
        databases.append(SqliteDatabase(tmp_path / f"drift{len(databases)}.db", DRIFT))
        values = {"window_hours": 1.0, "every_seconds": 1.0, **settings}
        return Bench(store, databases[-1], Drift(**values))  # type: ignore[arg-type]  # as the tests give them

    yield make
    for database in databases:
        database.close()
