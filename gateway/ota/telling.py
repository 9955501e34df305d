"""What is said of updates: to the bridge in `twin/reported`, and of a journal that the disk does not take."""

from collections.abc import Callable, Mapping, Sequence
from typing import Final

import msgspec
import structlog

from gateway.ota import slots
from gateway.ota.around import Means
from gateway.ota.install import Stored
from gateway.ota.journal import Installed, JournalError
from gateway.ota.twin import reported
from gateway.wire.messages import ModelRef, UpdatePhase, UpdateState, encode
from gateway.wire.times import rfc3339

log = structlog.get_logger()

_ON_THE_WAY: Final = ("fetching", "checking")
"""Said while another thread may take the wish back, whose word is then the last one."""


class Telling:
    """Keeps the last word about each pipeline in the journal and has it sent. Methods may be called from any thread."""

    def __init__(self, means: Means, wake: Callable[[], None]) -> None:
        """Take parts; `wake` has `report` called soon."""
        self._journal = means.journal
        self._around = means.around
        self._bays = means.bays
        self._wake = wake
        self._strangers: Sequence[UpdateState] = ()  # words about pipelines that are not here
        self._reported = b""
        self._journal_problems: dict[str, str] = {}  # by thread
        self.refused = ""  # why the desired twin that came last does not count, a code
        self.awaiting: frozenset[str] = frozenset()  # pipelines for which no release is here; `Serving` says which

    # ---- to the bridge ------------------------------------------------------------------------------

    def say(
        self,
        pipeline: str,
        phase: UpdatePhase,
        model: Installed,
        *,
        code: str = "",
        reason: str = "",
        cost: Stored | None = None,
        full_bytes: int = 0,
        comparison: Mapping[str, float] | None = None,
    ) -> None:
        """Keep the last word about a release in a pipeline; what is not given stays as it was said of it before.

        Args:
            pipeline: its name.
            phase: what becomes of the release.
            model: the release.
            code: why, for programs.
            reason: why, for people.
            cost: what fetching it has cost.
            full_bytes: of the compressed full file, where the cost is not known yet.
            comparison: what a shadow run has found.
        """
        bay, slot = self._bays[pipeline], self._journal.book.slot(pipeline)
        told = slot.told
        is_of_it = told is not None and (told.model.name, told.model.version) == (model.name, model.version)
        before = told if is_of_it else None
        update = UpdateState(
            pipeline=pipeline,
            phase=phase,
            model=ModelRef(name=model.name, version=model.version),
            running_model=bay.serving,
            fencing_token=self._journal.book.fencing_token,
            at=self.at(),
            code=code,
            reason=reason,
            attempt=slot.wanted.attempt if slot.wanted is not None else before.attempt if before is not None else 0,
            fetched_bytes=cost.fetched_bytes if cost is not None else before.fetched_bytes if before is not None else 0,
            full_bytes=cost.full_bytes if cost is not None else full_bytes or (before.full_bytes if before else 0),
            comparison=dict(comparison) if comparison is not None else before.comparison if before is not None else {},
        )
        same = before is not None and msgspec.structs.replace(before, at=update.at, swap_gap_ms=None) == update
        if not same:
            self._journal.insist(slots.tell(update, of=model if phase in _ON_THE_WAY else None))
        self.write()
        self._wake()

    def report(self) -> None:
        """Publish `twin/reported` if it says something else than the last one."""
        twin = reported(self._journal.book, self.serving(), "", self._strangers, self.awaiting, refused=self.refused)
        if self._around.system is not None:
            twin = self._around.system.report(twin)
        payload = encode(twin)
        if payload != self._reported:
            self._reported = payload
            self._around.report(encode(msgspec.structs.replace(twin, at=self.at())))

    def tried(self, work: Callable[[], None]) -> str:
        """Do something that needs the journal; return why that cannot be written, "" if it was."""
        try:
            work()
        except JournalError as error:
            return str(error)
        return ""

    def write(self) -> bool:
        """Write what was insisted on; False if that must wait: it is tried again each second."""
        problem = self.tried(self._journal.flush)
        if problem:
            self.journal_fares("trial", problem)
        return not problem

    def journal_fares(self, thread: str, problem: str) -> None:
        """Tell when the disk begins to refuse the journal, and when it takes it again."""
        before = any(self._journal_problems.values())
        self._journal_problems[thread] = problem
        now = any(self._journal_problems.values())
        if now and not before:
            log.error("ota_journal_not_written", error=problem, consequence="nothing is swapped in until it is")
            self._around.note("ota_journal_not_written", "error", problem)
        elif before and not now:
            log.info("ota_journal_written_again")
            self._around.note("ota_journal_written_again", "info", "the journal of updates is on the disk again")

    def serving(self) -> dict[str, ModelRef | None]:
        """Return what answers in each pipeline."""
        return {name: bay.serving for name, bay in self._bays.items()}

    def at(self) -> str:
        """Return the time, RFC 3339."""
        return rfc3339(self._around.wall_ns())

    def report_again(self) -> None:
        """Have the next report sent even if nothing has changed."""
        self._reported = b""

    def of_strangers(self, updates: Sequence[UpdateState]) -> None:
        """Say this, too, of pipelines that are not here."""
        self._strangers = updates

    @property
    def journal_problem(self) -> str:
        """Why the journal cannot be written, "" if it can."""
        return next(filter(None, self._journal_problems.values()), "")
