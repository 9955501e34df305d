"""Sees to it that what was decided takes effect: revocation lists, connections that must end, certificates that age.

Runs in a thread. Every bridge may run one: what is done twice does no harm.
"""

import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Final, Protocol

import structlog

from cloud_bridge.errors import BridgeError, BrokerError
from cloud_bridge.identity.broker import CRL_FRESH, BrokerFiles
from cloud_bridge.identity.database import Database
from cloud_bridge.identity.devices import (
    Cut,
    denied_gateways,
    due_cuts,
    prune_certificates,
    revoked_certificates,
    settle_cut,
)
from cloud_bridge.identity.errors import IdentityError
from cloud_bridge.identity.events import prune_events
from cloud_bridge.identity.issuer import utc
from cloud_bridge.identity.metrics import IdentityMetrics
from cloud_bridge.identity.sessions import prune_sessions
from cloud_bridge.identity.takeover import Takeover
from gateway.wire.times import rfc3339

log = structlog.get_logger()

ROUND_SECONDS: Final = 2.0
_PRUNE_SECONDS: Final = 600.0
_CUTS_A_ROUND: Final = 200
_BROKER: Final = "mosquitto"


class Cutter(Protocol):
    """Ends connections at one broker."""

    def cut(self, takeover: Takeover) -> None:
        """End one; raises BrokerError."""
        ...


