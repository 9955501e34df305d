"""Updates of models in the running gateway: joins the agent with pipelines, vault, link, meter and identity."""

import asyncio
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec
import structlog

from gateway.config import Config, Ota
from gateway.config import Pipeline as PipelineSettings
from gateway.errors import AcceleratorLostError, ConfigError, ModelAwaitedError, OutboxError, WeightsWithheldError
from gateway.inference.bundle import ReleaseStore
from gateway.inference.model import Model
from gateway.metering.meter import Meter
from gateway.osupdate.surroundings import boot_id
from gateway.ota.agent import OtaAgent
from gateway.ota.around import Around, Severity, System
from gateway.ota.bay import Bay, Host
from gateway.ota.effective import came_over_the_air
from gateway.ota.errors import OtaError
from gateway.ota.features import Capability
from gateway.ota.fetch import Repository
from gateway.ota.figures import OtaMetrics
from gateway.ota.floor import open_floor
from gateway.ota.footing import open_journal
from gateway.ota.install import Installer
from gateway.ota.journal import JournalError, installed_from
from gateway.ota.watch import Watch
from gateway.ota.ways_open import open_way
from gateway.sealing import SealedModels
from gateway.uplink.exchange import Incoming, Outgoing
from gateway.uplink.uplink import Uplink
from gateway.vault.vault import Vault
from gateway.wire.topics import Address, filter_for, topic_for

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

    from gateway.control import Command, Handler
    from gateway.enrolment import Enrolment

log = structlog.get_logger()

