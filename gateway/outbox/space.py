"""Room on the disk: when to checkpoint, and what to do when there is none."""

import time
from collections.abc import Callable
from typing import Final

import structlog

from gateway.outbox.ballast import Ballast
from gateway.outbox.database import Database
from gateway.outbox.faults import StoreFullError
from gateway.outbox.quota import Quotas
from gateway.outbox.stats import Tally
from gateway.wire.messages import CLASSES

log = structlog.get_logger()

CHECKPOINT_PAGES: Final = 1000
LEAST_CHECKPOINT_PAGES: Final = 250
"""Fewer do not pay: the two syncs of a checkpoint cost the same however little it moves."""
CHECKPOINT_TARGET_SECONDS: Final = 0.02
"""A record that comes during a checkpoint waits for its end; where they take longer, they are made smaller."""
PINNED_PAGES: Final = 16 * CHECKPOINT_PAGES
"""A WAL that could not be emptied for so long is worth a warning: somebody keeps a transaction open."""


class Space:
    """Keeps WAL and file within bounds. Belongs to the writer thread."""

    def __init__(
        self,
        database: Database,
        quotas: Quotas,
        ballast: Ballast,
        tally: Tally,
        checkpoint_pages: int,
        *,
        unpin: Callable[[], bool] = lambda: False,
    ) -> None:
        """`unpin` ends what reads the store in the background and keeps the WAL; it tells whether there was any."""
        self._unpin = unpin
        self._database = database
        self._quotas = quotas
        self._ballast = ballast
        self._tally = tally
        self._checkpoint_pages = self._checkpoint_due = self._most_pages = checkpoint_pages
        self._pinned = False
        self._without_reserve = False

    def meet_full_disk(self, error: StoreFullError) -> bool:
        """Stop growing and empty the WAL; True when that may have helped.

        A WAL that is shorter than it should be, because there has never been room for more, gets the ballast.

        Where only the page quota is exhausted nothing of this helps, and nothing is done.
        """
        if self._database.at_page_limit():
            return False
        self.note_full_disk(error)
        log_blocks = self._database.log_blocks
        extended = not log_blocks.extend() and log_blocks.extend_from_ballast()
        emptied = self._empty_log() or (self._unpin() and self._empty_log())
        self._database.freeze()
        return extended or emptied

    def _empty_log(self) -> bool:
        """Have the WAL written again from its beginning: no new blocks are needed from there on."""
        try:
            return self._database.checkpoint("RESTART")
        except StoreFullError:
            return False

    def give_ballast(self) -> bool:
        """Let the file grow, into a piece of the ballast if there is one left; False when there is none."""
        if self._database.at_page_limit():
            return False
        self._database.thaw()
        return self._ballast.give()

    def note_full_disk(self, error: StoreFullError) -> None:
        """Say once that the disk is full."""
        if not self._tally.disk_full:
            self._tally.disk_full = True
            log.error("disk_full_began", reason=str(error))

    def may_give_up(self) -> bool:
        """Tell whether there is anything that may be evicted to make room."""
        held = self._database.committed
        return any(held[name].rows for name in CLASSES if name != "critical" and self._quotas[name].on_full == "evict")

    def take_back(self) -> bool:
        """Make the ballast where it is missing; True when a full disk has room again."""
        if not self._tally.disk_full:
            if self._ballast.roomy():
                self._database.log_blocks.extend()
            self._note_reserve(there=self._ballast.restore())
            return False
        if not self._ballast.roomy() or not self._ballast.restore():
            return False
        self._database.thaw()
        self._tally.disk_full = False
        log.info("disk_full_ended")
        return True

    def _note_reserve(self, *, there: bool) -> None:
        """Say once that nothing is kept back for a full disk, and once that something is again."""
        if there != self._without_reserve:
            return
        self._without_reserve = not there
        if there:
            log.info("ballast_made")
        else:
            remedy = "free space on its file system, or lower outbox.ballast_bytes"
            log.warning("ballast_not_made", wanted_bytes=self._ballast.size_bytes, remedy=remedy)

    def checkpoint_if_due(self) -> None:
        """Empty the WAL after the receipts are out, never inside a commit."""
        pages = self._database.dirty_pages
        # On a full disk the WAL must not grow: its blocks are all there are.
        if not pages or (pages < self._checkpoint_due and not self._tally.disk_full):
            return
        began = time.monotonic()
        try:
            complete = self._database.checkpoint()
        except StoreFullError as error:
            self.meet_full_disk(error)
            return
        if complete:
            self._fit(time.monotonic() - began)
        # A reader held the WAL: try again a good deal later, not after every commit.
        self._checkpoint_due = self._checkpoint_pages + (0 if complete else pages)
        if complete and self._pinned:
            log.info("wal_released")
        elif not complete and pages > PINNED_PAGES and not self._pinned:
            log.warning("wal_pinned", pages=pages)
        self._pinned = not complete and (self._pinned or pages > PINNED_PAGES)

    def _fit(self, took_seconds: float) -> None:
        """Choose how much the next checkpoint may gather, by what this one took."""
        if took_seconds > CHECKPOINT_TARGET_SECONDS:
            self._checkpoint_pages = max(self._checkpoint_pages // 2, min(LEAST_CHECKPOINT_PAGES, self._most_pages))
        elif took_seconds < CHECKPOINT_TARGET_SECONDS / 4:
            self._checkpoint_pages = min(self._checkpoint_pages * 2, self._most_pages)
