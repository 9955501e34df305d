"""A gateway as rollouts see it: the device's own code decides about twins and trials; models and links are made up."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from gateway.config import Trial
from gateway.ota import slots, trial
from gateway.ota import twin as twins
from gateway.ota.journal import Book, Installed, Reference
from gateway.wire.errors import MalformedMessageError
from gateway.wire.messages import ModelRef, Twin, UpdatePhase, UpdateState, decode, encode

AT = "2026-01-31T12:00:00.000Z"
RULES = Trial()


def healthy(_: Installed) -> trial.Seen:
    """A release that proves itself."""
    return trial.Seen(seconds=RULES.seconds, answers=RULES.min_inferences, latencies_ms=[5.0] * 50)


def slow(_: Installed) -> trial.Seen:
    """A release that is far beyond what the one before took."""
    return trial.Seen(seconds=10.0, answers=50, latencies_ms=[500.0] * 50)


@dataclass(slots=True)
class OtaDevice:
    """Knobs: `trials` says what a release does here; `believes_any_token` accepts twins as a device without a fence;
    `waits` fetches nothing, as without a budget.
    """

    name: str
    pipeline: str
    model: ModelRef
    trials: Callable[[Installed], trial.Seen] = healthy
    believes_any_token: bool = False
    waits: bool = False
    book: Book = field(default_factory=Book)
    received: int = 0  # desired twins
    refused: int = 0
    refusal: str = ""  # the code of why the last one does not count
    fetched: list[str] = field(default_factory=list)
    ran: list[str] = field(default_factory=list)
    strangers: Sequence[UpdateState] = ()  # what was said of pipelines that are not here
    first: Installed = field(init=False)

    def __post_init__(self) -> None:
        self.first = Installed(name=self.model.name, version=self.model.version)

    def take(self, payload: bytes) -> Sequence[bytes]:
        """Take a desired twin; return the reports that it leads to, in order."""
        self.received += 1
        try:
            desired = decode(payload, Twin)
        except MalformedMessageError:
            return self._refuse("malformed")
        if self.believes_any_token:
            self.book = Book(pipelines=self.book.pipelines, installed=self.book.installed)
        ruling = twins.judge(self.book, desired, {self.pipeline}, {self.pipeline: self.model}, AT)
        self.book = ruling.book
        if ruling.refused:
            return self._refuse(ruling.code)
        before, self.refusal = self.refusal, ""
        if ruling.known:
            return [self.report()] if before else []
        self.strangers = [each for each in ruling.updates if each.pipeline != self.pipeline]
        reports = [self.report()]
        slot = self.book.slot(self.pipeline)
        if slot.wanted is not None and slot.pinned is None and not self.waits:
            self._update(slot.wanted.model)
            reports.append(self.report())
        return reports

    def _refuse(self, code: str) -> Sequence[bytes]:
        self.refused += 1
        self.refusal = code
        return [self.report()]

    def pin(self, model: Installed) -> bytes:
        """Have a person on the device keep a release; return what it reports."""
        self.book = slots.pin(self.pipeline, model, AT)(self.book)
        self.model = ModelRef(name=model.name, version=model.version)
        self._tell(model, "pinned", "pinned")
        return self.report()

    def unpin(self) -> None:
        """Let go what is kept: the last assignment counts, and is fetched and tried if it does not run already."""
        self.book = slots.unpin(self.pipeline, AT)(self.book)
        slot = self.book.slot(self.pipeline)
        runs = slots.running(slot) or self.first
        self.model = ModelRef(name=runs.name, version=runs.version)
        if slot.wanted is not None:
            self._update(slot.wanted.model)

    def report(self) -> bytes:
        """What the device says of itself now."""
        running = {self.pipeline: self.model}
        return encode(twins.reported(self.book, running, AT, self.strangers, refused=self.refusal))

    def _update(self, model: Installed) -> None:
        before = Installed(name=self.model.name, version=self.model.version)
        # What ran until now is kept as the way back, so it is there.
        if model not in {before, self.first, *self.book.installed}:
            self.fetched.append(model.label)
            self.book = slots.installed(model)(self.book)
        reference = Reference(latency_p95_ms=5.0)
        self.book = slots.begin_trial(self.pipeline, model, before, reference, now_ns=0, at=AT)(self.book)
        verdict = trial.judge(RULES, reference, None, self.trials(model))
        if isinstance(verdict, trial.TakeBack):
            self.book = slots.take_back(self.pipeline, verdict.code, verdict.reason, AT)(self.book)
            self._tell(model, "reverted", verdict.code, verdict.reason)
            return
        self.book = slots.prove(self.pipeline, AT)(self.book)
        self.model = ModelRef(name=model.name, version=model.version)
        self.ran.append(model.label)
        self._tell(model, "running")

    def _tell(self, model: Installed, phase: UpdatePhase, code: str = "", reason: str = "") -> None:
        update = UpdateState(
            pipeline=self.pipeline,
            phase=phase,
            model=ModelRef(name=model.name, version=model.version),
            running_model=self.model,
            fencing_token=self.book.fencing_token,
            at=AT,
            code=code,
            reason=reason,
        )
        self.book = slots.tell(update)(self.book)
