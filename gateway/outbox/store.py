"""Store-and-forward: what was handed over is durable before anything else hears of it, and stays until acknowledged."""

import functools
import os
import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

import structlog

from gateway.config import Outbox as OutboxSettings
from gateway.errors import ConfigError, OutboxError
from gateway.outbox.ages import Clocks
from gateway.outbox.aside import Aside
from gateway.outbox.ballast import Ballast
from gateway.outbox.belonging import settle_owner
from gateway.outbox.damage import side
from gateway.outbox.evictions import row_of
from gateway.outbox.faults import DamagedStoreError, StoreClosedError, may_pass
from gateway.outbox.generation import Generation, Surroundings
from gateway.outbox.mailbox import Done, Lead, Mailbox, Submission
from gateway.outbox.opening import (
    Opened,
    begin_anew,
    lock_store,
    open_store,
    prepare_directory,
    process_page_limit,
    replace_store,
)
from gateway.outbox.quota import Amount, Held, page_quota, quotas_of
from gateway.outbox.rollback import keep_ahead
from gateway.outbox.space import CHECKPOINT_PAGES
from gateway.outbox.stats import ClassStats, OutboxStats, Tally
from gateway.outbox.stranger import refuse_stranger
from gateway.outbox.submissions import UNCERTAIN_SECONDS, stored_within, submission_of
from gateway.outbox.writer import OnCommit, abandon, guarded
from gateway.values import Entry, Receipt, Stored, StoredRun
from gateway.wire.messages import CLASSES, Notice, RecordClass
from gateway.wire.times import rfc3339

__all__ = ["ClassStats", "Outbox", "OutboxStats"]

log = structlog.get_logger()

OnNotice = Callable[[Notice], None]
OnFailed = Callable[[OutboxError], None]

_NOTHING: Final[dict[RecordClass, Held]] = {
    name: Held(rows=0, disk_bytes=0, lowest=1, highest=0, oldest_ms=None) for name in CLASSES
}


