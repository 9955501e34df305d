"""Drift within the running bridge: puts the watch together, with labels, baselines and what trains again."""

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager

from prometheus_client import CollectorRegistry

from cloud_bridge.config import Config
from cloud_bridge.drift.baselines import Baselines, FindManifest, directories_of
from cloud_bridge.drift.metrics import DriftMetrics
from cloud_bridge.drift.retrainer import Retrainer
from cloud_bridge.drift.watch import DriftWatch, open_database
from cloud_bridge.identity.database import Database
from cloud_bridge.identity.database import open_database as open_identities
from cloud_bridge.registry.ledger import Ledger
from cloud_bridge.store.base import Reader
from cloud_bridge.threads import run_in_thread
from cloud_bridge.twins.database import open_fleet
from cloud_bridge.twins.labels import all_labels
from gateway.wire.manifest import ModelManifest


@contextmanager
def open_watch(config: Config, reader: Reader, metrics: DriftMetrics) -> Iterator[DriftWatch]:
    """Open what watches drift, with all that it rests on; everything but the reader is closed at the end.

    Raises:
        ConfigError: a password file cannot be read.
    """
    with ExitStack() as opened:
        database, fleet = open_database(config), open_fleet(config.store)
        opened.callback(database.close)
        opened.callback(fleet.close)
        registered: FindManifest | None = None
        if config.registry is not None and config.identity is not None:
            identities = open_identities(config.store, config.identity.home())
            opened.callback(identities.close)
            registered = _Registered(identities).find
        yield DriftWatch(
            config.drift,
            database,
            reader,
            Baselines(directories_of(config), registered),
            metrics,
            labels=lambda: _labels(fleet),
            retrain=Retrainer(config, database).retrain,
        )


class DriftComponent:
    """Runs until stopped; everything is opened anew after a failure."""

    def __init__(self, config: Config, reader: Reader, registry: CollectorRegistry) -> None:
        """Prepare; nothing is opened before `run`."""
        self._config = config
        self._reader = reader
        self._metrics = DriftMetrics(registry)
        self._stopping = threading.Event()
        self._watch: DriftWatch | None = None

    def stop(self) -> None:
        """Ask `run` to return; a training that is under way is ended, and done again later."""
        self._stopping.set()
        if self._watch is not None:
            self._watch.stop()

    async def run(self) -> None:
        """Run until stopped."""
        await run_in_thread("drift", self._work, self.stop)

    def _work(self) -> None:
        with open_watch(self._config, self._reader, self._metrics) as watch:
            self._watch = watch
            if not self._stopping.is_set():
                watch.work()


class _Registered:
    """Manifests from the registry's tables, which are opened when they are asked for the first time."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._ledger: Ledger | None = None

    def find(self, name: str, version: str) -> ModelManifest | None:
        if self._ledger is None:
            self._ledger = Ledger(self._database, time.time_ns)
        entry = self._ledger.find(name, version)
        return None if entry is None else entry.manifest


def _labels(fleet: Database) -> Callable[[str], Mapping[str, str]]:
    with fleet.transaction(durable=False) as tx:
        found = all_labels(tx)
    return lambda gateway: found.get(gateway, {})
