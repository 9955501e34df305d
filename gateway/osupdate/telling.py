"""What an update has come to, written down, and the words about it that the bridge is to hear."""

from collections.abc import Sequence
from typing import Final

import msgspec

from gateway.osupdate import journal as steps
from gateway.osupdate.around import Around
from gateway.osupdate.journal import Book, Job, Journal, Wish
from gateway.osupdate.slotwatch import SlotWatch
from gateway.wire.messages import Assignment, ModelRef, Twin, UpdatePhase, UpdateState, os_pipeline
from gateway.wire.times import rfc3339

FAILED: Final = ("refused", "reverted", "blocked")
"""Phases after which the same version is not tried again by itself."""


class Telling:
    """Writes stages and words into the journal. Every method may raise OsJournalError: it cannot be written."""

    def __init__(self, journal: Journal, slots: SlotWatch, around: Around) -> None:
        self._journal = journal
        self._slots = slots
        self._around = around

    def report(self, twin: Twin) -> Twin:
        """Return a reported twin with what is to be said of the system."""
        state = self._slots.state
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

    def reach(self, stage: steps.Stage, what: str = "", **changes: object) -> Book:
        """Write down that the update under way has come to a stage; `what` also for the history."""
        return self._journal.change(steps.reach(stage, self._around.boot_id, self.now(), what, **changes))

    def end(self, what: str, word: UpdateState, *, blocks: bool = True) -> None:
        """End the update under way, and say so, in one step. A phase of failure blocks the version, unless not to."""
        block = blocks and word.phase in FAILED
        over = steps.end(what, self.now(), code=word.code, detail=word.reason, block=block)
        self._journal.change(lambda book: steps.tell(word)(over(book)))

    def say(
        self,
        about: Job | Wish,
        phase: UpdatePhase,
        *,
        code: str = "",
        reason: str = "",
        fetched_bytes: int = 0,
        full_bytes: int = 0,
    ) -> None:
        """Say something, unless it was the last thing that was said."""
        word = self.word(about, phase, code=code, reason=reason, fetched_bytes=fetched_bytes, full_bytes=full_bytes)
        told = self._journal.book.told
        if told is None or msgspec.structs.replace(told, at=word.at) != word:
            self._journal.change(steps.tell(word))

    def say_again(self, token: int) -> None:
        """Say the same under the token of another twin that wants the same."""
        told = self._journal.book.told
        if told is not None:
            self._journal.change(steps.tell(msgspec.structs.replace(told, fencing_token=token)))

    def has_told(self, wish: Wish, phases: Sequence[str]) -> bool:
        """Tell whether the last word is about a wish, and one of these phases."""
        told = self._journal.book.told
        return (
            told is not None
            and told.phase in phases
            and (told.model.name, told.model.version) == (wish.compatible, wish.version)
            and told.fencing_token == wish.token
        )

    def word(
        self,
        about: Job | Wish,
        phase: UpdatePhase,
        *,
        code: str = "",
        reason: str = "",
        fetched_bytes: int = 0,
        full_bytes: int = 0,
    ) -> UpdateState:
        """Return what would be said, with what the update has cost so far."""
        book, release = self._journal.book, self._around.release
        job = book.job if book.job is not None else about if isinstance(about, Job) else None
        wish = book.wish
        token = wish.token if wish is not None and wish.version == about.version else 0
        running = ModelRef(name=self._slots.compatible, version=release.version) if release is not None else None
        return UpdateState(
            pipeline=os_pipeline(about.compatible),
            phase=phase,
            model=ModelRef(name=about.compatible, version=about.version),
            running_model=running,
            fencing_token=max(about.token, token),
            at=self.now(),
            code=code,
            reason=reason,
            attempt=job.tries if job is not None else 0,
            fetched_bytes=fetched_bytes or (job.fetched_bytes if job is not None else 0),
            full_bytes=full_bytes or (job.full_bytes if job is not None else 0),
            kind="os",
        )

    def now(self) -> str:
        """Return the time for journal and words."""
        return rfc3339(self._around.wall_ns())
