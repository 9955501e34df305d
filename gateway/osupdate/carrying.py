"""Carries an update of the system out, one step at a time. What is next is decided in `plan`.

Each step is in the journal before it is taken, because the step that matters ends this program.
"""

from pathlib import Path
from typing import Final

import msgspec
import structlog

from gateway.config import Os
from gateway.osupdate import journal as steps
from gateway.osupdate.around import Around
from gateway.osupdate.bringing import Bringing
from gateway.osupdate.errors import (
    BelowFloorError,
    BundleRefusedError,
    InstallFailedError,
    LeverError,
    RaucUnavailableError,
    StreamingFailedError,
)
from gateway.osupdate.journal import Job, Journal
from gateway.osupdate.levers import Levers
from gateway.osupdate.plan import (
    MAX_INSTALLS,
    MAX_SOURCE_TRIES,
    Bring,
    FellBack,
    Hold,
    Install,
    OnTrial,
    Proven,
    Restart,
    Seen,
    Started,
    next_step,
)
from gateway.osupdate.rauc import SystemStatus
from gateway.osupdate.release import BundleFacts
from gateway.osupdate.slotwatch import SlotWatch
from gateway.osupdate.telling import Telling
from gateway.ota.errors import NotOfferedError, OtaError, StoppedError, TrustError
from gateway.wire.messages import UpdatePhase

log = structlog.get_logger()

RESTART_AGAIN_SECONDS: Final = 300.0
"""A restart that was asked for and has not come in this time is asked for again."""
_HIDDEN: Final = ("/tmp/", "/var/tmp/", "/home/", "/root/", "/run/user/")  # noqa: S108 - named, not used
"""What a hardened unit has a folder of its own for, or none (PrivateTmp=, ProtectHome=)."""
FIRST_RETRY_SECONDS: Final = 5.0
MAX_RETRY_SECONDS: Final = 3600.0


