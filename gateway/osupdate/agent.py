"""Updates of the system on one device: takes the bridge's or a person's wish, has it carried out, says how it stands.

One thread, `os-update`, does everything that takes long; wishes and questions come from any thread. What runs and what
the slots have is `slotwatch`'s, one update from step to step `carrying`'s, bundles `bringing`'s, words `telling`'s.
"""

import queue
import threading
from typing import Final

import msgspec
import structlog

from gateway.config import Os
from gateway.osupdate import journal as steps
from gateway.osupdate.around import Around
from gateway.osupdate.bringing import Bringing
from gateway.osupdate.bundles import Bundles
from gateway.osupdate.carrying import Carrying
from gateway.osupdate.errors import LeverError, OsUpdateError
from gateway.osupdate.journal import Job, Journal, Offered, Wish
from gateway.osupdate.levers import Levers
from gateway.osupdate.mediawatch import MediaWatch
from gateway.osupdate.rauc import Rauc, SystemStatus
from gateway.osupdate.release import SystemRelease
from gateway.osupdate.slotwatch import SlotWatch
from gateway.osupdate.telling import FAILED, Telling
from gateway.threads import in_thread
from gateway.wire.messages import OsState, Twin, UpdateState

log = structlog.get_logger()

TICK_SECONDS: Final = 1.0


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
        self._journal = journal
        self._around = around
        self._slots = SlotWatch(rauc, journal, around, refresh_seconds=settings.refresh_seconds)
        self._telling = telling = Telling(journal, self._slots, around)
        self._bringing = Bringing(settings, journal, rauc, bundles, telling=telling, around=around)
        self._carrying = Carrying(
            settings,
            journal,
            slots=self._slots,
            bringing=self._bringing,
            levers=levers,
            telling=telling,
            around=around,
        )
        self._media = MediaWatch(settings, journal, rauc, around)
        self._connects = -1
        self._asked: queue.SimpleQueue[Job | None] = queue.SimpleQueue()  # None: take back what is under way
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
        self._bringing.drop_all_but(book.wish.version if book.wish is not None else None)
        self._carrying.hurry()
        self._wake.set()

    def report(self, twin: Twin) -> Twin:
        """Add what is to be said of the system to a reported twin."""
        return self._telling.report(twin)

    def state(self) -> OsState | None:
        """Tell which system runs; None where no image says so."""
        return self._slots.state

    # ---- asked by people ----------------------------------------------------------------------------------

    def status(self) -> OsStatus:
        """Tell how it stands."""
        book = self._journal.book
        return OsStatus(
            system=self.state(),
            job=book.job,
            told=book.told,
            problem=self._slots.problem,
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
        self._ask(Job(compatible=compatible, version=version, origin="person", source=source))

    def cancel(self) -> None:
        """Take back, soon, what a person or a stick has begun and the device has not been restarted for.

        Raises:
            OsUpdateError: there is nothing like that.
        """
        require_cancellable(self._journal.book.job)
        self._ask(None)

    def _ask(self, request: Job | None) -> None:
        """Leave a person's wish for the thread, None: take back; it does not wait for a download."""
        self._asked.put(request)
        self._bringing.drop_all_but(None)
        self._wake.set()

    # ---- running ------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Work until cancelled.

        Raises:
            OsJournalError: the journal cannot be written; the component is started again.
        """
        self._stopping.clear()
        self._bringing.resume()
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
        self._bringing.stop()

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
            self._connects = connects
            self._carrying.hurry()
        self._slots.look()
        status = self._slots.status
        if status is None or self._around.release is None:
            return
        while not self._asked.empty():
            wanted = self._asked.get()
            if wanted is not None:
                self._begin(wanted)
            elif is_cancellable(self._journal.book.job):
                self._journal.change(steps.amend(cancelled=True))
                self._carrying.hurry()
        self._reconcile(status, self._around.release)
        if (found := self._media.look(status)) is not None:
            self._begin(found)
            self._media.note_begun(found)
        job = self._journal.book.job
        self._around.metrics.under_way(is_under_way=job is not None)
        if job is not None and not self._carrying.is_pausing:
            self._carrying.step(job, status, is_stopping=self._stopping.is_set())

    def _begin(self, job: Job) -> None:
        self._carrying.begin(job)
        self._wake.set()

    # ---- wishes -------------------------------------------------------------------------------------------

    def _reconcile(self, status: SystemStatus, release: SystemRelease) -> None:
        """Bring what is under way in line with what people and the bridge want."""
        book = self._journal.book
        wish, job = book.wish, book.job
        if job is not None and job.cancelled:
            self._let_go(job, status, job)
            return  # what the bridge wants is taken up afterwards
        if wish is None:
            if job is not None and job.origin == "cloud" and job.stage != "trial":
                self._let_go(job, status, job)
            return
        if job is not None:
            if job.version == wish.version and job.compatible == wish.compatible:
                if job.token != wish.token:
                    self._journal.change(steps.amend(token=wish.token))
                    self._telling.say_again(wish.token)
                return
            if job.origin != "cloud" and job.stage != "trial":
                return  # a person at the device comes first; the wish is taken up afterwards
            if not self._let_go(job, status, wish):
                return
        self._take_up(wish, status, release)

    def _take_up(self, wish: Wish, status: SystemStatus, release: SystemRelease) -> None:
        """Begin what the bridge wants while nothing is under way, or say why not."""
        telling = self._telling
        if wish.compatible != status.compatible:
            words = f"the image is for {wish.compatible}; this device is {status.compatible}"
            telling.say(wish, "refused", code="compatible", reason=words)
        elif wish.version == release.version:
            if not telling.has_told(wish, ("running",)):  # with what the update has cost, if there was one
                telling.say(wish, "running")
        elif (blocked := self._journal.book.is_blocked(wish.compatible, wish.version)) is not None:
            if not telling.has_told(wish, FAILED):
                telling.say(wish, "blocked", code=blocked.code, reason=blocked.reason)
        elif not telling.has_told(wish, FAILED):
            self._begin(Job(compatible=wish.compatible, version=wish.version, token=wish.token))

    def _let_go(self, job: Job, status: SystemStatus, about: Job | Wish) -> bool:
        """Give up what is under way, for another wish or for none; False: not yet."""
        if job.stage in ("installing", "installed", "restarting"):
            # What is installed would be started with the next restart, whenever that is.
            if self._carrying.is_pausing or self._carrying.was_tried(job, status):
                return False  # one that was tried comes to its end first, so that what is bad is known to be
            try:
                self._carrying.keep_running_system()
            except LeverError as error:
                words = f"{job.version} is installed and would start with the next restart: {error}"
                self._telling.say(about, "waiting", code=error.code, reason=words)
                return False
        self._carrying.withdraw(job)
        return True


def is_cancellable(job: Job | None) -> bool:
    """Tell whether what is under way may be taken back by a person here."""
    return job is not None and job.origin != "cloud" and job.stage != "trial"


def require_cancellable(job: Job | None) -> None:
    """Make sure that a person may take back what is under way. Raises OsUpdateError."""
    if job is None:
        raise OsUpdateError("nothing is under way that could be taken back; see `gateway os status`")
    if job.origin == "cloud":
        raise OsUpdateError(f"version {job.version} is assigned by the bridge: take the assignment back there")
    if job.stage == "trial":
        raise OsUpdateError(f"version {job.version} runs already; install the one that it is to be instead")
