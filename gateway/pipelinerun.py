"""One run of a pipeline, from the loading of a model to its end: its stages, and what passes between its threads."""

import threading
from dataclasses import dataclass, field

from gateway.config import CameraSource, ReplaySource
from gateway.config import Source as SourceSettings
from gateway.decide.budget import ByteBudget
from gateway.decide.decider import Decider
from gateway.decide.measures import MeasureAggregator
from gateway.errors import InferenceError
from gateway.inference.model import Model
from gateway.inference.slot import ModelSlot
from gateway.intake import Intake
from gateway.sources.capture import CaptureThread
from gateway.sources.slot import Handoff, LatestSlot
from gateway.values import Sample, Window

_WINDOWS_WAITING = 64


@dataclass(frozen=True, slots=True)
class Handover:
    """Travels with the samples: behind it another model answers."""

    model: Model
    done: threading.Event = field(default_factory=threading.Event)
    _claimed: threading.Lock = field(default_factory=threading.Lock)

    def claim(self) -> bool:
        """Decide what becomes of it: who is first carries it out, or calls it off."""
        return self._claimed.acquire(blocking=False)


Inbox = LatestSlot[Sample | Handover] | Handoff[Sample | Handover]


def inbox_for(source: SourceSettings) -> Inbox:
    """Choose how samples reach the inference thread.

    A recording played as fast as possible must wait for the pipeline; a live camera must not.
    """
    if isinstance(source, ReplaySource) and source.speed == "max":
        return Handoff(capacity=4)
    if isinstance(source, CameraSource) or (
        isinstance(source, ReplaySource) and source.file.suffix.lower() not in (".csv", ".npz")
    ):
        return LatestSlot()
    return Handoff(capacity=_WINDOWS_WAITING)


@dataclass(frozen=True, slots=True)
class Stages:
    """The stateful stages behind the interpreter, owned by the inference thread."""

    decider: Decider
    sums: MeasureAggregator
    budget: ByteBudget


@dataclass(slots=True)
class Run:
    """One run from the loading of a model to its end."""

    slot: ModelSlot
    intake: Intake
    stages: Stages
    capture: CaptureThread
    inbox: Inbox
    abandoned: bool = False  # its thread hangs in the model
    answering: Model | None = None  # the inference thread's
    _claimed: threading.Lock = field(default_factory=threading.Lock)

    def answers(self, model: Model) -> None:
        """Note which model answers next. One that was swapped in goes on from the baseline before it."""
        if model is not self.answering:
            if self.answering is not None:
                model.go_on_from(self.answering)
            self.answering = model

    def claim(self) -> bool:
        """Decide who ends it: the first who asks."""
        return self._claimed.acquire(blocking=False)


class AbandonedError(InferenceError):
    """The thread of an abandoned run has come back; nobody waits for it any more."""


def settle(sample: Sample | None) -> None:
    """Say that what was decided from a sample is durable, or that it is of no use."""
    if isinstance(sample, Window) and sample.done is not None:
        sample.done()
