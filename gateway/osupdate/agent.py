"""Updates of the system on one device: takes the bridge's or a person's wish, carries it out, says what became of it.

One thread, `os-update`, does everything that takes long; wishes and questions come from any thread. What is next is
decided in `plan`; each step is in the journal before it is taken, because the step that matters ends this program.
"""

import queue
import random
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import msgspec
import structlog

from gateway.config import Os
from gateway.osupdate import journal as steps
from gateway.osupdate.bundles import Bundles, OfferedBundle
from gateway.osupdate.errors import (
    BundleRefusedError,
    InstallFailedError,
    LeverError,
    NotAsAnnouncedError,
    OsUpdateError,
    RaucUnavailableError,
    StreamingFailedError,
)
from gateway.osupdate.figures import OsMetrics
from gateway.osupdate.journal import Book, Job, Journal, Offered, Wish
from gateway.osupdate.levers import Levers
from gateway.osupdate.media import bundles_on
from gateway.osupdate.plan import (
    MAX_INSTALLS,
    Bring,
    FellBack,
    Health,
    Hold,
    Install,
    OnTrial,
    Proven,
    Restart,
    Seen,
    Started,
    next_step,
)
from gateway.osupdate.rauc import Rauc, SystemStatus
from gateway.osupdate.relay import Relayed
from gateway.osupdate.release import BundleFacts, SystemRelease, require_installable
from gateway.osupdate.versions import version_key
from gateway.ota.errors import NotOfferedError, OtaError, StoppedError, TrustError
from gateway.threads import in_thread
from gateway.wire.messages import Assignment, ModelRef, OsState, Twin, UpdatePhase, UpdateState, os_pipeline
from gateway.wire.times import rfc3339

log = structlog.get_logger()

TICK_SECONDS: Final = 1.0
LOOK_SECONDS: Final = 5.0
"""Between two looks at the slots while an update is under way."""
LOOK_PAUSE: Final = 4.0
"""A look starts half a dozen programs; between two of them is at least so many times what the last one took."""
MEDIA_SECONDS: Final = 10.0
RESTART_AGAIN_SECONDS: Final = 300.0
"""A restart that was asked for and has not come in this time is asked for again."""
FIRST_RETRY_SECONDS: Final = 5.0
MAX_RETRY_SECONDS: Final = 3600.0
MAX_STREAMS: Final = 3
"""So often streaming is tried before the bundle is downloaded instead."""
_TOLD_SECONDS: Final = 10.0
_FAILED: Final = ("refused", "reverted", "blocked")