_NO_FAULT_OF_A_MODEL = (
    AcceleratorLostError,
    ConfigError,
    JournalError,
    ModelAwaitedError,
    OutboxError,
    WeightsWithheldError,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """What updates are joined with."""

    config: Config
    vault: Vault
    models: SealedModels
    meter: Meter
    uplink: Uplink | None
    enrolment: "Enrolment | None"
    registry: "CollectorRegistry"
    load: Callable[[PipelineSettings], Model]
    note: Callable[[str, Severity, str], None]  # from any thread
    system: System | None = None  # updates of the system itself, where there are any


class Updates:
    """The updates of one gateway. Made on the event loop."""

    def __init__(self, settings: Ota, parts: Parts) -> None:
        """Read the journal; nothing is asked yet.

        Raises:
            ConfigError: the section `ota` cannot be used.
            JournalError, StorageError: the state directory cannot be used.
        """
        config, enrolment = parts.config, parts.enrolment
        state = config.gateway.state_directory
        self._parts = parts
        self._loop = asyncio.get_running_loop()
        self._topic = topic_for(Address(config.gateway.id, "twin", "reported"), config.gateway.root)
        self._wish = filter_for("twin", gateway=config.gateway.id, name="desired", root=config.gateway.root)
        way = open_way(
            settings,
            monotonic_ns=time.monotonic_ns,
            identity=enrolment.tls_context if enrolment is not None else None,
            exchange=parts.uplink.parts if parts.uplink is not None else None,
        )
        now_ns = enrolment.now_ns if enrolment is not None else time.time_ns
        floor = open_floor(parts.vault, state, has_identity=config.identity is not None)
        repository = Repository(
            settings,
            state,
            way,
            meter=parts.meter,
            now_ns=now_ns,
            monotonic_ns=time.monotonic_ns,
            floor=floor,
        )
        self._agent = OtaAgent(
            settings,
            open_journal(state, came_over_the_air(self._store()), floor, now_ns()),
            repository,
            Installer(
                parts.vault,
                repository,
                state / "ota",
                allowance=lambda: parts.meter.allowance("model_downloads"),
                is_closed=lambda: (hold := parts.meter.hold("model_downloads")) is not None and hold.reason == "window",
            ),
            Around(
                there=self._there,
                report=self._report,
                connects=lambda: parts.uplink.status().connects if parts.uplink is not None else 0,
                renew=self._renew,
                note=parts.note,
                metrics=OtaMetrics(parts.registry),
                attested=lambda: enrolment.status().renewals if enrolment is not None else None,
                system=parts.system,
                boot_id=boot_id(),
                known_ns=now_ns,
            ),
            floor=floor,
        )
        self._bays: dict[str, Bay] = {}
        if parts.uplink is not None:
            parts.uplink.follow(self._wish, self._desired)

    def watch(self, name: str, settings: PipelineSettings) -> Watch:
        """Prepare for a pipeline; returns its spectator."""
        watch = Watch()

        def load(label: str) -> Model:
            return self._parts.load(msgspec.structs.replace(settings, model=label))

        self._bays[name] = Bay(settings, load, watch)
        self._agent.add(name, self._bays[name])
        return watch

    def join(self, pipelines: Mapping[str, Host]) -> None:
        """Take the pipelines, once they are made."""
        for name, pipeline in pipelines.items():
            self._bays[name].host = pipeline

    def begins(self, name: str, settings: PipelineSettings) -> PipelineSettings:
        """Return the settings with which a run of a pipeline begins: with the release that counts now.

        Raises:
            ModelAwaitedError: there is none that it may run; a release that comes over the air ends that.
        """
        label = self._agent.run_begins(name)
        awaited = self._agent.awaited(name)
        if awaited is not None:
            raise awaited
        return msgspec.structs.replace(settings, model=label)

    def beckons(self, name: str) -> int:
        """Count how often a pipeline that does not run was told to look for its release at once."""
        return self._bays[name].beckons

    def ended(self, name: str, error: BaseException | None) -> None:
        """Note the end of a run; only what a model may be guilty of counts against one on trial."""
        if error is None or isinstance(error, _NO_FAULT_OF_A_MODEL):
            self._agent.run_ended(name)

    def has(self, capability: Capability) -> bool:
        """Tell whether the bridge leaves an optional capability on. From any thread."""
        return self._agent.has(capability)

    def exchanging(self, name: str) -> AbstractContextManager[object]:
        """Return what is held while the model of a pipeline is exchanged, so that no update does it meanwhile."""
        return self._bays[name].lock

    async def run(self) -> None:
        """Work until cancelled."""
        await self._agent.run()

    def handlers(self) -> "dict[str, Handler]":
        """Return what may be asked over the control socket."""
        return {"ota": self._agent.status}

    def commands(self) -> "dict[str, Command]":
        """Return what may be told over the control socket."""
        return {
            "ota-refresh": self._refresh,
            "ota-install": self._install,
            "ota-pin": self._pin,
            "ota-unpin": self._unpin,
            "ota-rollback": self._rollback,
        }

    # ---- inside ------------------------------------------------------------------------------------------

    def _refresh(self, _arguments: Mapping[str, str]) -> dict[str, Any]:
        self._agent.refresh_soon()
        return {}

    def _pin(self, arguments: Mapping[str, str]) -> dict[str, Any]:
        self._agent.pin(_pipeline(arguments), installed_from(arguments.get("model", "")))
        return {}

    def _install(self, arguments: Mapping[str, str]) -> dict[str, Any]:
        model, again = installed_from(arguments.get("model", "")), bool(arguments.get("again"))
        self._agent.install(_pipeline(arguments), model, again=again)
        return {}

    def _unpin(self, arguments: Mapping[str, str]) -> dict[str, Any]:
        self._agent.unpin(_pipeline(arguments))
        return {}

    def _rollback(self, arguments: Mapping[str, str]) -> dict[str, Any]:
        self._agent.rollback(_pipeline(arguments))
        return {}

    def _there(self) -> list[tuple[str, str]]:
        return [(each.name, each.version) for each in self._store().releases()]

    def _store(self) -> ReleaseStore:
        return ReleaseStore(self._parts.config.models.directories, sealed=self._parts.models.directory)

    def _desired(self, message: Incoming) -> None:
        self._agent.take_desired(message.payload)

    def _report(self, payload: bytes) -> None:
        uplink = self._parts.uplink
        if uplink is not None:
            message = Outgoing(self._topic, payload, retain=True)
            self._loop.call_soon_threadsafe(uplink.tell, message)

    def _renew(self) -> None:
        if self._parts.enrolment is not None:
            self._loop.call_soon_threadsafe(self._parts.enrolment.renew_now)


def _pipeline(arguments: Mapping[str, str]) -> str:
    if "pipeline" not in arguments:
        raise OtaError("the request names no pipeline")
    return arguments["pipeline"]