class Keeper:
    """One round after the other until it is stopped."""

    def __init__(
        self,
        database: Database,
        metrics: IdentityMetrics,
        *,
        root: str,
        event_days: float,
        files: BrokerFiles | None = None,
        broker_pid_file: Path | None = None,
        cutters: Sequence[Cutter] = (),
        renew_listener: Callable[[datetime], None] = lambda _: None,
        clock: Callable[[], int] = time.time_ns,
    ) -> None:
        """Prepare. files: of a broker, to be kept fresh; renew_listener: called each round with the time."""
        self._database = database
        self._metrics = metrics
        self._root = root
        self._event_days = event_days
        self._files = files
        self._pid_file = broker_pid_file
        self._cutters = tuple(cutters)
        self._renew_listener = renew_listener
        self._clock = clock
        self._stopping = threading.Event()
        self._listed: tuple[str, ...] | None = None
        self._listed_at: datetime | None = None
        # Files may have changed that the broker has not read again; also before this process began.
        self._untold = True
        self._pruned_ns = 0
        self._troubles: dict[str, str] = {}
        self._half_done: dict[tuple[str, str], set[int]] = {}  # at which brokers a cut was made that waits for others

    def stop(self) -> None:
        """Ask `run` to return."""
        self._stopping.set()

    def run(self) -> None:
        """Do one round after the other."""
        while not self._stopping.is_set():
            self.round()
            self._stopping.wait(ROUND_SECONDS)

    def round(self) -> None:
        """Do everything that is due. Troubles are told when they begin and when they end, and tried again."""
        now_ns = self._clock()
        files = self._files
        if files is not None:
            self._attempt("files", lambda: self._refresh_files(utc(now_ns), files))
            self._attempt("revocation-list", lambda: self._refresh_list(utc(now_ns), files))
            self._attempt("broker", self._tell)
        self._attempt("cuts", lambda: self._cut_due(now_ns))
        self._attempt("listener", lambda: self._renew_listener(utc(now_ns)))
        if now_ns - self._pruned_ns > _PRUNE_SECONDS * 1e9:
            self._pruned_ns = now_ns
            self._attempt("pruning", lambda: self._prune(now_ns))

    def _attempt(self, what: str, work: Callable[[], None]) -> None:
        try:
            work()
        except BridgeError as error:
            if what not in self._troubles:
                log.error("identity_upkeep_failed", what=what, error=str(error))
            self._troubles[what] = str(error)
        else:
            if self._troubles.pop(what, None) is not None:
                log.info("identity_upkeep_works_again", what=what)

    def _refresh_files(self, now: datetime, files: BrokerFiles) -> None:
        with self._database.transaction() as tx:
            revoked = revoked_certificates(tx, self._clock())
            denied = denied_gateways(tx, self._clock())
        if files.write_denied(denied):
            self._untold = True
            log.info("revoked_denied", gateways=len(denied) if files.denies else 0)
        if files.write_anchors():
            log.warning(
                "authority_changed",
                file=str(files.directory / "devices-ca.pem"),
                remedy="restart the broker, unless sluice-broker-restart.path does: mosquitto reads it at its start",
            )
        if files.renew(now):
            self._untold = True
        self._metrics.revoked.set(len(revoked))

    def _refresh_list(self, now: datetime, files: BrokerFiles) -> None:
        with self._database.transaction() as tx:
            revoked = revoked_certificates(tx, self._clock())
        serials = tuple(one.serial for one in revoked)
        stale = self._listed_at is None or not now - CRL_FRESH < self._listed_at <= now
        # A list of somebody else may change at any time.
        if serials == self._listed and not stale and not files.denies:
            return
        changed, until = files.write_crl(revoked, now)
        self._listed, self._listed_at = serials, now
        if until is not None:
            self._metrics.crl_until.set(until.timestamp())
        if changed:
            self._untold = True
            log.info("revocation_list_written", certificates=len(serials))

    def _tell(self) -> None:
        if self._untold and self._pid_file is not None:
            _hang_up(self._pid_file)
        self._untold = False

    def _cut_due(self, now_ns: int) -> None:
        """End connections; a revoked device could come back until the broker has read the list, which came before."""
        if not self._cutters:
            return
        with self._database.transaction() as tx:
            cuts = due_cuts(tx, now_ns, _CUTS_A_ROUND)
        waiting = {(cut.id, cut.serial) for cut in cuts}
        self._half_done = {name: done for name, done in self._half_done.items() if name in waiting}
        self._metrics.cuts_waiting.set(len(waiting))
        away: dict[int, str] = {}
        for cut in cuts:
            if self._stopping.is_set():
                return
            if self._cut(cut, now_ns, away):
                with self._database.transaction() as tx:
                    settle_cut(tx, cut, now_ns)
                waiting.discard((cut.id, cut.serial))
                self._metrics.cuts_waiting.set(len(waiting))
        if away:
            raise BrokerError("; ".join(away.values()))

    def _cut(self, cut: Cut, now_ns: int, away: dict[int, str]) -> bool:
        """End a connection at every broker, at each of them once; return whether all have done it.

        A broker that is `away` is asked once in a round: the others must not wait for it again and again.
        """
        takeover = Takeover(cut.gateway, cut.banned, rfc3339(now_ns), self._root)
        done = self._half_done.setdefault((cut.id, cut.serial), set())
        for at, cutter in enumerate(self._cutters):
            if at in done or at in away:
                continue
            try:
                cutter.cut(takeover)
                done.add(at)
            except BrokerError as error:
                away[at] = str(error)
        if len(done) < len(self._cutters):
            return False
        del self._half_done[cut.id, cut.serial]
        why = "expired" if cut.serial else "revoked"
        self._metrics.cut.labels(why).inc()
        if cut.banned:
            log.info("mqtt_session_cut", gateway=cut.gateway, why=why)
        return True

    def _prune(self, now_ns: int) -> None:
        with self._database.transaction() as tx:
            prune_sessions(tx, now_ns)
            prune_certificates(tx, now_ns)
            prune_events(tx, now_ns, self._event_days)
            if not self._cutters:  # nobody will ever settle these
                tx.change("DELETE FROM identity_cuts WHERE due_ns < ?", (now_ns,))
                tx.change(
                    "UPDATE identity_certificates SET cut_ns = ? WHERE cut_ns IS NULL AND not_after_ns < ?",
                    (now_ns, now_ns),
                )


def _hang_up(pid_file: Path) -> None:
    """Tell a mosquitto to read its files again.

    One that was killed leaves its file behind, and its number may be another program's by now, which SIGHUP would end.

    Raises:
        IdentityError: it does not run, or cannot be told.
    """
    try:
        pid = int(pid_file.read_text(encoding="ascii"))
        name = Path(f"/proc/{pid}/comm").read_text(encoding="utf-8", errors="replace").strip()  # proc(5)
        if name == _BROKER:
            os.kill(pid, signal.SIGHUP)
    except (OSError, ValueError) as error:
        raise IdentityError(f"the broker of {pid_file} cannot be told to read its files again: {error}") from error
    if name != _BROKER:
        raise IdentityError(f"the broker of {pid_file} does not run: its number {pid} is that of {name!r}; start it")
