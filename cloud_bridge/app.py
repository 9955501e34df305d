"""The composition root: makes the parts, runs them under supervision, and stops them in order."""

import asyncio
import contextlib
import signal
import socket
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Final, Protocol

import structlog
from prometheus_client import generate_latest, make_asgi_app
from starlette.types import ASGIApp

from cloud_bridge.config import Config
from cloud_bridge.console.app import create_app
from cloud_bridge.console.settings import ConsoleSettings
from cloud_bridge.control import ControlServer
from cloud_bridge.drift.component import DriftComponent
from cloud_bridge.drift.watch import open_database as open_drift
from cloud_bridge.errors import BridgeError, ConfigError, GaveUpError
from cloud_bridge.identity.component import IdentityComponent
from cloud_bridge.identity.database import Database
from cloud_bridge.ingest.claim import StoreClaim
from cloud_bridge.ingest.consumer import Consumer, Link
from cloud_bridge.ingest.marks import PublishedMarks
from cloud_bridge.ingest.retained import RetainedMarks
from cloud_bridge.ingest.worker import Worker
from cloud_bridge.metrics import Metrics
from cloud_bridge.notify import Notifier
from cloud_bridge.registry.component import RegistryComponent
from cloud_bridge.registry.over_mqtt import PartMetrics, PartServer
from cloud_bridge.registry.storage import Storage
from cloud_bridge.retention import Retention
from cloud_bridge.rollout.component import RolloutComponent
from cloud_bridge.rollout.registered import open_releases, open_revoked
from cloud_bridge.rollout.service import RolloutDesk
from cloud_bridge.serving import HttpServer
from cloud_bridge.store.base import Store
from cloud_bridge.store.opening import open_store, password_of, sqlite_path
from cloud_bridge.supervisor import RestartPolicy, supervise
from cloud_bridge.threads import run_in_thread
from cloud_bridge.twins.database import open_fleet

log = structlog.get_logger()

_FOR_EVER: Final = RestartPolicy(max_restarts=None)
_STALLED_NS: Final = 30 * 1_000_000_000
"""A worker whose loop has not turned for so long is stuck: the watchdog is not fed any more."""


class Component(Protocol):
    """Something that runs until it is asked to stop."""

    def stop(self) -> None: ...
    async def run(self) -> None: ...


@dataclass(slots=True)
class Ingest:
    """One connection to a broker with its worker; both are made anew after a failure."""

    link: Link
    config: Config
    store: Store
    metrics: Metrics
    marks: PublishedMarks
    claim: StoreClaim
    stopping: bool = False
    worker: Worker | None = field(default=None)

    def stop(self) -> None:
        """Finish the batch in hand, acknowledge it, disconnect."""
        self.stopping = True
        if self.worker is not None:
            self.worker.stop()

    async def run(self) -> None:
        """Run until stopped."""
        if self.stopping:
            return
        consumer = Consumer(self.link, self.config.ingest, self.metrics, claim=self.claim)
        retained = RetainedMarks(consumer, self.store, self.marks, root=self.config.ingest.root)
        self.worker = worker = Worker(
            consumer, self.store, self.config.ingest, self.metrics, self.marks, look=retained.turn
        )

        def work() -> None:
            try:
                consumer.start()
                worker.run()
            finally:
                consumer.stop()

        await run_in_thread(self.link.client_id, work, worker.stop)

    def stalled(self, now_ns: int) -> bool:
        """Tell whether the worker's loop has stopped turning."""
        return self.worker is not None and now_ns - self.worker.progress_ns > _STALLED_NS


