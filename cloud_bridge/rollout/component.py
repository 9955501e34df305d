"""Rollouts within the running bridge: one thread that moves them on, one for the twins at each broker."""

import asyncio
import threading
import time
from collections.abc import Callable, Collection, Sequence
from typing import Final

from cloud_bridge.config import Config
from cloud_bridge.identity.database import Database
from cloud_bridge.ingest.consumer import Consumer, Link
from cloud_bridge.metrics import Metrics
from cloud_bridge.rollout.campaign import BridgeStore, Campaign
from cloud_bridge.rollout.metrics import RolloutMetrics
from cloud_bridge.rollout.releases import Releases
from cloud_bridge.store.opening import password_of
from cloud_bridge.threads import run_in_thread
from cloud_bridge.twins.database import open_fleet
from cloud_bridge.twins.link import TwinLink
from cloud_bridge.twins.metrics import TwinMetrics
from gateway.wire.topics import filter_for

_SUFFIX: Final = "twins"


class RolloutComponent:
    """Runs until stopped; made anew inside after a failure."""

    def __init__(
        self,
        config: Config,
        store: BridgeStore,
        metrics: Metrics,
        *,
        client_id: str,
        releases: Releases | None = None,
        revoked: Callable[[], Collection[str]] = tuple,
    ) -> None:
        """Prepare; nothing is connected before `run`.

        Raises:
            ConfigError: a broker's settings cannot be used.
        """
        self._config = config
        self._store = store
        self._metrics = metrics
        self._releases = releases
        self._revoked = revoked
        self._rollout_metrics = RolloutMetrics(metrics.registry)
        self._twin_metrics = TwinMetrics(metrics.registry)
        self._links = links_of(config, client_id)
        self._stopping = threading.Event()

    def stop(self) -> None:
        """Ask `run` to return."""
        self._stopping.set()

    async def run(self) -> None:
        """Run until stopped.

        Raises:
            BridgeError: a link died; run again.
        """
        if self._stopping.is_set():
            return
        database = open_fleet(self._config.store)
        halt = threading.Event()  # of this run: one thread that fails ends the others
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(
                    run_in_thread("rollouts", lambda: self._campaign(database, halt), halt.set), name="rollouts"
                )
                for link in self._links:
                    tasks.create_task(self._twins(link, database, halt), name=link.client_id)
        finally:
            await asyncio.to_thread(database.close)

    def _campaign(self, database: Database, halt: threading.Event) -> None:
        campaign = Campaign(
            database,
            self._store,
            self._rollout_metrics,
            past_hours=self._config.rollout.past_hours,
            releases=self._releases,
            revoked=self._revoked,
        )
        while not self._ends(halt):
            campaign.tick()
            self._rest(halt, self._config.rollout.every_seconds)

    async def _twins(self, link: Link, database: Database, halt: threading.Event) -> None:
        consumer = Consumer(link, self._config.ingest, self._metrics)
        twins = TwinLink(
            consumer,
            database,
            self._twin_metrics,
            root=self._config.ingest.root,
            twins_per_second=self._config.rollout.twins_per_second,
        )

        def work() -> None:
            try:
                consumer.start()
                while not self._ends(halt):
                    self._rest(halt, twins.turn())
            finally:
                consumer.stop()

        await run_in_thread(link.client_id, work, halt.set)

    def _ends(self, halt: threading.Event) -> bool:
        return halt.is_set() or self._stopping.is_set()

    def _rest(self, halt: threading.Event, seconds: float) -> None:
        until = time.monotonic() + seconds
        while not self._ends(halt) and (left := until - time.monotonic()) > 0:
            self._stopping.wait(min(left, 0.25))


def links_of(config: Config, client_id: str) -> Sequence[Link]:
    """Return who this bridge is to its brokers when it speaks of twins.

    Raises:
        ConfigError: a password file cannot be read, or a broker's settings cannot be used.
    """
    only = (filter_for("twin", name="reported", root=config.ingest.root),)
    links = []
    for at, broker in enumerate(config.brokers):
        name = f"{client_id}-{_SUFFIX}" if at == 0 else f"{client_id}-{at}-{_SUFFIX}"
        links.append(Link(name, broker, password_of(broker.password_file), watches_fleet=False, only=only))
    return links
