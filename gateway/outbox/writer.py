"""The writer's loop: commits what is waiting, lets go what is acknowledged, keeps the file in order.

Group commit without waiting: the first entry is committed at once, and what arrives during its commit makes up the
next one. Under load the batches grow by themselves; on an idle gateway an entry is durable after one sync.
"""

import functools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final

import structlog

from gateway.errors import OutboxError
from gateway.outbox.ages import AgeClock
from gateway.outbox.database import Database, Row
from gateway.outbox.evictions import Evictor, LossLog, row_of
from gateway.outbox.faults import StoreFaultError, StoreFullError
from gateway.outbox.mailbox import BATCH_ENTRIES, Lead, Mailbox, Submission, Work
from gateway.outbox.opening import close_store, remember_age
from gateway.outbox.quota import Amount, Quotas, admit, overflow
from gateway.outbox.space import Space
from gateway.outbox.stats import Tally
from gateway.values import Receipt
from gateway.wire.messages import CLASSES, Notice, RecordClass
from gateway.wire.times import rfc3339

log = structlog.get_logger()

TICK_SECONDS: Final = 1.0
FULL_PAUSE_SECONDS: Final = 1.0
SAVE_AGE_MS: Final = 60_000
RELIEF_ATTEMPTS: Final = 8
LEAST_RELIEF_BYTES: Final = 64 * 1024
SLICE_TARGET_SECONDS: Final = 0.008
"""What one slice of deletions may take: a fresh entry waits no longer for it."""
SLICE_ROWS: Final = (64, 20_000)
BELIEVED_LEAD: Final = 1 << 24
"""A mark further above everything stored than this is nonsense, not the sign of a lost tail."""

OnCommit = Callable[[frozenset[RecordClass]], None]


@dataclass(slots=True)
class Batch:
    """What one transaction stores, out of `candidates`."""

    candidates: Sequence[Submission]
    submissions: tuple[Submission, ...]
    rows: Mapping[RecordClass, Sequence[Row]]
    firsts: dict[RecordClass, int] = field(default_factory=dict)  # known once the rows are in

    @classmethod
    def of(cls, candidates: Sequence[Submission], accepted: tuple[Submission, ...]) -> "Batch":
        rows: dict[RecordClass, list[Row]] = {}
        for submission in accepted:
            for record_class, row in submission.rows:
                rows.setdefault(record_class, []).append(row)
        return cls(candidates, accepted, rows)

    def amount(self, record_class: RecordClass) -> Amount:
        rows = self.rows[record_class]
        return Amount(len(rows), sum(row[0] for row in rows))

    def disk_bytes(self) -> int:
        return sum(self.amount(name).disk_bytes for name in self.rows)


