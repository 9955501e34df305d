"""The slots as RAUC told them last: looked at now and then, more often while an update is under way."""

from collections.abc import Mapping
from typing import Final

import structlog

from gateway.osupdate import journal as steps
from gateway.osupdate.around import Around
from gateway.osupdate.journal import Book, Journal
from gateway.osupdate.rauc import Rauc, SystemStatus
from gateway.osupdate.release import SystemRelease
from gateway.ota.errors import OtaError
from gateway.wire.messages import OsState
from gateway.wire.times import rfc3339

log = structlog.get_logger()

LOOK_SECONDS: Final = 5.0
"""Between two looks at the slots while an update is under way."""
LOOK_PAUSE: Final = 4.0
"""A look starts half a dozen programs; between two of them is at least so many times what the last one took."""


class SlotWatch:
    """Looks at the slots. Belongs to the thread of the updates; what it has seen may be read from any."""

    def __init__(self, rauc: Rauc, journal: Journal, around: Around, *, refresh_seconds: float) -> None:
        """Take parts; nothing is asked yet. refresh_seconds: between two looks while nothing is under way."""
        self._rauc = rauc
        self._journal = journal
        self._around = around
        self._refresh_seconds = refresh_seconds
        self._looked_at: float | None = None
        self._look_took = 0.0
        self.status: SystemStatus | None = None
        self.problem = ""  # with RAUC

    @property
    def compatible(self) -> str:
        """The kind of device this is; "" where nothing says so."""
        if self.status is not None:
            return self.status.compatible
        return self._around.release.compatible if self._around.release is not None else ""

    @property
    def state(self) -> OsState | None:
        """Which system runs; None where no image says so."""
        return system_state(self._around.release, self.status, self._journal.book)

    def soon(self) -> None:
        """Have the next look come at once."""
        self._looked_at = None

    def look(self) -> None:
        """Ask RAUC, if it is time; what is seen in the running slot is remembered in the journal.

        Raises:
            OsJournalError: the journal cannot be written.
        """
        now, job = self._around.monotonic(), self._journal.book.job
        every = max(LOOK_SECONDS, LOOK_PAUSE * self._look_took) if job is not None else self._refresh_seconds
        if self._looked_at is not None and now - self._looked_at < every:
            return
        try:
            self.status = self._rauc.status()
        except OtaError as error:
            self._looked(now)
            if self.problem != str(error):
                log.warning("os_slots_not_known", code=error.code, error=str(error))
            self.problem = str(error)
            return
        self._looked(now)
        if self.problem:
            log.info("os_slots_known_again")
        self.problem = ""
        if self._around.release is not None and self.status.booted:
            self._runs_in(self.status.booted, self._around.release.version)

    def _runs_in(self, slot: str, version: str) -> None:
        """Remember which slot runs; say so where no update has led there."""
        book = self._journal.book
        left = steps.slot_left(book, slot)
        words = (
            f"version {version} in slot {slot} was started, without an update, and not {book.slots.get(left, '')} in "
            f"slot {left}, which ran before: that one could not start any more, or somebody has chosen this one"
        )
        self._journal.change(steps.runs_in(slot, version, rfc3339(self._around.wall_ns()), left, words))
        if left:
            log.error("os_other_slot", slot=slot, version=version, left=left)
            self._around.note("os_other_slot", "error", words)

    def _looked(self, began: float) -> None:
        self._looked_at = self._around.monotonic()
        self._look_took = self._looked_at - began


def system_state(release: SystemRelease | None, status: SystemStatus | None, book: Book) -> OsState | None:
    """Tell which system runs and what the other slot has; None where no image says what runs. Pure.

    Args:
        release: what the running image says of itself.
        status: what RAUC says of the slots, None while it does not answer.
        book: which version was last seen in which slot, for slots of which RAUC does not know it.
    """
    if release is None:
        return None
    running, other = (status.running, status.other) if status is not None else (None, None)
    seen: Mapping[str, str] = book.slots
    return OsState(
        compatible=status.compatible if status is not None else release.compatible,
        version=release.version,
        commit=release.commit,
        slot=running.bootname if running is not None else "",
        floor=release.floor,
        good=running.good if running is not None else None,
        other_slot=other.bootname if other is not None else "",
        other_version=(other.version or seen.get(other.bootname, "")) if other is not None else "",
        other_good=other.good if other is not None else None,
        offered_version=book.offered.version if book.offered is not None else "",
    )