Severity = Literal["info", "warning", "error"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Around:
    """What updates of the system need of the program around them. Everything may be called from any thread."""

    boot_id: str
    release: SystemRelease | None
    health: Callable[[], Health | None]
    flushed: Callable[[], bool]  # whether the cloud has everything
    window_open: Callable[[], bool]
    counter: Callable[[], int | None]  # of the vault
    approval: Callable[[str, str], str]  # of a slot and its PCR 11: why the vault would not open there, "" if it would
    connects: Callable[[], int]  # how often the way to the bridge has been made
    note: Callable[[str, Severity, str], None]  # code, severity, words, for the cloud
    metrics: OsMetrics
    wall_ns: Callable[[], int] = time.time_ns
    monotonic: Callable[[], float] = time.monotonic
    draw: Callable[[], float] = random.random


class OsStatus(msgspec.Struct, frozen=True, kw_only=True):
    """How it stands, for `gateway os status`."""

    running: bool = True  # whether a gateway answers
    system: OsState | None = None
    job: Job | None = None
    told: UpdateState | None = None
    problem: str = ""  # with RAUC
    damage: str = ""
    offered: Offered | None = None
    blocked: tuple[steps.Blocked, ...] = ()
    history: tuple[steps.Event, ...] = ()


class OsAgent:
    """Updates of the system of one gateway. `run` belongs to the event loop, everything else to any thread."""

    def __init__(
        self, settings: Os, journal: Journal, rauc: Rauc, bundles: Bundles | None, levers: Levers, *, around: Around
    ) -> None:
        """Take parts; nothing is asked yet. bundles: None where there is no repository: then from files alone."""
        self._settings = settings
        self._journal = journal
        self._rauc = rauc
        self._bundles = bundles
        self._levers = levers
        self._around = around
        self._status: SystemStatus | None = None
        self._looked_at: float | None = None
        self._look_took = 0.0
        self._problem = ""
        self._pause_until = 0.0
        self._failures = 0
        self._connects = -1
        self._fetching = ""  # the version that is being fetched
        self._path: Path | None = None  # of the bundle that was fetched
        self._pulled_at: float | None = None
        self._flush_since: float | None = None
        self._media_at: float | None = None
        self._media_known: dict[tuple[Path, int, int], BundleFacts | None] = {}
        self._asked: queue.SimpleQueue[Job] = queue.SimpleQueue()
        self._stopping = threading.Event()
        self._wake = threading.Event()

    # ---- told by the program ------------------------------------------------------------------------------

    def wish(self, twin: Twin) -> None:
        """Take what a desired twin says of the system; durable when this returns. Who calls has looked at its fence.

        Raises:
            OsJournalError: it cannot be written.
        """
        wish = None
        for each in twin.assignments:
            if each.kind == "os":
                wish = Wish(compatible=each.model.name, version=each.model.version, token=twin.fencing_token)
        book = self._journal.change(steps.wish_for(twin.fencing_token, wish))
        if self._fetching and (book.wish is None or book.wish.version != self._fetching) and self._bundles is not None:
            self._bundles.stop()  # what is being fetched is not wanted any more
        self._pause_until = 0.0
        self._wake.set()

    def report(self, twin: Twin) -> Twin:
        """Add what is to be said of the system to a reported twin."""
        state = self.state()
        if state is None:
            return twin
        running = Assignment(
            pipeline=os_pipeline(state.compatible),
            model=ModelRef(name=state.compatible, version=state.version),
            kind="os",
        )
        told = self._journal.book.told
        updates = [*twin.updates, told] if told is not None else twin.updates
        return msgspec.structs.replace(twin, os=state, assignments=[*twin.assignments, running], updates=updates)

    def state(self) -> OsState | None:
        """Tell which system runs; None where no image says so."""
        release, status, book = self._around.release, self._status, self._journal.book
        if release is None:
            return None
        running, other = (status.running, status.other) if status is not None else (None, None)
        return OsState(
            compatible=self._compatible(),
            version=release.version,
            commit=release.commit,
            slot=running.bootname if running is not None else "",
            floor=release.floor,
            good=running.good if running is not None else None,
            other_slot=other.bootname if other is not None else "",
            other_version=(other.version or book.slots.get(other.bootname, "")) if other is not None else "",
            other_good=other.good if other is not None else None,
            offered_version=book.offered.version if book.offered is not None else "",
        )

    # ---- asked by people ----------------------------------------------------------------------------------

    def status(self) -> OsStatus:
        """Tell how it stands."""
        book = self._journal.book
        return OsStatus(
            system=self.state(),
            job=book.job,
            told=book.told,
            problem=self._problem,
            damage=self._journal.damage,
            offered=book.offered,
            blocked=book.blocked,
            history=book.history,
        )

    def install(self, source: str, compatible: str, version: str) -> None:
        """Begin to install a bundle from a path or an address, soon; it is verified again then.

        Raises:
            OsUpdateError: not now, such as when another update waits for its restart.
        """
        job = self._journal.book.job
        if job is not None and job.stage not in ("wanted", "ready"):
            raise OsUpdateError(
                f"version {job.version} is {job.stage} and comes to an end first; see `gateway os status`"
            )
        self._asked.put(Job(compatible=compatible, version=version, origin="person", source=source))
        self._wake.set()

    # ---- running ------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Work until cancelled.

        Raises:
            OsJournalError: the journal cannot be written; the component is started again.
        """
        self._stopping.clear()
        if self._bundles is not None:
            self._bundles.resume()
        if self._journal.damage:
            self._around.note("os_journal_damaged", "error", self._journal.damage)
        try:
            await in_thread("os-update", self._work)
        finally:
            self.stop()

    def stop(self) -> None:
        """Have the thread end soon."""
        self._stopping.set()
        self._wake.set()
        if self._bundles is not None:
            self._bundles.stop()

    @property
    def is_stopping(self) -> bool:
        """Whether the thread is to end."""
        return self._stopping.is_set()

    def _work(self) -> None:
        while not self._stopping.is_set():
            self.tick()
            self._wake.wait(TICK_SECONDS)
            self._wake.clear()

    def tick(self) -> None:
        """Look, and take at most one step."""
        connects = self._around.connects()
        if connects != self._connects:
            self._connects, self._pause_until = connects, 0.0
        self._look()
        if self._status is None or self._around.release is None:
            return
        while not self._asked.empty():
            self._begin(self._asked.get())
        self._reconcile(self._status)
        self._look_at_media(self._status)
        job = self._journal.book.job
        self._around.metrics.under_way(is_under_way=job is not None)
        if job is not None and self._around.monotonic() >= self._pause_until:
            self._step(job, self._status)

    def _look(self) -> None:
        now, job = self._around.monotonic(), self._journal.book.job
        every = max(LOOK_SECONDS, LOOK_PAUSE * self._look_took) if job is not None else self._settings.refresh_seconds
        if self._looked_at is not None and now - self._looked_at < every:
            return
        try:
            self._status = self._rauc.status()
        except OtaError as error:
            self._looked(now)
            if self._problem != str(error):
                log.warning("os_slots_not_known", code=error.code, error=str(error))
            self._problem = str(error)
            return
        self._looked(now)
        if self._problem:
            log.info("os_slots_known_again")
        self._problem = ""
        if self._around.release is not None:
            self._journal.change(steps.found_in(self._status.booted, self._around.release.version))

    def _looked(self, began: float) -> None:
        self._looked_at = self._around.monotonic()
        self._look_took = self._looked_at - began

    def _look_soon(self) -> None:
        self._looked_at = None

    # ---- wishes -------------------------------------------------------------------------------------------

    def _reconcile(self, status: SystemStatus) -> None:
        """Bring what is under way in line with what the bridge wants."""
        book = self._journal.book
        wish, job, release = book.wish, book.job, self._around.release
        assert release is not None
        if wish is None:
            if job is not None and job.origin == "cloud" and job.stage in ("wanted", "ready"):
                self._withdraw(job)
            return
        if job is not None:
            if job.version == wish.version and job.compatible == wish.compatible:
                if job.token != wish.token:
                    self._journal.change(steps.amend(token=wish.token))
                    self._say_again(wish.token)
                return
            if job.origin != "cloud" and job.stage != "trial":
                return  # a person at the device comes first; the wish is taken up afterwards
            if not self._let_go(job, wish, release):
                return
        if wish.compatible != status.compatible:
            words = f"the image is for {wish.compatible}; this device is {status.compatible}"
            self._say(wish, "refused", code="compatible", reason=words)
        elif wish.version == release.version:
            if not self._has_told(wish, ("running",)):  # with what the update has cost, if there was one
                self._say(wish, "running")
        elif (blocked := book.is_blocked(wish.compatible, wish.version)) is not None:
            if not self._has_told(wish, _FAILED):
                self._say(wish, "blocked", code=blocked.code, reason=blocked.reason)
        elif not self._has_told(wish, _FAILED):
            self._begin(Job(compatible=wish.compatible, version=wish.version, token=wish.token))

    def _let_go(self, job: Job, wish: Wish, release: SystemRelease) -> bool:
        """Give up what is under way for another wish; False: not yet."""
        if job.stage in ("installing", "installed", "restarting") and wish.version == release.version:
            # The other slot would be started next, whenever that is.
            if self._around.monotonic() < self._pause_until:
                return False
            try:
                self._levers.pull("keep")
            except LeverError as error:
                self._later(error)
                words = f"{job.version} is installed and would start with the next restart: {error}"
                self._say(wish, "waiting", code=error.code, reason=words)
                return False
        self._withdraw(job)
        return True

    def _withdraw(self, job: Job) -> None:
        self._journal.change(steps.end("withdrawn", self._at()))
        log.info("os_update_withdrawn", version=job.version, stage=job.stage)
        self._around.metrics.outcome("withdrawn")
        self._clear()

    def _begin(self, job: Job) -> None:
        self._journal.change(steps.begin(job, self._at()))
        self._failures, self._pause_until, self._path, self._flush_since = 0, 0.0, None, None
        log.info("os_update_wanted", version=job.version, origin=job.origin, source=job.source)
        self._say(job, "waiting")
        self._wake.set()

    # ---- steps --------------------------------------------------------------------------------------------

    def _step(self, job: Job, status: SystemStatus) -> None:
        step = next_step(job, self._seen(job, status))
        try:
            match step:
                case Bring():
                    self._bring(job, status)
                case Install():
                    self._install(job, status)
                case Hold(code, reason):
                    self._say(job, "waiting", code=code, reason=reason)
                case Restart():
                    self._restart(job)
                case Started():
                    self._started(job, status)
                case OnTrial(reason):
                    self._say(job, "trial", reason=reason)
                case Proven():
                    self._proven(job)
                case FellBack(code, reason):
                    self._fell_back(job, code, reason)
        except StoppedError:
            if self._bundles is not None and not self._stopping.is_set():
                self._bundles.resume()  # only what was being fetched is not wanted any more
        except BundleRefusedError as error:
            self._refuse(job, error)
        except OtaError as error:
            self._postpone(job, error)

    def _seen(self, job: Job, status: SystemStatus) -> Seen:
        release, around = self._around.release, self._around
        return Seen(
            boot_id=around.boot_id,
            version=release.version if release is not None else "",
            slot=status.booted,
            running=status.running,
            other=status.other,
            health=around.health(),
            window_open=around.window_open(),
            flushed=self._is_flushed(job),
        )

    def _is_flushed(self, job: Job) -> bool:
        if job.stage not in ("installed", "restarting") or self._around.flushed():
            return True
        now = self._around.monotonic()
        if self._flush_since is None:
            self._flush_since = now
        # What is left lies on the disk and is sent by the new system.
        return now - self._flush_since >= self._settings.flush_seconds

    def _bring(self, job: Job, status: SystemStatus) -> None:
        """See to it that the bundle is at hand."""
        if self._return_to_other(job, status):
            return
        self._journal.change(steps.amend(tries=job.tries + 1))
        if job.source:
            facts = self._rauc.info(job.source)
            self._require(job, facts, status)
            self._ready(job, facts)
            return
        bundle = self._offered(job)
        self._require(job, bundle.says.facts, status)
        if not self._streams(job, bundle):
            self._fetch(job, bundle)
        self._ready(job, bundle.says.facts, full_bytes=bundle.file.size_bytes)

    def _return_to_other(self, job: Job, status: SystemStatus) -> bool:
        """Have the other slot started next if it has what is wanted already, as when an update is taken back."""
        other = status.other
        if other is None or job.origin != "cloud" or not other.complete or other.good is False:
            return False
        if (other.version or self._journal.book.slots.get(other.bootname)) != job.version:
            return False
        facts = BundleFacts(job.compatible, job.version)
        self._require(job, facts, status)
        try:
            self._levers.pull("return")
        except LeverError as error:
            log.warning("os_slot_not_chosen", slot=other.bootname, version=job.version, error=str(error))
            return False
        self._installed(job, status)
        return True

    def _offered(self, job: Job) -> OfferedBundle:
        if self._bundles is None:
            raise OsUpdateError(
                "there is no repository to fetch it from: set `ota` with `url`, or `gateway os install FILE`"
            )
        try:
            self._bundles.refresh()
        except TrustError:
            raise
        except OtaError as error:
            log.info("os_repository_not_refreshed", code=error.code, error=str(error))  # what is known may do
        return self._bundles.find(job.compatible, job.version)

    def _require(self, job: Job, facts: BundleFacts, status: SystemStatus) -> None:
        if (facts.compatible, facts.version) != (job.compatible, job.version):
            raise NotAsAnnouncedError(
                f"it says that it is {facts.compatible} {facts.version}, and was announced as {job.compatible} "
                f"{job.version}"
            )
        require_installable(facts, self._around.release, compatible=status.compatible, counter=self._around.counter())

    def _streams(self, job: Job, bundle: OfferedBundle) -> bool:
        """Tell whether RAUC is to read the bundle over the network."""
        assert self._bundles is not None
        if not bundle.can_stream or self._settings.delivery == "download":
            return False
        room = self._bundles.has_room(bundle)
        if job.streams >= MAX_STREAMS and room:
            return False
        return self._settings.delivery == "stream" or bundle.says.adaptive or not room

    def _fetch(self, job: Job, bundle: OfferedBundle) -> None:
        assert self._bundles is not None
        self._say(job, "fetching", full_bytes=bundle.file.size_bytes)
        told = [self._around.monotonic()]

        def progress(count: int) -> None:
            now = self._around.monotonic()
            if now - told[0] >= _TOLD_SECONDS:
                told[0] = now
                log.info("os_fetching", version=job.version, fetched_bytes=count, of_bytes=bundle.file.size_bytes)
                self._say(job, "fetching", fetched_bytes=count, full_bytes=bundle.file.size_bytes)

        self._fetching = job.version
        try:
            self._path = self._bundles.fetch(bundle, progress)
        finally:
            self._fetching = ""
        self._around.metrics.fetched(bundle.file.size_bytes)
        self._journal.change(steps.amend(fetched_bytes=bundle.file.size_bytes))
        facts = self._rauc.info(str(self._path))
        if facts.compatible != job.compatible or facts.version != job.version:
            raise NotAsAnnouncedError(
                f"the bundle is {facts.compatible} {facts.version}; the repository has it as {job.compatible} "
                f"{job.version}"
            )

    def _ready(self, job: Job, facts: BundleFacts, full_bytes: int = 0) -> None:
        self._failures = 0
        self._reach(
            "ready", "fetched", floor=facts.floor, pcr11=dict(facts.pcr11), full_bytes=full_bytes or job.full_bytes
        )

    def _install(self, job: Job, status: SystemStatus) -> None:
        if status.other is None:
            raise RaucUnavailableError("RAUC knows no slot that a bundle could go to")
        release = self._around.release
        self._reach(
            "installing",
            from_version=release.version if release is not None else "",
            from_slot=status.booted,
            to_slot=status.other.bootname,
        )
        self._say(job, "checking", code="installing")
        log.info("os_install_begins", version=job.version, slot=status.other.bootname)
        told = [-100]

        def progress(percent: int, words: str) -> None:
            if percent - told[0] >= 20:
                told[0] = percent
                log.info("os_installing", version=job.version, percent=percent, step=words)

        self._look_soon()
        if job.source:
            self._rauc.install(job.source, progress)
        else:
            self._install_offered(job, progress)
        self._installed(job, status)

    def _install_offered(self, job: Job, progress: Callable[[int, str], None]) -> None:
        bundle = self._offered(job)
        assert self._bundles is not None
        if not self._streams(job, bundle):
            self._path = self._bundles.fetch(bundle, lambda _count: None)  # it is here, unless somebody removed it
            self._rauc.install(str(self._path), progress)
            return
        seen = Relayed()
        try:
            with self._bundles.streamed(bundle, seen) as address:
                self._rauc.install(address, progress)
        except InstallFailedError as error:
            self._journal.change(steps.amend(streams=job.streams + 1))
            if seen.error is not None:
                raise seen.error from error  # why the relay had nothing to give
            raise StreamingFailedError(str(error)) from error
        finally:
            self._around.metrics.fetched(seen.bytes)
            self._journal.change(steps.amend(fetched_bytes=seen.bytes))

    def _installed(self, job: Job, status: SystemStatus) -> None:
        assert status.other is not None
        health = self._around.health()
        self._journal.change(steps.found_in(status.other.bootname, job.version))
        self._reach(
            "installed",
            "installed",
            to_slot=status.other.bootname,
            from_slot=status.booted,
            health_at=health.at if health is not None else "",
        )
        self._failures, self._flush_since = 0, None
        log.info("os_installed", version=job.version, slot=status.other.bootname)
        self._around.note("os_installed", "info", f"version {job.version} is installed and waits for the restart")
        self._around.metrics.outcome("installed")
        self._check_approval(job, status.other.bootname)

    def _check_approval(self, job: Job, slot: str) -> None:
        """Say so if the vault would not give its key to the new system, as far as that can be known from here.

        Nothing is held up: if the approval is missing when that system has started, its health says so and the device
        falls back.
        """
        book = self._journal.book
        pcr11 = book.job.pcr11.get(slot, "") if book.job is not None else ""
        missing = self._around.approval(slot, pcr11)
        if missing:
            log.warning("os_approval_missing", version=job.version, slot=slot, reason=missing)
            self._around.note("os_approval_missing", "warning", f"version {job.version}: {missing}")
        self._say(job, "checking", code="approval" if missing else "installed", reason=missing)

    def _restart(self, job: Job) -> None:
        now = self._around.monotonic()
        if self._pulled_at is not None and now - self._pulled_at < RESTART_AGAIN_SECONDS:
            return
        health = self._around.health()
        self._reach(
            "restarting", "restarting", restarts=job.restarts + 1, health_at=health.at if health is not None else ""
        )
        self._say(job, "checking", code="restarting")
        log.info("os_restarts", version=job.version, attempt=job.restarts + 1)
        self._pulled_at = now
        try:
            self._levers.pull("restart")
        except LeverError:
            self._pulled_at = None
            self._reach("installed", restarts=job.restarts)
            raise

    def _started(self, job: Job, status: SystemStatus) -> None:
        self._reach("trial", "started", to_slot=status.booted)
        log.info("os_started", version=job.version, slot=status.booted)
        self._say(job, "trial", reason="its health is being watched")

    def _proven(self, job: Job) -> None:
        self._end("proven", self._word(job, "running"))
        log.info("os_proven", version=job.version)
        self._around.note("os_proven", "info", f"the device runs version {job.version}, marked good")
        self._around.metrics.outcome("proven")
        self._clear()

    def _fell_back(self, job: Job, code: str, reason: str) -> None:
        self._end("reverted", self._word(job, "reverted", code=code, reason=reason))
        log.error("os_reverted", version=job.version, code=code, reason=reason)
        self._around.note("os_reverted", "error", f"version {job.version}: {reason}")
        self._around.metrics.outcome("reverted")
        self._clear()

    def _refuse(self, job: Job, error: BundleRefusedError) -> None:
        self._end("refused", self._word(job, "refused", code=error.code, reason=str(error)))
        log.error("os_refused", version=job.version, code=error.code, reason=str(error))
        self._around.note("os_refused", "error", f"version {job.version}: {error}")
        self._around.metrics.outcome("refused")
        self._clear()

    def _postpone(self, job: Job, error: OtaError) -> None:
        self._around.metrics.failed(error.code)
        if isinstance(error, InstallFailedError):
            book = self._journal.change(steps.amend(installs=job.installs + 1, stage="ready"))
            if book.job is not None and book.job.installs >= MAX_INSTALLS:
                given_up = BundleRefusedError(f"{MAX_INSTALLS} tries to install it failed, the last one so: {error}")
                self._refuse(job, given_up)
                return
        elif job.stage in ("ready", "installing"):
            self._journal.change(steps.amend(stage="ready" if job.source or self._path else "wanted"))
        told = self._journal.book.told
        if told is None or (told.code, told.reason) != (error.code, str(error)):
            log.warning("os_update_waits", version=job.version, code=error.code, reason=str(error))
        self._later(error)
        # The list of the repository, or who stands between, may be another one the next time.
        phase: UpdatePhase = "refused" if isinstance(error, TrustError) else "waiting"
        self._say(job, phase, code=error.code, reason=str(error))

    def _later(self, error: OtaError) -> None:
        self._failures += 1
        # The first streaming after a boot fails by chance (a race in RAUC before 1.15): the next try is soon.
        first = 1.0 if isinstance(error, StreamingFailedError) else FIRST_RETRY_SECONDS
        delay = min(MAX_RETRY_SECONDS, first * 2.0 ** min(self._failures - 1, 20))
        if isinstance(error, NotOfferedError):
            delay = max(delay, 60.0)
        self._pause_until = self._around.monotonic() + delay * (0.5 + 0.5 * self._around.draw())

    def _clear(self) -> None:
        self._path, self._pulled_at, self._flush_since, self._failures = None, None, None, 0
        self._look_soon()
        if self._bundles is not None:
            self._bundles.clear()

    # ---- media --------------------------------------------------------------------------------------------

    def _look_at_media(self, status: SystemStatus) -> None:
        now = self._around.monotonic()
        if self._settings.media == "off" or (self._media_at is not None and now - self._media_at < MEDIA_SECONDS):
            return
        self._media_at = now
        found = bundles_on(self._settings.media_directories)
        self._media_known = {key: facts for key, facts in self._media_known.items() if key in found}
        for key in found:
            if key not in self._media_known:
                self._media_known[key] = self._newer(key[0], status)
        best = max(
            ((facts, key[0]) for key, facts in self._media_known.items() if facts is not None),
            key=lambda each: version_key(each[0].version),
            default=None,
        )
        offered = Offered(version=best[0].version, path=str(best[1])) if best is not None else None
        if offered == self._journal.book.offered:
            return
        self._journal.change(steps.offer(offered, self._at()))
        if offered is None:
            return
        log.info("os_offered", version=offered.version, path=offered.path)
        self._around.note(
            "os_offered", "info", f"a medium has version {offered.version}: `gateway os install {offered.path}`"
        )
        if self._settings.media == "install" and self._journal.book.job is None:
            self._begin(
                Job(compatible=status.compatible, version=offered.version, origin="medium", source=offered.path)
            )

    def _newer(self, file: Path, status: SystemStatus) -> BundleFacts | None:
        """Return what a bundle on a medium is, if it could be installed and is newer than what runs."""
        release = self._around.release
        try:
            facts = self._rauc.info(str(file))
            require_installable(facts, release, compatible=status.compatible, counter=self._around.counter())
        except OtaError as error:
            log.warning("os_bundle_on_medium_unusable", path=str(file), code=error.code, reason=str(error))
            return None
        if release is not None and version_key(facts.version) <= version_key(release.version):
            return None
        if self._journal.book.is_blocked(facts.compatible, facts.version) is not None:
            return None
        return facts

    # ---- telling ------------------------------------------------------------------------------------------

    def _reach(self, stage: steps.Stage, what: str = "", **changes: object) -> Book:
        return self._journal.change(steps.reach(stage, self._around.boot_id, self._at(), what, **changes))

    def _has_told(self, wish: Wish, phases: Sequence[str]) -> bool:
        told = self._journal.book.told
        return (
            told is not None
            and told.phase in phases
            and (told.model.name, told.model.version) == (wish.compatible, wish.version)
            and told.fencing_token == wish.token
        )

    def _say_again(self, token: int) -> None:
        """Say the same under the token of another twin that wants the same."""
        told = self._journal.book.told
        if told is not None:
            self._journal.change(steps.tell(msgspec.structs.replace(told, fencing_token=token)))

    def _end(self, what: str, word: UpdateState) -> None:
        """End the update under way, and say so, in one step."""
        blocks = word.phase in _FAILED
        over = steps.end(what, self._at(), code=word.code, detail=word.reason, block=blocks)
        self._journal.change(lambda book: steps.tell(word)(over(book)))

    def _say(
        self,
        about: Job | Wish,
        phase: UpdatePhase,
        *,
        code: str = "",
        reason: str = "",
        fetched_bytes: int = 0,
        full_bytes: int = 0,
    ) -> None:
        word = self._word(about, phase, code=code, reason=reason, fetched_bytes=fetched_bytes, full_bytes=full_bytes)
        told = self._journal.book.told
        if told is None or msgspec.structs.replace(told, at=word.at) != word:
            self._journal.change(steps.tell(word))

    def _word(
        self,
        about: Job | Wish,
        phase: UpdatePhase,
        *,
        code: str = "",
        reason: str = "",
        fetched_bytes: int = 0,
        full_bytes: int = 0,
    ) -> UpdateState:
        book, release = self._journal.book, self._around.release
        job = book.job if book.job is not None else about if isinstance(about, Job) else None
        wish = book.wish
        token = wish.token if wish is not None and wish.version == about.version else 0
        return UpdateState(
            pipeline=os_pipeline(about.compatible),
            phase=phase,
            model=ModelRef(name=about.compatible, version=about.version),
            running_model=ModelRef(name=self._compatible(), version=release.version) if release is not None else None,
            fencing_token=max(about.token, token),
            at=self._at(),
            code=code,
            reason=reason,
            attempt=job.tries if job is not None else 0,
            fetched_bytes=fetched_bytes or (job.fetched_bytes if job is not None else 0),
            full_bytes=full_bytes or (job.full_bytes if job is not None else 0),
            kind="os",
        )

    def _compatible(self) -> str:
        if self._status is not None:
            return self._status.compatible
        return self._around.release.compatible if self._around.release is not None else ""

    def _at(self) -> str:
        return rfc3339(self._around.wall_ns())
