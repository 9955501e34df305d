"""Sees to it that the metadata never ends while the bridge runs, and that its states agree with the database."""

import threading
from collections.abc import Callable
from datetime import datetime
from typing import Final

import structlog

from cloud_bridge.errors import BridgeError
from cloud_bridge.identity.database import Clock
from cloud_bridge.identity.issuer import utc
from cloud_bridge.registry.errors import NotInitialisedError
from cloud_bridge.registry.metrics import RegistryMetrics
from cloud_bridge.registry.registry import Refreshed, Registry

log = structlog.get_logger()

ROUND_SECONDS: Final = 30.0
"""Between two looks; nothing is signed before half of its life is over."""


class RegistryKeeper:
    """One round after the other until it is stopped. Every bridge may run one."""

    def __init__(
        self,
        registry: Registry,
        metrics: RegistryMetrics,
        clock: Clock,
        renew_listener: Callable[[datetime], None] = lambda _: None,
    ) -> None:
        """Prepare. renew_listener: called each round with the time."""
        self._registry = registry
        self._metrics = metrics
        self._clock = clock
        self._renew_listener = renew_listener
        self._stopping = threading.Event()
        self._trouble = ""

    def stop(self) -> None:
        """Ask `run` to return."""
        self._stopping.set()

    def run(self) -> None:
        """Do one round after the other."""
        while not self._stopping.is_set():
            self.round()
            self._stopping.wait(ROUND_SECONDS)

    def round(self) -> None:
        """Do what is due. A trouble is told when it begins, when it changes and when it ends, and tried again."""
        try:
            self._renew_listener(utc(self._clock()))
            self._count(self._registry.refresh())
        except NotInitialisedError as error:
            self._fares(error, "registry_not_initialised")
        except BridgeError as error:
            self._fares(error, "registry_upkeep_failed")
        else:
            self._fares(None, "")

    def _fares(self, error: BridgeError | None, event: str) -> None:
        self._metrics.healthy.set(error is None)
        if error is not None and str(error) != self._trouble:
            log.error(event, error=str(error))
        elif error is None and self._trouble:
            log.info("registry_works_again")
        self._trouble = "" if error is None else str(error)

    def _count(self, refreshed: Refreshed) -> None:
        if refreshed.renewed:
            self._metrics.renewals.inc()
        for entry in refreshed.settled:
            state = "yanked" if entry.yanked_ns is not None else "published"
            log.info("registry_state_settled", model=entry.label, state=state)
        signed = refreshed.signed
        for document in (signed.root, signed.timestamp, signed.snapshot, signed.targets):
            role = document.signed.type
            self._metrics.version.labels(role).set(document.signed.version)
            self._metrics.expires.labels(role).set(document.signed.expires.timestamp())
        releases = self._registry.releases()
        for state in ("candidate", "approved"):
            count = sum(1 for one in releases if one.is_offered and one.state == state)
            self._metrics.releases.labels(state).set(count)
        self._metrics.releases.labels("yanked").set(sum(1 for one in releases if one.yanked_ns is not None))
