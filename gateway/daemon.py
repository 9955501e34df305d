"""The composition root: builds every component from the configuration, and owns the only TaskGroup."""

import asyncio
import signal
import time
from collections.abc import Awaitable, Callable, Collection, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import TYPE_CHECKING
from zoneinfo import ZoneInfo

import msgspec
import structlog

from gateway import hangup, heap
from gateway.config import Config, MqttSource
from gateway.config import Pipeline as PipelineSettings
from gateway.configload import Reading
from gateway.control import Command, ControlServer, Handler, socket_path
from gateway.draining import drain
from gateway.errors import ConfigError, GatewayError, OutboxError, WeightsWithheldError
from gateway.health.metrics import Metrics
from gateway.hotplug import HotPlug
from gateway.ids import new_id
from gateway.inference.bundle import ReleaseStore
from gateway.inference.model import Model
from gateway.inference.select import BackendFailures, load_model
from gateway.leaves import Leaves, Place
from gateway.metering.opening import open_meter
from gateway.moments import happens
from gateway.moving import Mover
from gateway.notices import Notices
from gateway.osupdate.surroundings import is_wanted
from gateway.outbox.store import Outbox
from gateway.pipeline import Pipeline
from gateway.pipelinetasks import Parts as TaskParts
from gateway.pipelinetasks import PipelineTasks
from gateway.preprocess.preparation import preparation_for
from gateway.recorder import Recorder, outbox_file
from gateway.reload import Reload
from gateway.sealing import KeyWatch, SealedModels, VaultView, open_vault
from gateway.snapshots import Parts, Snapshots
from gateway.sources.base import open_source
from gateway.sources.presence import local_device
from gateway.statedir import locked_state
from gateway.supervisor import RestartPolicy, supervise
from gateway.surroundings import Nobody, Surroundings
from gateway.telling import Channels
from gateway.threads import Leave, in_thread
from gateway.uplink.announce import Announcer
from gateway.uplink.homeassistant import discovery_of
from gateway.uplink.uplink import Uplink
from gateway.values import Entry, Receipt
from gateway.version import program_version
from gateway.watchdog import Notifier, Progress
from gateway.wire.messages import RecordClass

if TYPE_CHECKING:
    from gateway.enrolment import Enrolment
    from gateway.osupdate.service import OsUpdates
    from gateway.updates import Updates

log = structlog.get_logger()

_STATUS_EVERY_SECONDS = 5.0
_LOOK_AT_OUTBOX_EVERY_SECONDS = 1.0
_REOPEN_EVERY_SECONDS = 2.0
_SAVE_USAGE_EVERY_SECONDS = 300.0
_LOOK_AT_VAULT_EVERY_SECONDS = 30.0
_SETTLES_AFTER_SECONDS = 30.0
_PATIENT = RestartPolicy(max_restarts=None, first_delay_seconds=1.0, max_delay_seconds=60.0)