class Outbox:
    """The store. Every method may be called from any thread.

    Life: `open`, then `submit` and `put`, `read` and `acknowledge`, at last `close`. After an I/O error the outbox is
    `failed`: nothing more is acknowledged, `submit` and `put` raise at once, `on_failed` is called, and what was
    accepted before stays in memory, in order. `reopen` opens the file again and stores it; an entry whose transaction
    failed is looked up first, so that it is stored once whichever way that transaction ended. `close` instead gives
    it up: producers are told through `abandoned`.

    A damaged file never stops the outbox, at start or later: it is put aside, a new one with a new epoch begins, and
    a notice in it says so.

    Callbacks (`done`, `abandoned`, `on_commit`, `on_notice`, `on_failed`) run on the writer thread and should only
    hand on; what they raise is logged. They must not call `close` or `reopen`.
    """

    def __init__(
        self,
        file: Path,
        settings: OutboxSettings,
        *,
        clocks: Clocks,
        on_notice: OnNotice | None,
        on_commit: OnCommit | None,
        on_failed: OnFailed | None,
        lock: int,
        patient: bool,
        gateway: str | None,
    ) -> None:
        """Use `open`, which prepares the directory and takes the lock."""
        self._file = file
        self._gateway = gateway
        self._clocks = clocks
        self._on_notice = on_notice
        self._on_failed = on_failed
        self._lock = lock
        self._lifecycle = threading.Lock()
        self._quotas = quotas_of(settings)
        self._page_limit = min(page_quota(self._quotas), process_page_limit())
        self._ballast = Ballast(file, settings.ballast_bytes)
        self._aside = Aside(file)
        self._mailbox = Mailbox(settings.queue_entries)
        self._tally = Tally.starting(clocks.uptime_ns())
        self._surroundings = Surroundings(
            quotas=self._quotas,
            mailbox=self._mailbox,
            ballast=self._ballast,
            tally=self._tally,
            clocks=clocks,
            # Half of what a process may write into one file, where that is limited.
            checkpoint_pages=min(CHECKPOINT_PAGES, process_page_limit() // 2),
            on_commit=on_commit,
        )
        self._failure: OutboxError | None = None
        self._closed = False
        self._current: Generation | None = None
        self._thread: threading.Thread | None = None
        try:
            self._current = self._begin(self._open_file())
        except OutboxError as error:
            if not (patient and may_pass(error)):
                raise
            self._failure = error
            self._mailbox.fail(f"the outbox has failed: {error}")
            log.error("outbox_failed", file=str(file), reason=str(error))
        else:
            self._thread = self._start_thread()

    @classmethod
    def open(
        cls,
        file: Path,
        settings: OutboxSettings,
        *,
        clock_ns: Callable[[], int] = time.time_ns,
        clocks: Clocks | None = None,
        on_notice: OnNotice | None = None,
        on_commit: OnCommit | None = None,
        on_failed: OnFailed | None = None,
        patient: bool = False,
        gateway: str | None = None,
    ) -> "Outbox":
        """Open the store and start its writer; takes no longer for a long backlog.

        `on_commit` is told after each commit for which classes there are new rows. `clocks` replaces all the clocks,
        `clock_ns` the wall clock alone. A `patient` one that finds no room for a store, or a disk that fails, begins as
        `failed`, for `reopen` to try again: whoever uses it can work meanwhile. With `gateway` the store is that one's.

        Raises:
            ConfigError: what is there under that name never was an outbox, or has records of another gateway in it; it
                is left alone.
            OutboxError: the directory or the disk does not allow it, or another process has the store.
        """
        refuse_stranger(file)
        prepare_directory(file)
        lock = lock_store(file)
        try:
            return cls(
                file,
                settings,
                clocks=clocks or Clocks(wall_ns=clock_ns),
                on_notice=on_notice,
                on_commit=on_commit,
                on_failed=on_failed,
                lock=lock,
                patient=patient,
                gateway=gateway,
            )
        except (ConfigError, OutboxError):
            os.close(lock)
            raise

    # ---- producers -------------------------------------------------------------------------------

    def submit(
        self,
        entries: Sequence[Entry],
        done: Done | None = None,
        *,
        abandoned: Callable[[OutboxError], None] | None = None,
    ) -> None:
        """Hand entries over, to be stored in one transaction; wait while the queue is full.

        `done` gets one receipt for each entry, in order, when they are durable. `abandoned` is called instead if the
        outbox is closed before they could be stored. One of the two is certain unless the process dies.

        Raises:
            OutboxError: the outbox is closed or has failed, or the entries are more than a class may ever hold.
        """
        if entries:
            self._mailbox.offer(submission_of(entries, self._quotas, done, abandoned), None)
        elif done is not None:
            done([])

    def put(self, entries: Sequence[Entry], timeout: float | None = None) -> list[Receipt]:
        """Store entries in one transaction and return when they are durable.

        Raises:
            OutboxFullError: not stored within `timeout` seconds, and taken back.
            OutboxError: as `submit`; or closed meanwhile, nothing stored; or the transaction is still uncertain
                when the time is over, which the message says.
        """
        if not entries:
            return []
        return stored_within(self._mailbox, entries, self._quotas, timeout)

    # ---- the uplink ------------------------------------------------------------------------------

    @property
    def epoch(self) -> str:
        """The random name of the present file, 16 hexadecimal digits.

        Raises:
            OutboxError: there has not been a file yet, see `patient`; `read` and `heads` then raise the same.
        """
        return self._generation.database.epoch

    @property
    def _generation(self) -> Generation:
        if self._current is None:
            raise OutboxError(f"{self._file}: not opened yet: {self._failure}")
        return self._current

    def read(self, record_class: RecordClass, after_seq: int, max_records: int, max_bytes: int) -> StoredRun | None:
        """Return rows above `after_seq` in order: at most so many, and so many bytes unless the first alone is more.

        None when there are none; also when the file turns out to be damaged: the writer then begins a new one.

        Raises:
            OutboxError: the disk failed, or the outbox is closed.
        """
        while True:
            generation = self._generation
            try:
                return generation.read(record_class, after_seq, max_records, max_bytes)
            except DamagedStoreError as error:
                if generation is self._generation:
                    self._mailbox.report(error)
                return None
            except StoreClosedError:
                if self._closed or self._failure is not None:
                    raise
                if generation is self._generation:
                    return None  # just being replaced

    def set_aside(self, record_class: RecordClass, epoch: str, row: Stored, reason: str, gateway: str) -> None:
        """Keep a copy of a row that cannot travel in a file of its own, durably; see `gateway.outbox.aside`.

        Raises:
            OutboxError: it cannot be written.
        """
        self._aside.keep(record_class, epoch, row, reason, gateway)

    def aside(self, record_class: RecordClass, epoch: str) -> frozenset[int]:
        """Return the numbers of rows that were set aside because of their size, in this run or an earlier one."""
        return self._aside.too_large(record_class, epoch)

    def acknowledge(self, record_class: RecordClass, epoch: str, mark: int) -> int:
        """Let the rows up to `mark` go; the writer deletes them in its own time, in slices.

        Returns the mark in force. An acknowledgement for another epoch is counted and changes nothing.
        """
        generation = self._current
        if generation is None:
            self._tally.ignored_acks += 1
            return 0
        below = generation.database.committed[record_class].lowest - 1
        if epoch != generation.database.epoch:
            self._tally.ignored_acks += 1
            return below
        if mark > below:
            self._mailbox.acknowledge(record_class, epoch, mark)
        return max(mark, below)

    def follow(self, record_class: RecordClass, epoch: str, mark: int) -> bool:
        """Tell the writer that the bridge has other rows than this file under numbers up to `mark`, and wait.

        A file that was put back from an older copy, or has lost a tail, comes to that. What was stored since it was
        opened is numbered again, above the mark and above everything here, and a notice says so; nothing is let go. No
        row of the class may be on its way meanwhile. False: it is not to be believed, or those rows are from an earlier
        run, which may have delivered them.

        Raises:
            OutboxError: the writer did not come to it; ask again.
        """
        if self._current is None or epoch != self._current.database.epoch:
            self._tally.ignored_acks += 1
            return False
        answers: queue.SimpleQueue[bool | OutboxError] = queue.SimpleQueue()
        self._mailbox.follow(Lead(record_class, epoch, mark, answers.put))
        try:
            answer = answers.get(timeout=UNCERTAIN_SECONDS)
        except queue.Empty:
            raise OutboxError(f"{self._file}: the writer is busy with the disk") from None
        if isinstance(answer, OutboxError):
            raise answer
        return answer

    def heads(self) -> dict[RecordClass, tuple[int, int]]:
        """Return the lowest number present and the highest ever given, by class; (n + 1, n) where there is no row."""
        return {name: (held.lowest, held.highest) for name, held in self._generation.database.committed.items()}

    # ---- the supervisor --------------------------------------------------------------------------

    @property
    def failed(self) -> bool:
        """Whether the disk failed; only `reopen` helps."""
        return self._failure is not None

    def stats(self) -> OutboxStats:
        """Return the figures of this moment, without reading the store."""
        generation = self._current
        now_ns, now_ms = self._clocks.uptime_ns(), 0 if generation is None else generation.age.now_ms()
        committed = _NOTHING if generation is None else generation.database.committed
        return OutboxStats(
            epoch="" if generation is None else generation.database.epoch,
            classes={
                name: self._tally.stats_of(name, held, self._quotas[name], now_ns, now_ms)
                for name, held in committed.items()
            },
            file_bytes=size_of(self._file),
            wal_bytes=size_of(side(self._file, "-wal")),
            queued_entries=self._mailbox.waiting,
            parked_entries=self._mailbox.parked,
            commits=self._tally.commits,
            ignored_acks=self._tally.ignored_acks,
            quarantined=self._tally.quarantined,
            disk_full=self._tally.disk_full,
            ballast=self._ballast.present,
            failed=self._failure is not None,
            failure=None if self._failure is None else str(self._failure),
        )

    def reopen(self) -> None:
        """Open the file again after a failure, and store what was waiting. Does nothing to an outbox that works.

        Raises:
            OutboxError: it cannot be opened yet, or the outbox is closed; what is waiting stays.
        """
        with self._lifecycle:
            if self._closed:
                raise OutboxError("the outbox is closed")
            if self._failure is None:
                return
            if self._thread is not None:
                self._thread.join()
            broken = self._current
            opened = self._open_file()
            stored, notices = False, tuple[Notice, ...]()
            if broken is not None:
                try:
                    stored, notices = self._settle(opened, broken)
                except DamagedStoreError as error:  # opening it again would come to the same page
                    opened = self._replacement(str(error))
            self._mailbox.resume()
            self._current = self._begin(replace(opened, notices=(*notices, *opened.notices)))
            self._note(self._failure_notice())
            if broken is not None:
                broken.hand_over(self._mailbox, stored=stored)
            self._failure = None
            self._thread = self._start_thread()
            log.info("outbox_reopened", epoch=self.epoch, waiting=self._mailbox.waiting)

    def _settle(self, opened: Opened, broken: Generation) -> tuple[bool, tuple[Notice, ...]]:
        """Make sure that what is in the file is durable, and that nothing in it gets a number that was given before.

        Returns whether the transaction that failed is in it, and what notices it got.

        Raises:
            OutboxError: the disk does not allow it yet; the file is closed again.
        """
        database = opened.database
        try:
            # Nobody is told of a row again before it has been synced without an error.
            if not database.checkpoint("FULL"):
                raise OutboxError(f"{self._file}: another program is reading it: close that first")
            if database.epoch != broken.database.epoch:
                return False, ()
            stored = broken.has_stored(database)
            given = broken.database.committed
            return stored, keep_ahead(database, given, self._clocks.wall_ns, opened.age.now_ms())
        except OutboxError:
            database.let_go()
            raise

    def _failure_notice(self) -> Notice:
        return Notice(
            code="store_failed",
            severity="error",
            detail=f"{self._failure}; opened again, nothing acknowledged is lost",
            at=rfc3339(self._clocks.wall_ns()),
        )

    def close(self, timeout_seconds: float = 60.0) -> None:
        """Store what is waiting, write everything into the file and close it. May be called again.

        What cannot be stored (a class that refuses is full, the disk is full or broken) is given up. A disk that does
        not answer for `timeout_seconds` is left behind; nothing was acknowledged that is not durable.
        """
        self._mailbox.close()
        if not self._lifecycle.acquire(timeout=timeout_seconds):  # it is being opened again on a disk that hangs
            log.error("outbox_close_timed_out", waiting=self._mailbox.waiting)
            return
        try:
            if self._closed:
                return
            self._closed = True
            if self._thread is not None:
                self._thread.join(timeout_seconds)
                if self._thread.is_alive():
                    log.error("outbox_close_timed_out", waiting=self._mailbox.waiting)
                    return
            in_hand = () if self._current is None else self._current.leftovers(self._mailbox)
            left = [*in_hand, *self._mailbox.empty()]
            abandon(left, self._mailbox, str(self._failure or "the outbox is closed"))
            os.close(self._lock)
        finally:
            self._lifecycle.release()

    # ---- the writer thread -----------------------------------------------------------------------

    def _open_file(self) -> Opened:
        return self._owned(open_store(self._file, self._page_limit, self._clocks, self._ballast))

    def _replacement(self, reason: str) -> Opened:
        return self._owned(replace_store(self._file, reason, self._page_limit, self._clocks, self._ballast))

    def _begin_anew(self) -> Opened:
        return begin_anew(self._file, self._page_limit, self._clocks, self._ballast)

    def _owned(self, opened: Opened) -> Opened:
        return opened if self._gateway is None else settle_owner(opened, self._gateway, self._begin_anew)

    def _begin(self, opened: Opened) -> Generation:
        """Take an open store into use and tell what happened to the last one."""
        generation = Generation(opened, self._surroundings)
        if opened.quarantined is not None:
            self._tally.quarantined += 1
        for notice in opened.notices:
            row = row_of("notice", notice, self._clocks.wall_ns())
            self._tally.stored("critical", Amount(1, row[0]), self._clocks.uptime_ns())
            self._tell(notice)
        if opened.notices and self._surroundings.on_commit is not None:
            guarded(functools.partial(self._surroundings.on_commit, frozenset({"critical"})))
        return generation

    def _note(self, notice: Notice) -> None:
        """Have a notice stored before everything that waits."""
        row = row_of("notice", notice, self._clocks.wall_ns())
        self._mailbox.prepend(Submission([("critical", row)], {"critical": Amount(1, row[0])}, None))
        self._tell(notice)

    def _tell(self, notice: Notice) -> None:
        if self._on_notice is not None:
            guarded(functools.partial(self._on_notice, notice))

    def _start_thread(self) -> threading.Thread:
        # A daemon: an interpreter that ends without `close` does not wait for a disk.
        thread = threading.Thread(target=self._work, name="outbox-writer", daemon=True)
        thread.start()
        return thread

    def _work(self) -> None:
        self._mailbox.owned_by(threading.get_ident())
        while True:
            generation = self._generation
            try:
                generation.work(self._mailbox)
                return
            except DamagedStoreError as error:
                failure: OutboxError = error
            except OutboxError as error:
                self._fail(generation, error)
                return
            except Exception as error:  # this is where the thread is supervised
                log.exception("outbox_writer_crashed")
                self._fail(generation, OutboxError(f"the writer crashed: {type(error).__name__}: {error}"))
                return
            try:
                self._replace(generation, failure)
            except OutboxError as error:
                self._fail(generation, error)
                return

    def _replace(self, broken: Generation, error: OutboxError) -> None:
        broken.release()
        opened = self._replacement(str(error))
        self._current = self._begin(opened)
        broken.hand_over(self._mailbox, stored=False)  # the new file has nothing of the old one

    def _fail(self, generation: Generation, error: OutboxError) -> None:
        self._failure = error
        self._mailbox.fail(f"the outbox has failed: {error}")
        generation.release()
        log.error("outbox_failed", file=str(self._file), reason=str(error))
        if self._on_failed is not None:
            guarded(functools.partial(self._on_failed, error))


def size_of(file: Path) -> int:
    """Return the size of a file in bytes, 0 when it is not there."""
    try:
        return file.stat().st_size
    except OSError:
        return 0