class Writer:
    """One opening of the store; `run` is what the writer thread does with it."""

    def __init__(
        self,
        database: Database,
        *,
        quotas: Quotas,
        mailbox: Mailbox,
        evictor: Evictor,
        age: AgeClock,
        space: Space,
        tally: Tally,
        wall_ns: Callable[[], int],
        uptime_ns: Callable[[], int],
        on_commit: OnCommit | None,
    ) -> None:
        self._database = database
        self._quotas = quotas
        self._mailbox = mailbox
        self._evictor = evictor
        self._age = age
        self._space = space
        self._tally = tally
        self._wall_ns = wall_ns
        self._uptime_ns = uptime_ns
        self._on_commit = on_commit
        self._opened_at = {name: held.highest for name, held in database.committed.items()}
        self._followed: dict[RecordClass, int] = {}
        self._marks: dict[RecordClass, int] = {}
        self._slice_rows = 1000
        self._saved_age_ms = age.now_ms()
        self._next_tick = 0.0
        self._more_to_evict = False
        self._losses = LossLog()
        self._stuck_until = 0.0
        self._most_at_once = BATCH_ENTRIES  # submissions in one transaction; fewer where the disk is full
        self._displaced = False  # the file has lost its name, and could not be saved yet
        self._freed = False  # something went since the parked ones were asked last
        self.parked: list[Submission] = []  # their class is full and refuses
        self.unsettled: Batch | None = None  # in a transaction that failed: stored or not, only the file can tell

    def run(self) -> None:
        """Work until the mailbox closes and everything is stored, or nothing more can be.

        Raises:
            DamagedStoreError: the file is broken.
            StoreFaultError: the disk failed.
        """
        while True:
            stuck = time.monotonic() < self._stuck_until
            work = self._mailbox.take(self._pause_seconds(), submissions=not stuck)
            self._note(work)
            self._answer(work.leads)
            self._store(work.submissions)
            self._release_acknowledged()
            self._tick_if_due()
            self._space.checkpoint_if_due()
            more = work.submissions or (self._freed and self.parked)
            if work.closing and (stuck or not more):
                return

    def finish(self) -> None:
        """Carry out the acknowledgements that are left and close the file as a whole."""
        try:
            while self._marks and time.monotonic() >= self._stuck_until:
                self._release_acknowledged()
            close_store(self._database, self._age)
        except StoreFullError as error:
            log.warning("outbox_closed_on_full_disk", reason=str(error))
            self._database.let_go()

    def _pause_seconds(self) -> float:
        if (self._marks or self._more_to_evict) and time.monotonic() >= self._stuck_until:
            return 0.0
        if self._freed and self.parked:
            return 0.0
        return max(0.0, min(self._next_tick - time.monotonic(), TICK_SECONDS))

    def _note(self, work: Work) -> None:
        if work.damage is not None:
            self.unsettled = Batch.of(work.submissions, ())
            raise work.damage
        for (record_class, epoch), mark in work.marks.items():
            if epoch == self._database.epoch:
                self._marks[record_class] = max(mark, self._marks.get(record_class, 0))
            else:  # it was accepted while the file it speaks of was being replaced; these rows have other contents
                self._tally.ignored_acks += 1

    # ---- storing ---------------------------------------------------------------------------------

    def _store(self, fresh: Sequence[Submission]) -> None:
        asked_again = self._freed and bool(self.parked)
        candidates = [*self._mailbox.unpark(self.parked), *fresh] if asked_again else fresh
        if len(candidates) > self._most_at_once:
            self._mailbox.put_back(candidates[self._most_at_once :])
            candidates = candidates[: self._most_at_once]
        self._freed = False
        if not candidates and not asked_again:
            return
        blocked: frozenset[RecordClass] = frozenset() if asked_again else self._tally.refusing
        admission = admit(self._quotas, self._database.committed, candidates, blocked)
        if asked_again:
            self.parked = []
        batch = Batch.of(candidates, admission.accepted)
        if batch.submissions:
            self.unsettled = batch
            try:
                evicted = self._commit(batch)
            except StoreFullError as error:
                self.unsettled = None
                self._wait_for_room(candidates, error)
                return
            self.unsettled = None
            self._most_at_once = min(2 * self._most_at_once, BATCH_ENTRIES)
        if admission.deferred:
            self._mailbox.put_back(admission.deferred)
        if admission.refused or asked_again:
            self._park([*self.parked, *admission.refused])
        if batch.submissions:
            self._confirm(batch, evicted)

    def _commit(self, batch: Batch) -> frozenset[RecordClass]:
        """Store a batch; where the disk is full, make room for it.

        Raises:
            StoreFullError: nothing more may be given up.
        """
        relief_bytes = 0
        for attempt in range(RELIEF_ATTEMPTS):
            try:
                return self._transact(batch, relief_bytes)
            except StoreFullError as error:
                failure = error
            if attempt == 0 and self._space.meet_full_disk(failure):
                continue  # the log is empty, there may be room without giving anything up
            relief_bytes = max(2 * relief_bytes, 2 * batch.disk_bytes(), LEAST_RELIEF_BYTES)
            if not self._space.may_give_up():
                break
        if len(batch.submissions) > 1:
            raise failure  # fewer of them may find room
        # The file may grow into the ballast once nothing else can make room.
        while True:
            gave = self._space.give_ballast()
            try:
                return self._transact(batch, 0)
            except StoreFullError:
                if not gave:
                    raise

    def _transact(self, batch: Batch, relief_bytes: int) -> frozenset[RecordClass]:
        stored_ms = self._age.now_ms()
        touched = set(batch.rows)
        with self._evicting(touched):
            if relief_bytes:
                self._evictor.free(relief_bytes, stored_ms)
            for record_class, rows in batch.rows.items():
                self._evictor.make_room(record_class, batch.amount(record_class), stored_ms)
                batch.firsts[record_class] = self._database.insert(record_class, rows, stored_ms)
            if stored_ms - self._saved_age_ms >= SAVE_AGE_MS:
                remember_age(self._database, self._age)
        if stored_ms - self._saved_age_ms >= SAVE_AGE_MS:
            self._saved_age_ms = stored_ms
        return frozenset(touched)

    @contextmanager
    def _evicting(self, touched: set[RecordClass]) -> Iterator[None]:
        """A transaction in which rows may be given up; `touched` receives where their records went."""
        try:
            with self._database.transaction():
                yield
        except BaseException:
            self._evictor.settle(committed=False)
            raise
        for eviction in self._evictor.settle(committed=True):
            touched.add("critical")
            self._freed = True
            self._tally.classes[eviction.record_class].evicted += eviction.count
            self._losses.note(eviction, time.monotonic())

    def _confirm(self, batch: Batch, touched: frozenset[RecordClass]) -> None:
        now_ns = self._uptime_ns()
        self._tally.commits += 1
        for record_class in batch.rows:
            self._tally.stored(record_class, batch.amount(record_class), now_ns)
        self._mailbox.settled(batch.submissions)
        upcoming = dict(batch.firsts)
        for submission in batch.submissions:
            confirm(submission, self._database.epoch, upcoming)
        self._announce(touched)

    def _announce(self, touched: frozenset[RecordClass]) -> None:
        if self._on_commit is not None:
            guarded(functools.partial(self._on_commit, touched))

    def _park(self, parked: list[Submission]) -> None:
        self.parked = parked
        refusing = frozenset(name for submission in parked for name in submission.amounts)
        if refusing != self._tally.refusing:
            log.warning("classes_refusing", classes=sorted(refusing)) if refusing else log.info("classes_accepting")
        self._tally.refusing = refusing
        self._mailbox.park(parked, refusing)

    # ---- a full disk -----------------------------------------------------------------------------

    def _wait_for_room(self, candidates: Sequence[Submission], error: StoreFullError) -> None:
        """Keep what cannot be stored now, in order; its producers wait, unless less at once may find room."""
        self._space.note_full_disk(error)
        waiting = self._mailbox.unpark(self.parked)
        self._park([])
        self._mailbox.put_back([*waiting, *candidates])
        if len(candidates) > 1:
            self._most_at_once = len(candidates) // 4 + 1
        else:
            self._stuck_until = time.monotonic() + FULL_PAUSE_SECONDS

    # ---- acknowledgements ------------------------------------------------------------------------

    def _release_acknowledged(self) -> None:
        """Delete one slice of what the bridge has; the rest waits for its turn behind fresh entries."""
        for record_class in CLASSES:
            mark = self._marks.get(record_class)
            if mark is None:
                continue
            if mark > self._database.committed[record_class].highest:
                mark = self._marks[record_class] = self._follow(record_class, mark)
            held = self._database.committed[record_class]
            if not held.rows or held.lowest > mark:
                del self._marks[record_class]
                continue
            try:
                self._delete(record_class, min(mark, held.lowest + self._slice_rows - 1))
            except StoreFullError as error:
                helped = self._space.meet_full_disk(error)
                if not helped or self._slice_rows == SLICE_ROWS[0]:
                    self._stuck_until = time.monotonic() + FULL_PAUSE_SECONDS
                self._slice_rows = SLICE_ROWS[0]
            return

    def _delete(self, record_class: RecordClass, last: int) -> None:
        began = time.monotonic()
        with self._database.lazily():
            amount = self._database.amount_up_to(record_class, last)
            self._database.remove(record_class, last, amount)
        self._freed = True
        self._stuck_until = 0.0
        self._tally.acknowledged(record_class, amount, self._uptime_ns())
        took = time.monotonic() - began
        least, most = SLICE_ROWS
        if took > SLICE_TARGET_SECONDS:
            self._slice_rows = max(least, self._slice_rows // 2)
        elif took < SLICE_TARGET_SECONDS / 4:
            self._slice_rows = min(most, self._slice_rows * 2)

    def _answer(self, leads: Sequence[Lead]) -> None:
        """Decide about marks of rows that are not in this file, before anything fresh gets a number."""
        for lead in leads:
            if lead.epoch != self._database.epoch:
                self._tally.ignored_acks += 1
                lead.done(False)  # noqa: FBT003 - the answer itself
                continue
            try:
                lead.done(self._may_follow(lead.record_class, lead.mark))
            except StoreFullError as error:
                self._space.meet_full_disk(error)
                lead.done(error)

    def _may_follow(self, record_class: RecordClass, mark: int) -> bool:
        if mark <= self._followed.get(record_class, 0):
            return True  # asked again, after an answer that came too late
        if mark <= self._opened_at[record_class]:
            return False
        return self._renumber(record_class, mark)

    def _follow(self, record_class: RecordClass, mark: int) -> int:
        """Deal with an acknowledgement above everything stored; return the mark up to which rows may go.

        The uplink has had the rows up to the mark confirmed, and then the file was opened again and had lost them.
        """
        return mark if self._renumber(record_class, mark) else 0

    def _renumber(self, record_class: RecordClass, mark: int) -> bool:
        """Give what was stored since the file was opened new numbers: the bridge has rows that this file has lost.

        A disk that lies about its flushes, or a restored copy of the file, does that. The numbers of the fresh rows are
        known to the bridge for other rows, and they would be taken for duplicates, or for the rows of a clone. The new
        ones are above the mark and above all that were ever given here: no number is used twice.

        Returns whether the mark is believed.
        """
        highest = self._database.committed[record_class].highest
        if mark - highest > BELIEVED_LEAD:
            log.error("ack_ignored", record_class=record_class, mark=mark, highest=highest)
            self._tally.ignored_acks += 1
            return False
        first = self._opened_at[record_class] + 1
        above = max(mark, highest)
        notice = Notice(
            code="store_rolled_back",
            severity="error",
            detail=f"the cloud has other records of class {record_class} up to number {mark} than this store, opened "
            f"at {first - 1}: an older copy of it was put back, its disk lost writes, or it was cloned; "
            f"rows from {first} are numbered again from {above + 1}",
            at=rfc3339(self._wall_ns()),
        )
        with self._database.transaction():
            moved = self._database.renumber(record_class, first, highest, above=above)
            self._database.insert("critical", [row_of("notice", notice, self._wall_ns())], self._age.now_ms())
        self._opened_at[record_class] = self._followed[record_class] = above
        log.error("store_rolled_back", record_class=record_class, mark=mark, highest=highest, moved=moved)
        self._announce(frozenset({record_class, "critical"}))
        return True

    # ---- housekeeping ----------------------------------------------------------------------------

    def _tick_if_due(self) -> None:
        now = time.monotonic()
        if now < self._next_tick and not self._more_to_evict:
            return
        self._next_tick = now + TICK_SECONDS
        self._check_place()
        self._losses.tell_ended(now)
        self._freed = self._freed or bool(self.parked)
        try:
            self._evict_old_and_excess()
        except StoreFullError as error:
            self._more_to_evict = False
            self._space.meet_full_disk(error)
        if self._space.take_back():
            self._stuck_until = 0.0

    def _check_place(self) -> None:
        """Notice a file that somebody has deleted or replaced: what goes into it would be gone with this process.

        Raises:
            StoreFaultError: it was; everything in it has been saved for the next opening.
        """
        if self._database.still_in_place():
            self._displaced = False
            return
        try:
            self._database.write_out()
        except OutboxError as error:  # no room now: the open file serves until there is
            if not self._displaced:
                log.error("store_displaced", file=str(self._database.file), error=str(error))
            self._displaced = True
            return
        raise StoreFaultError(
            f"{self._database.file} was deleted or replaced while the gateway ran; what it held was put back"
        )

    def _evict_old_and_excess(self) -> None:
        now_ms = self._age.now_ms()
        self._more_to_evict = False
        for record_class in CLASSES:
            quota, held = self._quotas[record_class], self._database.committed[record_class]
            too_old = (
                quota.max_age_seconds is not None
                and held.oldest_ms is not None
                and now_ms - held.oldest_ms > quota.max_age_seconds * 1000
            )
            too_much = quota.on_full == "evict" and overflow(quota, held, Amount()) is not None
            if not (too_old or too_much):
                continue
            touched: set[RecordClass] = set()
            with self._evicting(touched):
                if too_old and self._evictor.expire(record_class, now_ms):
                    self._more_to_evict = True
                if too_much:  # the quota was lowered
                    self._evictor.make_room(record_class, Amount(), now_ms)
                    self._more_to_evict = True
            self._announce(frozenset(touched))


def confirm(submission: Submission, epoch: str, upcoming: dict[RecordClass, int]) -> None:
    """Give a submission its receipts; `upcoming` holds the next number of each class and moves on."""
    if submission.done is None:
        for record_class, amount in submission.amounts.items():
            upcoming[record_class] += amount.rows
        return
    receipts: list[Receipt] = []
    for record_class, _ in submission.rows:
        receipts.append(Receipt(record_class, epoch, upcoming[record_class]))
        upcoming[record_class] += 1
    guarded(functools.partial(submission.done, receipts))


def guarded(call: Callable[[], None]) -> None:
    """Call into a producer; its error must not stop the writer, nor keep the others from their receipts."""
    try:
        call()
    except Exception:  # foreign code on the writer's thread
        log.exception("outbox_listener_failed")


def abandon(submissions: Sequence[Submission], mailbox: Mailbox, reason: str) -> None:
    """Tell the producers of submissions that these will not be stored."""
    if not submissions:
        return
    log.error("outbox_entries_not_stored", entries=sum(submission.entries for submission in submissions), reason=reason)
    mailbox.settled(submissions)
    for submission in submissions:
        if submission.abandoned is not None:
            guarded(functools.partial(submission.abandoned, OutboxError(f"not stored: {reason}")))
