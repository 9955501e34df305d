"""Updates of the system in the running gateway: joins the agent with RAUC, repository, link, meter and vault."""

import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from zoneinfo import ZoneInfo

from gateway.config import Config
from gateway.errors import ConfigError
from gateway.metering.meter import Meter
from gateway.metering.windows import Windows
from gateway.osupdate.agent import OsAgent
from gateway.osupdate.around import Around, Severity
from gateway.osupdate.bundles import RepositoryBundles
from gateway.osupdate.errors import OsUpdateError
from gateway.osupdate.figures import OsMetrics
from gateway.osupdate.journal import DIRECTORY, Journal
from gateway.osupdate.levers import RequestedLevers
from gateway.osupdate.rauc import RaucCli
from gateway.osupdate.release import read_release
from gateway.osupdate.surroundings import (
    HEALTH_FILE,
    HEALTH_UNTIL_REBOOT,
    boot_id,
    missing_approval,
    outgrown,
    read_health,
)
from gateway.ota.fetch import Repository
from gateway.ota.floor import open_floor
from gateway.ota.ways_open import open_way
from gateway.vault.errors import VaultError
from gateway.vault.vault import Vault
from gateway.wire.messages import Twin

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

    from gateway.control import Command, Handler
    from gateway.enrolment import Enrolment


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """What updates of the system are joined with."""

    config: Config
    vault: Vault
    meter: Meter
    enrolment: "Enrolment | None"
    registry: "CollectorRegistry"
    flushed: Callable[[], bool]
    connects: Callable[[], int]
    note: Callable[[str, Severity, str], None]  # from any thread


class OsUpdates:
    """The updates of the system of one gateway."""

    def __init__(self, parts: Parts) -> None:
        """Read the journal; nothing is asked yet.

        Raises:
            ConfigError: `os` or `ota` cannot be used.
            OsJournalError: the state directory cannot be used.
        """
        config = parts.config
        state = config.gateway.state_directory
        try:
            windows = Windows(config.os.windows, ZoneInfo(config.gateway.time_zone))
        except ValueError as error:
            raise ConfigError(f"os.windows: {error}") from error
        self._parts = parts
        self._agent = OsAgent(
            config.os,
            Journal(state),
            RaucCli(config.os.rauc, stopping=lambda: self._agent.is_stopping),
            _bundles(parts),
            RequestedLevers(config.gateway.runtime_directory or state, number=lambda: secrets.token_hex(8)),
            around=Around(
                boot_id=boot_id(),
                release=read_release(config.os.release_file),
                health=lambda: read_health(HEALTH_UNTIL_REBOOT, state / HEALTH_FILE),
                flushed=parts.flushed,
                window_open=lambda: windows.at(time.time_ns()).is_open,
                counter=self._counter,
                approval=self._approval,
                outgrown=self._outgrown,
                connects=parts.connects,
                note=parts.note,
                metrics=OsMetrics(parts.registry),
            ),
        )

    def wish(self, twin: Twin) -> None:
        """See `OsAgent.wish`."""
        self._agent.wish(twin)

    def report(self, twin: Twin) -> Twin:
        """See `OsAgent.report`."""
        return self._agent.report(twin)

    async def run(self) -> None:
        """Work until cancelled."""
        await self._agent.run()

    def handlers(self) -> "dict[str, Handler]":
        """Return what may be asked over the control socket."""
        return {"os": self._agent.status}

    def commands(self) -> "dict[str, Command]":
        """Return what may be told over the control socket."""
        return {"os-install": self._install, "os-cancel": self._cancel}

    def _install(self, arguments: Mapping[str, str]) -> dict[str, Any]:
        missing = [name for name in ("source", "compatible", "version") if not arguments.get(name)]
        if missing:
            raise OsUpdateError(f"the request does not say: {', '.join(missing)}")
        self._agent.install(arguments["source"], arguments["compatible"], arguments["version"])
        return {}

    def _cancel(self, _arguments: Mapping[str, str]) -> dict[str, Any]:
        self._agent.cancel()
        return {}

    def _counter(self) -> int | None:
        if self._parts.config.vault.level != "tpm":
            return None
        try:
            return self._parts.vault.status().store.counter
        except VaultError:
            return None

    def _approval(self, slot: str, pcr11: str) -> str:
        vault = self._parts.config.vault
        return missing_approval(vault.policy_directory, slot, pcr11) if vault.level == "tpm" else ""

    def _outgrown(self, slot: str) -> str:
        vault = self._parts.config.vault
        return outgrown(vault.policy_directory, slot, self._counter()) if vault.level == "tpm" else ""


def _bundles(parts: Parts) -> RepositoryBundles | None:
    """Return the repository's bundles; None without one, or behind a broker alone: a bundle is too long for that."""
    config, enrolment = parts.config, parts.enrolment
    if config.ota is None or config.ota.url is None:
        return None
    state = config.gateway.state_directory
    way = open_way(
        config.ota,
        monotonic_ns=time.monotonic_ns,
        identity=enrolment.tls_context if enrolment is not None else None,
    )
    repository = Repository(
        config.ota,
        state,
        way,
        meter=parts.meter,
        now_ns=enrolment.now_ns if enrolment is not None else time.time_ns,
        monotonic_ns=time.monotonic_ns,
        floor=open_floor(parts.vault, state, has_identity=config.identity is not None),
    )
    return RepositoryBundles(repository, way, parts.meter, config.os.directory or state / DIRECTORY / "bundles")