class Daemon:
    """One running gateway."""

    def __init__(self, config: Config, reread: Callable[[], Reading]) -> None:
        """Open the outbox and build all components; nothing runs yet. `reread` reads the configuration again.

        Raises:
            ConfigError: a component cannot be used as configured; a vault of level `tpm` without its libraries is one.
            GatewayError: another gateway runs in the state directory.
            OutboxError: the store cannot be opened or made.
        """
        self._config = config
        self._id = config.gateway.id
        self._version = program_version()
        self._started_ns = time.monotonic_ns()
        self._state_directory = config.gateway.state_directory
        self._lock = locked_state(self._state_directory)
        self._stop = asyncio.Event()
        self._notifier = Notifier.from_environment()
        self._reload = Reload(config, reread, self._notifier.status)
        self._begins_anew = False
        self._progress = Progress()
        self._metrics = Metrics()
        self._components: dict[str, str] = {}
        self._uplink: Uplink | None = None
        self._announcer: Announcer | None = None
        self._enrolment: Enrolment | None = None
        self._vault = open_vault(config.vault, self._state_directory, now_ns=self._now_ns)
        self._loop = asyncio.get_running_loop()
        self._notices = Notices(self._submit)
        self._models = SealedModels(self._vault, self._notices.note)
        self._backend_failures = BackendFailures()
        self._keys = KeyWatch(self._notices.note)
        self._vault_view = VaultView(config.vault, self._keys)
        self._vault_changed = asyncio.Event()
        self._enrolment = self._make_enrolment()
        self._meter = open_meter(config, self._state_directory)
        self._recorder = Recorder(self._open_outbox())
        self._uplink = self._make_uplink()
        self._announcer = self._make_announcer()
        self._channels = Channels((self._announcer, self._uplink))
        self._leave_runs = {name: Leave() for name in config.pipelines}
        self._system = self._make_system_updates()
        self._updates = self._make_updates()
        self._leaves = Leaves(self._announcer.subscribe_holding) if self._announcer is not None else None
        self._pipelines = {
            name: Pipeline(name, settings, config.sources[settings.source], self._surroundings(name, settings))
            for name, settings in config.pipelines.items()
        }
        if self._updates is not None:
            self._updates.join(self._pipelines)
        mover = Mover(self._pipelines, config.pipelines, self._opened, self._exchanging)
        wanted = {name: settings.device for name, settings in config.pipelines.items()}
        self._hotplug = HotPlug(self._pipelines, wanted, mover.move)
        self._tasks = PipelineTasks(
            TaskParts(
                stop=self._stop,
                progress=self._progress,
                arrivals=lambda: self._hotplug.arrivals,
                leave=self._leave_runs,
                judge=self._updates,
                announce=self._announce_status,
                directories=[
                    *config.models.directories,
                    self._models.directory,
                    self._state_directory / "vault",
                    config.vault.policy_directory,
                ],
            )
        )
        self._snapshots = Snapshots(
            Parts(
                gateway=self._id,
                version=self._version,
                time_zone=config.gateway.time_zone,
                started_ns=self._started_ns,
                pipelines=self._pipelines,
                recorder=self._recorder,
                uplink=self._uplink,
                announcer=self._announcer,
                meter=self._meter,
                vault=self._vault_view,
                keys=self._keys,
                enrolment=self._enrolment,
                metrics=self._metrics,
                components=self._components,
            )
        )

    # ---- building --------------------------------------------------------------------------------

    def _open_outbox(self) -> Outbox:
        return Outbox.open(
            outbox_file(self._config.outbox.file, self._state_directory),
            self._config.outbox,
            on_commit=self._committed,
            gateway=self._id,
            patient=True,  # a full disk is no reason not to watch: `_keep` opens it again
        )

    def _submit(self, entries: Sequence[Entry], done: Callable[[Sequence[Receipt]], None]) -> None:
        self._recorder.submit(entries, done)

    def _committed(self, classes: Collection[RecordClass]) -> None:
        if self._uplink is not None:
            self._uplink.notify(classes)

    def _now_ns(self) -> int:
        """Return the time that leases are measured with: that of the bridge where it has told it."""
        return self._enrolment.now_ns() if self._enrolment is not None else time.time_ns()

    def _make_enrolment(self) -> "Enrolment | None":
        if self._config.identity is None:
            return None
        from gateway.enrolment import Enrolment  # noqa: PLC0415  # httpx: only where there is an identity

        return Enrolment(
            self._config,
            self._config.identity,
            self._vault,
            self._models,
            version=self._version,
            renewed=self._renewed,
            noticed=self._notices.note,
        )

    def _renewed(self) -> None:
        """Show the new certificate to the brokers; a key may have come with it."""
        for channel in (self._uplink, self._announcer):
            if channel is not None:
                channel.renewed()
        self._vault_changed.set()

    def _make_uplink(self) -> Uplink | None:
        cloud = self._config.cloud
        if not cloud.brokers:
            log.warning("no_cloud_broker", remedy="set cloud.brokers; until then records gather in the outbox")
            return None
        return Uplink(
            cloud,
            self._id,
            self._config.gateway.root,
            self._recorder,
            version=self._version,
            meter=self._meter,
            access=self._enrolment.access if self._enrolment is not None else None,
            on_conflict=self._notices.in_conflict,
        )

    def _make_system_updates(self) -> "OsUpdates | None":
        if not is_wanted(self._config):
            return None
        from gateway.osupdate.service import OsUpdates  # noqa: PLC0415  # TUF: only on an appliance
        from gateway.osupdate.service import Parts as SystemParts  # noqa: PLC0415

        return OsUpdates(
            SystemParts(
                config=self._config,
                vault=self._vault,
                meter=self._meter,
                enrolment=self._enrolment,
                registry=self._metrics.registry,
                flushed=lambda: self._uplink is None or self._recorder.empty,
                connects=lambda: self._uplink.status().connects if self._uplink is not None else 0,
                note=self._notices.note,
            )
        )

    def _make_updates(self) -> "Updates | None":
        if self._config.ota is None:
            return None
        from gateway.updates import Parts as UpdateParts  # noqa: PLC0415
        from gateway.updates import Updates  # noqa: PLC0415  # TUF: only where releases come over the air

        return Updates(
            self._config.ota,
            UpdateParts(
                config=self._config,
                vault=self._vault,
                models=self._models,
                meter=self._meter,
                uplink=self._uplink,
                enrolment=self._enrolment,
                registry=self._metrics.registry,
                load=self._opened,
                note=self._notices.note,
                system=self._system,
            ),
        )

    def _make_announcer(self) -> Announcer | None:
        local = self._config.local
        if local.broker is None:
            return None
        discovery = discovery_of(
            local.home_assistant,
            self._id,
            self._config.gateway.root,
            pipelines=self._config.pipelines,
            sources=self._config.sources,
            version=self._version,
        )
        return Announcer(
            local.broker,
            self._id,
            self._config.gateway.root,
            version=self._version,
            discovery=discovery,
            access=self._enrolment.access if self._enrolment is not None else None,
            session_expiry_seconds=local.session_expiry_seconds if self._leaf_pipelines() else 0,
        )

    def _leaf_pipelines(self) -> int:
        """How many pipelines listen to leaf sensors."""
        settings = self._config.pipelines.values()
        return sum(isinstance(self._config.sources[each.source], MqttSource) for each in settings)

    def _surroundings(self, name: str, settings: PipelineSettings) -> Surroundings:
        source = self._config.sources[settings.source]
        place: Place | None = None
        if self._leaves is not None and isinstance(source, MqttSource):
            place = self._leaves.place(name, source.topic)
        return Surroundings(
            gateway=self._id,
            time_zone=ZoneInfo(self._config.gateway.time_zone),
            open_source=partial(open_source, settings.source, source, subscribe=place.subscribe if place else None),
            load_model=partial(self._load_model, name, settings),
            submit=self._recorder.submit,
            publish=self._channels.publish,
            instruments=self._metrics,
            new_id=new_id,
            wall_ns=time.time_ns,
            monotonic_ns=time.monotonic_ns,
            wants_pictures=self._wants_pictures,
            may_keep=self._may_keep,
            renew=place.renew if place else lambda: None,
            max_held=self._announcer.max_held // self._leaf_pipelines() if place and self._announcer else 0,
            spectator=self._updates.watch(name, settings) if self._updates is not None else Nobody(),
            leave=self._leave_runs[name],
            device=local_device(source),
        )

    def _wants_pictures(self) -> bool:
        """Tell whether pictures are wanted as evidence: not where the bridge has switched them off."""
        return self._updates is None or self._updates.has("snapshots")

    def _may_keep(self, size_bytes: int) -> bool:
        """Tell whether a picture is worth a place in the outbox: not where the link's budget cannot carry it."""
        if self._config.metering.snapshots_beyond_budget == "wait":
            return True
        room = self._meter.room("snapshots", "bulk")
        return room is None or self._recorder.stats().classes["bulk"].disk_bytes + size_bytes <= room

    def _load_model(self, name: str, settings: PipelineSettings) -> Model:
        if self._updates is not None:
            settings = self._updates.begins(name, settings)
        try:
            model = self._opened(settings)
        except WeightsWithheldError as error:
            self._keys.withheld(name, str(error))
            raise
        self._keys.given(name)
        self._loop.call_soon_threadsafe(self._vault_changed.set)
        self._metrics.released(name, model.manifest.released_at)
        return model

    def _opened(self, settings: PipelineSettings) -> Model:
        releases = ReleaseStore(self._config.models.directories, sealed=self._models.directory)
        return load_model(releases, settings, preparation_for, self._models.open, failures=self._backend_failures)

    def _exchanging(self, name: str) -> AbstractContextManager[object]:
        return self._updates.exchanging(name) if self._updates is not None else nullcontext()

    # ---- running ---------------------------------------------------------------------------------

    async def run(self) -> bool:
        """Run until told to stop; then let the outbox drain for a while. True: begin anew at once instead."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._end)
        hangup.listen(loop, self._reload.ask)
        control = ControlServer(socket_path(self._config.gateway), self._requests(), self._commands())
        drained = False
        heap.settle()  # before a pipeline runs, for it would be held up
        async with asyncio.TaskGroup() as group:

            def start(name: str, run: Callable[[], Awaitable[None]]) -> asyncio.Task[None]:
                return group.create_task(self._supervised(name, run), name=name)

            services = [
                start("control", control.run),
                start("keeper", self._keep),
                start("outbox-keeper", self._keep_outbox),
                start("usage", self._keep_usage),
                start("metrics", self._serve),
                start("vault", self._watch_vault),
                start("hotplug", self._hotplug.run),
                start("reload", self._reload_on_request),
                start("heap", self._settle),
            ]
            if self._enrolment is not None:
                services.append(start("identity", self._enrolment.run))
            if self._uplink is not None:
                services.append(start("uplink", self._uplink.run))
            updates = []
            if self._updates is not None:
                updates.append(start("updates", self._updates.run))
            if self._system is not None:
                updates.append(start("system-updates", self._system.run))
            if self._announcer is not None:
                services.append(start("announcer", self._announcer.run))
            workers = [
                start(f"pipeline-{name}", partial(self._tasks.run, pipeline))
                for name, pipeline in self._pipelines.items()
            ]
            log.info("gateway_started", gateway=self._id, version=self._version, pipelines=len(workers))
            self._notifier.ready(f"{len(workers)} pipelines")
            await self._stop.wait()
            log.info("gateway_stopping")
            if self._begins_anew:
                self._notifier.reloading()
            else:
                self._notifier.stopping()
            for pipeline in self._pipelines.values():
                pipeline.stop()
            late = (await asyncio.wait(workers, timeout=10.0))[1] if workers else ()
            for task in late:
                log.warning("pipeline_hangs", task=task.get_name())
                task.cancel()
            for task in updates:  # what they note while the outbox drains would stay behind
                task.cancel()
            if updates:
                await asyncio.wait(updates, timeout=10.0)
            await self._notices.settled(5.0)
            if self._uplink is not None and not self._begins_anew:
                drained = await drain(self._recorder, self._meter, self._config.cloud.drain_seconds)
            self._announce_status()
            await asyncio.sleep(0)
            for task in services:
                task.cancel()
        drained = drained and self._recorder.empty
        await in_thread("outbox-close", self._recorder.close)
        await in_thread("meter-close", self._meter.close)
        self._snapshots.write_last_run(self._state_directory / "last-run.json", drained=drained)
        log.info("gateway_stopped", drained=drained, begins_anew=self._begins_anew)
        return self._begins_anew

    def _end(self) -> None:
        """Stop for good, also where it was about to begin anew."""
        self._begins_anew = False
        self._stop.set()

    async def _reload_on_request(self) -> None:
        """Stop, to begin anew, once there is another configuration that can be used."""
        await self._reload.changed()
        hangup.hold()
        self._begins_anew = True
        self._stop.set()

    def _requests(self) -> dict[str, Handler]:
        """Return what may be asked over the control socket."""
        requests: dict[str, Handler] = {"status": self._snapshots.status}
        enrolment = self._enrolment
        if enrolment is not None:

            def renew() -> dict[str, object]:
                enrolment.renew_now()
                return {}

            requests |= {"identity": lambda: msgspec.to_builtins(enrolment.status()), "renew-identity": renew}
        for part in (self._updates, self._system):
            requests |= part.handlers() if part is not None else {}
        return requests

    def _commands(self) -> dict[str, Command]:
        """Return what may be told over the control socket."""
        commands: dict[str, Command] = {}
        for part in (self._updates, self._system):
            commands |= part.commands() if part is not None else {}
        return commands

    async def _supervised(self, name: str, run: Callable[[], Awaitable[None]]) -> None:
        def failed(error: BaseException) -> None:
            words = str(error) if isinstance(error, GatewayError) else f"{type(error).__name__}: {error}"
            self._components[name] = words

        async def attempt() -> None:
            well = asyncio.get_running_loop().call_later(_PATIENT.well_after_seconds, self._components.pop, name, None)
            try:
                await run()
            finally:
                well.cancel()

        of_pipeline = name.startswith("pipeline-")
        tasks = self._tasks
        pause = partial(tasks.pause_for_model, name.removeprefix("pipeline-")) if of_pipeline else tasks.pause
        await supervise(name, attempt, _PATIENT, time.monotonic, pause, on_failure=failed)
        self._components.pop(name, None)

    async def _watch_vault(self) -> None:
        """Look at the vault now and then, and after it may have changed, until cancelled."""
        while True:
            self._vault_changed.clear()
            self._vault_view.take(await in_thread("vault", self._models.look))
            await happens(self._vault_changed, _LOOK_AT_VAULT_EVERY_SECONDS)

    async def _settle(self) -> None:
        """Once more when the models are loaded, and with them their run-times."""
        await asyncio.sleep(_SETTLES_AFTER_SECONDS)
        heap.settle()

    async def _serve(self) -> None:
        """Serve the metrics until cancelled."""
        if not self._config.metrics.enabled:
            return
        with self._metrics.serve(self._config.metrics, lambda: [*self._progress.late()]):
            await asyncio.Event().wait()

    async def _keep(self) -> None:
        """Look after what has no thread of its own, and never wait for the disk: status messages, the watchdog."""
        told_at = 0.0
        while True:
            for name, pipeline in self._pipelines.items():
                self._progress.stamp(f"pipeline-{name}", pipeline.progress_ns / 1e9)
            self._notifier.watchdog(self._progress)
            now = time.monotonic()
            if now - told_at >= _STATUS_EVERY_SECONDS:
                told_at = now
                self._announce_status()
                self._snapshots.observe()
            await asyncio.sleep(1.0)

    async def _keep_outbox(self) -> None:
        """Open the outbox again when its disk has failed; a disk that hangs holds up this task alone."""
        while True:
            if self._recorder.failed:
                await self._reopen()
            await asyncio.sleep(_LOOK_AT_OUTBOX_EVERY_SECONDS)

    async def _reopen(self) -> None:
        try:
            await in_thread("outbox-reopen", self._recorder.reopen)
            self._components.pop("outbox", None)
        except (ConfigError, OutboxError) as error:
            self._components["outbox"] = str(error)
            await asyncio.sleep(_REOPEN_EVERY_SECONDS)

    async def _keep_usage(self) -> None:
        """Write down now and then what the link has cost."""
        while True:
            await asyncio.sleep(_SAVE_USAGE_EVERY_SECONDS)
            await in_thread("meter-save", self._meter.save)

    def _announce_status(self) -> None:
        self._channels.publish_status(pipeline.status() for pipeline in self._pipelines.values())