class Carrying:
    """The update under way. Belongs to the thread of the updates, `hurry` excepted.

    Every method may raise OsJournalError: the journal cannot be written.
    """

    def __init__(
        self,
        settings: Os,
        journal: Journal,
        *,
        slots: SlotWatch,
        bringing: Bringing,
        levers: Levers,
        telling: Telling,
        around: Around,
    ) -> None:
        self._settings = settings
        self._journal = journal
        self._slots = slots
        self._bringing = bringing
        self._levers = levers
        self._telling = telling
        self._around = around
        self._pause_until = 0.0
        self._failures = 0
        self._pulled_at: float | None = None
        self._flush_since: float | None = None

    @property
    def is_pausing(self) -> bool:
        """Whether the next try is to wait."""
        return self._around.monotonic() < self._pause_until

    def hurry(self) -> None:
        """Wait no longer for the next try; any thread."""
        self._pause_until = 0.0

    # ---- beginning and giving up ----------------------------------------------------------------------------

    def begin(self, job: Job) -> None:
        """Begin an update in the place of any other."""
        self._journal.change(steps.begin(job, self._telling.now()))
        self._failures, self._pause_until, self._flush_since = 0, 0.0, None
        self._bringing.forget()
        log.info("os_update_wanted", version=job.version, origin=job.origin, source=job.source)
        self._telling.say(job, "waiting")

    def withdraw(self, job: Job) -> None:
        """Give the update up: nobody wants it any more."""
        self._journal.change(steps.end("withdrawn", self._telling.now()))
        log.info("os_update_withdrawn", version=job.version, stage=job.stage)
        self._around.metrics.outcome("withdrawn")
        self._clear()

    def keep_running_system(self) -> None:
        """Have what runs started again next, in the place of what was installed.

        Raises:
            LeverError: that was not done; it is tried again after a pause.
        """
        try:
            self._levers.pull("keep")
        except LeverError as error:
            self._later(error)
            raise

    # ---- steps ----------------------------------------------------------------------------------------------

    def step(self, job: Job, status: SystemStatus, *, is_stopping: bool) -> None:
        """Take the next step, if it is time for one."""
        step = next_step(job, self._seen(job, status))
        try:
            match step:
                case Bring():
                    self._bring(job, status)
                case Install():
                    self._install(job, status)
                case Hold(code, reason):
                    self._telling.say(job, "waiting", code=code, reason=reason)
                case Restart():
                    self._restart(job)
                case Started():
                    self._started(job, status)
                case OnTrial(reason):
                    self._telling.say(job, "trial", reason=reason)
                case Proven():
                    self._proven(job)
                case FellBack(code, reason):
                    self._fell_back(job, code, reason)
        except StoppedError:
            if not is_stopping:
                self._bringing.resume()  # only what was being fetched is not wanted any more
        except BundleRefusedError as error:
            self._refuse(job, error)
        except OtaError as error:
            self._postpone(job, error)

    def was_tried(self, job: Job, status: SystemStatus) -> bool:
        """Tell whether the device was restarted for it since, so that what came of it is to be said next."""
        return isinstance(next_step(job, self._seen(job, status)), Started | FellBack)

    def _seen(self, job: Job, status: SystemStatus) -> Seen:
        release, around = self._around.release, self._around
        return Seen(
            boot_id=around.boot_id,
            version=release.version if release is not None else "",
            slot=status.booted,
            primary=status.primary,
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
        facts, full_bytes = self._bringing.bring(job, status)
        self._failures = 0
        self._telling.reach(
            "ready", "fetched", floor=facts.floor, pcr11=dict(facts.pcr11), full_bytes=full_bytes or job.full_bytes
        )

    def _return_to_other(self, job: Job, status: SystemStatus) -> bool:
        """Have the other slot started next if it has what is wanted already, as when an update is taken back."""
        other = status.other
        if other is None or job.origin != "cloud" or not other.complete or other.good is False:
            return False
        if other.bootname == self._journal.book.left:
            return False  # it ran, and could not start any more: it is written anew
        if (other.version or self._journal.book.slots.get(other.bootname)) != job.version:
            return False
        self._bringing.require(job, BundleFacts(job.compatible, job.version), status)
        if why := self._around.outgrown(other.bootname):
            raise BelowFloorError(why)  # it would start without a trial, and without a key for its models
        try:
            self._levers.pull("return")
        except LeverError as error:
            log.warning("os_slot_not_chosen", slot=other.bootname, version=job.version, error=str(error))
            return False
        self._installed(job, status)
        return True

    def _install(self, job: Job, status: SystemStatus) -> None:
        if status.other is None:
            raise RaucUnavailableError("RAUC knows no slot that a bundle could go to")
        release = self._around.release
        self._telling.reach(
            "installing",
            from_version=release.version if release is not None else "",
            from_slot=status.booted,
            to_slot=status.other.bootname,
        )
        self._telling.say(job, "checking", code="installing")
        log.info("os_install_begins", version=job.version, slot=status.other.bootname)
        told = [-100]

        def progress(percent: int, words: str) -> None:
            if percent - told[0] >= 20:
                told[0] = percent
                log.info("os_installing", version=job.version, percent=percent, step=words)

        self._slots.soon()
        self._bringing.install(job, progress)
        self._journal.change(steps.installed_in(status.other.bootname, job.version))
        self._installed(job, status)

    def _installed(self, job: Job, status: SystemStatus) -> None:
        assert status.other is not None
        health = self._around.health()
        self._journal.change(steps.found_in(status.other.bootname, job.version))
        self._telling.reach(
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
        self._telling.say(job, "checking", code="approval" if missing else "installed", reason=missing)

    def _restart(self, job: Job) -> None:
        now = self._around.monotonic()
        if self._pulled_at is not None and now - self._pulled_at < RESTART_AGAIN_SECONDS:
            return
        health = self._around.health()
        self._telling.reach(
            "restarting", "restarting", restarts=job.restarts + 1, health_at=health.at if health is not None else ""
        )
        self._telling.say(job, "checking", code="restarting")
        log.info("os_restarts", version=job.version, attempt=job.restarts + 1)
        self._pulled_at = now
        try:
            self._levers.pull("restart")
        except LeverError:
            self._pulled_at = None
            self._telling.reach("installed", restarts=job.restarts)
            raise

    def _started(self, job: Job, status: SystemStatus) -> None:
        self._telling.reach("trial", "started", to_slot=status.booted)
        log.info("os_started", version=job.version, slot=status.booted)
        self._telling.say(job, "trial", reason="its health is being watched")

    # ---- how it ends ----------------------------------------------------------------------------------------

    def _proven(self, job: Job) -> None:
        self._telling.end("proven", self._telling.word(job, "running"))
        log.info("os_proven", version=job.version)
        self._around.note("os_proven", "info", f"the device runs version {job.version}, marked good")
        self._around.metrics.outcome("proven")
        self._clear()

    def _fell_back(self, job: Job, code: str, reason: str) -> None:
        self._telling.end("reverted", self._telling.word(job, "reverted", code=code, reason=reason))
        log.error("os_reverted", version=job.version, code=code, reason=reason)
        self._around.note("os_reverted", "error", f"version {job.version}: {reason}")
        self._around.metrics.outcome("reverted")
        self._clear()

    def _refuse(self, job: Job, error: BundleRefusedError) -> None:
        self._telling.end("refused", self._telling.word(job, "refused", code=error.code, reason=str(error)))
        log.error("os_refused", version=job.version, code=error.code, reason=str(error))
        self._around.note("os_refused", "error", f"version {job.version}: {error}")
        self._around.metrics.outcome("refused")
        self._clear()

    def _postpone(self, job: Job, error: OtaError) -> None:
        self._around.metrics.failed(error.code)
        gone = _is_gone(job.source)
        if isinstance(error, InstallFailedError) and not gone:
            book = self._journal.change(steps.amend(installs=job.installs + 1, stage="ready"))
            if book.job is not None and book.job.installs >= MAX_INSTALLS:
                why = f"{MAX_INSTALLS} tries to install it failed, the last one so: {error}"
                if job.source:
                    self._give_up(book.job, error, why)  # a bad medium says nothing of what the bridge may want
                else:
                    self._refuse(job, BundleRefusedError(why))
                return
        elif job.stage in ("ready", "installing"):
            is_here = (bool(job.source) and not gone) or self._bringing.is_at_hand
            self._journal.change(steps.amend(stage="ready" if is_here else "wanted"))
        now = self._journal.book.job
        if now is not None and now.source and now.stage == "wanted" and now.tries >= MAX_SOURCE_TRIES:
            why = f"it was looked for {now.tries} times, the last one so: {error}"
            why += f"; begin it again when {now.source} is there"
            if now.source.startswith(_HIDDEN):
                why += "; the gateway's service does not see that folder: put it on a medium, or below /data"
            self._give_up(now, error, why)
            return
        told = self._journal.book.told
        if told is None or (told.code, told.reason) != (error.code, str(error)):
            log.warning("os_update_waits", version=job.version, code=error.code, reason=str(error))
        self._later(error)
        # The list of the repository, or who stands between, may be another one the next time.
        phase: UpdatePhase = "refused" if isinstance(error, TrustError) else "waiting"
        self._telling.say(job, phase, code=error.code, reason=str(error))

    def _give_up(self, job: Job, error: OtaError, reason: str) -> None:
        """End an update whose bundle is nowhere or unreadable: it must not be in the way of what the bridge wants."""
        word = self._telling.word(job, "refused", code=error.code, reason=reason)
        # Under no token: it is no answer to a wish for the same version, which has another source.
        self._telling.end("given-up", msgspec.structs.replace(word, fencing_token=0), blocks=False)
        log.warning("os_given_up", version=job.version, source=job.source, code=error.code, reason=str(error))
        self._around.note("os_given_up", "warning", f"version {job.version}: {reason}")
        self._around.metrics.outcome("given-up")
        self._clear()

    def _later(self, error: OtaError) -> None:
        self._failures += 1
        # The first streaming after a boot fails by chance (a race in RAUC before 1.15): the next try is soon.
        first = 1.0 if isinstance(error, StreamingFailedError) else FIRST_RETRY_SECONDS
        delay = min(MAX_RETRY_SECONDS, first * 2.0 ** min(self._failures - 1, 20))
        if isinstance(error, NotOfferedError):
            delay = max(delay, 60.0)
        self._pause_until = self._around.monotonic() + delay * (0.5 + 0.5 * self._around.draw())

    def _clear(self) -> None:
        self._pulled_at, self._flush_since, self._failures = None, None, 0
        self._slots.soon()
        self._bringing.clear()


def _is_gone(source: str) -> bool:
    """Tell whether a bundle that a person or a stick has named is not there any more."""
    return bool(source) and "://" not in source and not Path(source).exists()
