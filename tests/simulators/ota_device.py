"""A gateway as rollouts see it: the device's own code decides about twins and trials; models and links are made up."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from gateway.config import Trial
from gateway.ota import slots, trial
from gateway.ota import twin as twins
from gateway.ota.journal import Book, Installed, Reference
from gateway.wire.messages import ModelRef, Twin, UpdateState, decode, encode

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
    fetched: list[str] = field(default_factory=list)
    ran: list[str] = field(default_factory=list)
    strangers: Sequence[UpdateState] = ()  # what was said of pipelines that are not here
    first: Installed = field(init=False)

    def __post_init__(self) -> None:
        self.first = Installed(name=self.model.name, version=self.model.version)

    def take(self, payload: bytes) -> Sequence[bytes]:
        """Take a desired twin; return the reports that it leads to, in order."""
        self.received += 1
        desired = decode(payload, Twin)
        if self.believes_any_token:
            self.book = Book(pipelines=self.book.pipelines, installed=self.book.installed)
        ruling = twins.judge(self.book, desired, {self.pipeline}, {self.pipeline: self.model}, AT)
        self.book = ruling.book
        if ruling.refused:
            self.refused += 1
            return []
        if ruling.known:
            return []
        self.strangers = [each for each in ruling.updates if each.pipeline != self.pipeline]
        reports = [self.report()]
        slot = self.book.slot(self.pipeline)
        if slot.wanted is not None and slot.pinned is None and not self.waits:
            self._update(slot.wanted.model)
            reports.append(self.report())
        return reports

    def report(self) -> bytes:
        """What the device says of itself now."""
        return encode(twins.reported(self.book, {self.pipeline: self.model}, AT, self.strangers))

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

    def _tell(self, model: Installed, phase: str, code: str = "", reason: str = "") -> None:
        update = UpdateState(
            pipeline=self.pipeline,
            phase="running" if phase == "running" else "reverted",
            model=ModelRef(name=model.name, version=model.version),
            running_model=self.model,
            fencing_token=self.book.fencing_token,
            at=AT,
            code=code,
            reason=reason,
        )
        self.book = slots.tell(update)(self.book)
