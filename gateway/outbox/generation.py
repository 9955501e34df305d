"""One opening of one file, with all that depends on it: connections, writer, background check."""

import sqlite3
import threading
from collections.abc import Sequence
from dataclasses import dataclass

import structlog

from gateway.outbox.ages import Clocks
from gateway.outbox.ballast import Ballast
from gateway.outbox.claims import Claims
from gateway.outbox.damage import deep_check
from gateway.outbox.database import Database
from gateway.outbox.evictions import Evictor
from gateway.outbox.faults import DamagedStoreError
from gateway.outbox.mailbox import Mailbox, Submission
from gateway.outbox.opening import Opened
from gateway.outbox.quota import Quotas
from gateway.outbox.readers import Readers
from gateway.outbox.space import Space
from gateway.outbox.stats import Tally
from gateway.outbox.writer import OnCommit, Writer, abandon, confirm
from gateway.values import StoredRun
from gateway.wire.messages import RecordClass

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What outlives a generation."""

    quotas: Quotas
    mailbox: Mailbox
    ballast: Ballast
    tally: Tally
    clocks: Clocks
    checkpoint_pages: int
    on_commit: OnCommit | None


class Generation:
    """A store in use."""

    def __init__(self, opened: Opened, around: Surroundings) -> None:
        self.database = opened.database
        self.age = opened.age
        self._readers = Readers(self.database.file, self.database.epoch, self.database.options)
        self._claims = Claims(self.database.committed["critical"].highest)
        self._tally = around.tally
        self._writer = Writer(
            self.database,
            quotas=around.quotas,
            mailbox=around.mailbox,
            evictor=Evictor(self.database, around.quotas, self._claims, around.clocks.wall_ns),
            age=self.age,
            space=Space(
                self.database,
                around.quotas,
                around.ballast,
                around.tally,
                around.checkpoint_pages,
                unpin=self._end_check,
            ),
            tally=around.tally,
            wall_ns=around.clocks.wall_ns,
            uptime_ns=around.clocks.uptime_ns,
            on_commit=around.on_commit,
        )
        self._check: _Check | None = _Check(self.database, around.mailbox) if opened.unclean else None

    def work(self, mailbox: Mailbox) -> None:
        """Run the writer until the mailbox is closed, then close the file.

        Raises:
            OutboxError: the file or the disk is broken; nothing is closed then.
        """
        self._writer.run()
        self._stop_reading()
        abandon(self.leftovers(mailbox), mailbox, "its class is full")
        self._writer.finish()

    def read(self, record_class: RecordClass, after_seq: int, max_records: int, max_bytes: int) -> StoredRun | None:
        """Read rows that are committed; errors as `Readers.rows`."""
        held = self.database.committed[record_class]
        if not held.rows or held.highest <= after_seq:
            return None
        up_to = self._claims.claim(held.highest) if record_class == "critical" else held.highest
        base, rows = self._readers.rows(record_class, after_seq, up_to, max_records, max_bytes)
        return StoredRun(record_class, self.database.epoch, base, tuple(rows)) if rows else None

    def release(self) -> None:
        """Close all connections, after a failure."""
        self._stop_reading()
        self.database.let_go()

    def leftovers(self, mailbox: Mailbox) -> Sequence[Submission]:
        """Take what the writer still had in hand."""
        batch, self._writer.unsettled = self._writer.unsettled, None
        parked, self._writer.parked = mailbox.unpark(self._writer.parked), []
        return [*parked, *(batch.candidates if batch is not None else ())]

    def has_stored(self, successor: Database) -> bool:
        """Tell whether the transaction that failed has come into the file after all.

        Ask before anything is written into the file again. Each row is compared: a file that has lost its end, or an
        older copy of it, gives the numbers of that transaction to other rows, as to a notice that says so.
        """
        batch = self._writer.unsettled
        return (
            batch is not None
            and bool(batch.submissions)
            and self.database.epoch == successor.epoch
            and len(batch.firsts) == len(batch.rows)
            and all(successor.holds(name, first, batch.rows[name]) for name, first in batch.firsts.items())
        )

    def hand_over(self, mailbox: Mailbox, *, stored: bool) -> None:
        """Give what the writer had in hand to the next generation; what is `stored` gets its receipts."""
        batch = self._writer.unsettled
        waiting = self.leftovers(mailbox)
        mailbox.park((), frozenset())
        self._tally.refusing = frozenset()
        if stored and batch is not None:
            upcoming = dict(batch.firsts)
            settled = {id(submission) for submission in batch.submissions}
            mailbox.settled(batch.submissions)
            for submission in batch.submissions:
                confirm(submission, self.database.epoch, upcoming)
            waiting = [submission for submission in waiting if id(submission) not in settled]
        mailbox.put_back(waiting)

    def _end_check(self) -> bool:
        """End the background check; True when it was running."""
        if self._check is None:
            return False
        ended_early = self._check.stop()
        self._check = None
        if ended_early:
            log.info("deep_check_ended_early", file=str(self.database.file))
        return ended_early

    def _stop_reading(self) -> None:
        self._end_check()
        self._readers.close()


class _Check:
    """Reads a store through that was not closed properly, beside everything else."""

    def __init__(self, database: Database, mailbox: Mailbox) -> None:
        self._database = database
        self._mailbox = mailbox
        self._lock = threading.Lock()
        self._connection: sqlite3.Connection | None = None
        self._stopped = False
        self._thread = threading.Thread(target=self._run, name="outbox-check", daemon=True)
        self._thread.start()

    def stop(self) -> bool:
        """End the check early and wait for its end; True when there was something to end."""
        with self._lock:
            self._stopped = True
            if self._connection is not None:
                self._connection.interrupt()
        running = self._thread.is_alive()
        self._thread.join()
        return running

    def _run(self) -> None:
        verdict = deep_check(self._database.file, self._begins, self._database.options)
        with self._lock:
            self._connection = None
            if self._stopped or verdict is None:
                return
        self._mailbox.report(DamagedStoreError(f"{self._database.file}: {verdict}"))

    def _begins(self, connection: sqlite3.Connection) -> bool:
        with self._lock:
            self._connection = None if self._stopped else connection
            return not self._stopped