class Bridge:
    """The whole program."""

    def __init__(self, config: Config, environment: Mapping[str, str], *, take_over: bool = False) -> None:
        """Make the parts. With `take_over`, records are taken even from a bridge with an older store.

        Raises:
            ConfigError: the configuration cannot be used.
            StoreInUseError: another process writes to the store.
            StoreError: the directory of the store cannot be used.
        """
        if not config.brokers:
            raise ConfigError("no broker is given: add `brokers:` to the configuration, or --broker mqtt://HOST:PORT")
        self._config = config
        self._take_over = take_over
        self._metrics = Metrics()
        self._notifier = Notifier(environment)
        self._store = open_store(config.store, whole_months=config.retention.postgres == "month")
        self._stop = asyncio.Event()
        self._fleet: Database | None = None
        self._drift: Database | None = None
        try:
            self._ingests = self._make_ingests()
            self._components: list[tuple[str, Component]] = [(i.link.client_id, i) for i in self._ingests]
            self._retention = Retention(self._store, config.retention, self._metrics, config.rollups)
            self._add_servers()
        except BaseException:
            self._store.close()
            raise

    def stop(self) -> None:
        """Ask `run` to return."""
        self._stop.set()

    async def run(self) -> None:
        """Run until stopped.

        Raises:
            GaveUpError: a component failed too often.
        """
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.stop)
        await asyncio.to_thread(self._open_store)
        self._retention.start()
        try:
            async with asyncio.TaskGroup() as tasks:
                for name, component in self._components:
                    tasks.create_task(self._supervised(name, component.run), name=name)
                tasks.create_task(self._watch(), name="watchdog")
                log.info("bridge_started", brokers=len(self._config.brokers), workers=len(self._ingests))
                self._notifier.tell("READY=1")
                await self._stop.wait()
                self._notifier.tell("STOPPING=1")
                for _, component in self._components:
                    component.stop()
        except* GaveUpError as group:
            raise group.exceptions[0] from None
        finally:
            await asyncio.to_thread(self._retention.stop)
            await asyncio.to_thread(self._store.close)
            for database in (self._fleet, self._drift):
                if database is not None:
                    await asyncio.to_thread(database.close)
            log.info("bridge_stopped")

    def _open_store(self) -> None:
        """Open the store now, so that trouble shows at once; it is no reason not to start."""
        try:
            self._store.open()
        except BridgeError as error:
            log.error("store_not_there_yet", error=str(error))

    async def _supervised(self, name: str, run: Callable[[], Awaitable[None]]) -> None:
        def count(component: str) -> None:
            self._metrics.component_failures.labels(component).inc()

        await supervise(name, run, _FOR_EVER, time.monotonic, sleep=self._rest, on_failure=count)

    async def _rest(self, seconds: float) -> None:
        """Sleep, but not when there is no time left."""
        # Not `wait_for`: in Python 3.11 it loses a cancellation that comes in the same turn as the event.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._stop.wait()

    async def _watch(self) -> None:
        """Feed the watchdog while every worker makes progress."""
        every = (self._notifier.watchdog_seconds or 20.0) / 2
        told = False
        while not self._stop.is_set():
            stalled = [i.link.client_id for i in self._ingests if i.stalled(time.monotonic_ns())]
            if not stalled:
                self._notifier.tell("WATCHDOG=1")
            elif not told:
                log.error("worker_stalled", workers=stalled)
            told = bool(stalled)
            await self._rest(every)

    def _make_ingests(self) -> list[Ingest]:
        config = self._config
        name = self._client_id
        marks = PublishedMarks()
        ingests = []
        for at, broker in enumerate(config.brokers):
            password = password_of(broker.password_file)
            for number in range(config.ingest.workers):
                client_id = name if (at, number) == (0, 0) else f"{name}-{at}-{number}"
                link = Link(client_id, broker, password, watches_fleet=number == 0)
                Consumer(link, config.ingest, self._metrics)  # so that a mistake shows now, and ends the program
                claim = StoreClaim(
                    self._store_id,
                    client_id,
                    patience_seconds=config.ingest.older_store_seconds,
                    take_over=self._take_over,
                )
                ingests.append(Ingest(link, config, self._store, self._metrics, marks, claim))
        return ingests

    def _store_id(self) -> str | None:
        try:
            return self._store.identity()
        except BridgeError:
            return None

    def _add_servers(self) -> None:
        console, metrics = self._config.console, self._config.metrics
        path = sqlite_path(self._config.store.url)
        if path is not None:
            control = ControlServer(path.parent, self._store, self._config.ingest.root)
            self._components.append(("control", control))
        if console.enabled:
            app = create_app(
                self._store,
                ConsoleSettings(console.host, console.token_file, tuple(console.host_names)),
                lambda: generate_latest(self._metrics.registry) if metrics.enabled else b"",
                is_closing=self._stop.is_set,
                rollouts=self._rollout_desk(),
                drift=self._drift_book(),
            )
            self._components.append(("console", _Http("console", app, console.host, console.port)))
        if metrics.enabled and metrics.port is not None:
            text: ASGIApp = make_asgi_app(self._metrics.registry)
            self._components.append(("metrics", _Http("metrics", text, metrics.host, metrics.port)))
        if self._config.identity is not None:
            identity = IdentityComponent(self._config, self._metrics.registry, time.time_ns)
            self._components.append(("identity", identity))
        if self._config.drift.enabled:
            drift = DriftComponent(self._config, self._store, self._metrics.registry)
            self._components.append(("drift", drift))
        if self._config.gives_rollouts:
            rollouts = RolloutComponent(
                self._config,
                self._store,
                self._metrics,
                client_id=self._client_id,
                releases=open_releases(self._config),
                revoked=open_revoked(self._config),
            )
            self._components.append(("rollouts", rollouts))
        if self._config.registry is not None:
            registry = RegistryComponent(self._config, self._metrics.registry, time.time_ns)
            self._components.append(("registry", registry))
            if self._config.registry.over_mqtt:
                self._add_part_servers(Storage(self._config.registry.url))

    def _add_part_servers(self, files: Storage) -> None:
        """Answer devices that reach nothing but a broker, on each of them."""
        parts = PartMetrics(self._metrics.registry)
        for at, broker in enumerate(self._config.brokers):
            name = f"{self._client_id}-ota-{at}"
            link = Link(name, broker, password_of(broker.password_file), watches_fleet=False)
            self._components.append((name, PartServer(link, self._config.ingest, files, self._metrics, parts)))

    def _drift_book(self) -> Database | None:
        if not self._config.drift.enabled:
            return None
        self._drift = open_drift(self._config)
        return self._drift

    def _rollout_desk(self) -> RolloutDesk | None:
        if not self._config.gives_rollouts:
            return None
        self._fleet = open_fleet(self._config.store)
        revoked = open_revoked(self._config)
        return RolloutDesk(self._fleet, self._store, time.time_ns, open_releases(self._config), revoked)

    @property
    def _client_id(self) -> str:
        return self._config.ingest.client_id or f"sluice-bridge-{socket.gethostname()}"[:100]


class _Http:
    """An HTTP server that is made anew after a failure."""

    def __init__(self, name: str, app: ASGIApp, host: str, port: int) -> None:
        self._where = (name, app, host, port)
        self._server: HttpServer | None = None
        self._stopping = False

    def stop(self) -> None:
        self._stopping = True
        if self._server is not None:
            self._server.stop()

    async def run(self) -> None:
        if not self._stopping:
            self._server = HttpServer(*self._where)
            await self._server.run()


def run(config: Config, environment: Mapping[str, str], *, take_over: bool = False) -> None:
    """Run the bridge until SIGTERM or SIGINT. Raises what Bridge raises."""

    async def main() -> None:
        await Bridge(config, environment, take_over=take_over).run()

    asyncio.run(main())
