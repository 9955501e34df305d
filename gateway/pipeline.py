"""Connects the stages for one pipeline: source, preprocessing, inference, decisions, outbox.

Two threads: `capture-<source>` owns the device, `infer-<name>` owns the interpreter and the rules. Frames of a
live camera pass through a slot that keeps the newest; windows and recordings pass through a queue.
"""

import sys
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import tzinfo
from typing import Protocol

import msgspec
import structlog

from gateway.config import CameraSource, ReplaySource
from gateway.config import Pipeline as PipelineSettings
from gateway.config import Source as SourceSettings
from gateway.decide.budget import ByteBudget
from gateway.decide.decider import Decider, Origin
from gateway.decide.measures import MeasureAggregator
from gateway.errors import ConfigError, GatewayError, InferenceError, OutboxError, WeightsWithheldError
from gateway.holding import Holding
from gateway.inference.model import Model
from gateway.inference.slot import ModelSlot
from gateway.preprocess.snapshot import snapshot_of
from gateway.preprocess.window import Windower
from gateway.rate import Rate
from gateway.report import PipelineTotals
from gateway.sources.base import Source
from gateway.sources.capture import CaptureThread, SourceState
from gateway.sources.fresh import guard_for
from gateway.sources.slot import Handoff, LatestSlot
from gateway.sources.still import watch_for
from gateway.values import (
    Capture,
    Decision,
    Entry,
    Frame,
    Inference,
    Receipt,
    Sample,
    SampleBlock,
    SnapshotWish,
    Window,
)
from gateway.wire.manifest import WindowInput
from gateway.wire.messages import Event, Evidence, EvidenceLink, ModelRef, Notice, PipelineStatus, encode
from gateway.wire.times import rfc3339

log = structlog.get_logger()

_WAIT_SECONDS = 0.25
"""How long the inference thread waits for a sample before it lets time pass for the rules."""

_WINDOWS_WAITING = 64


class Instruments(Protocol):
    """Where a pipeline counts what it does."""

    def captured(self, pipeline: str, count: int) -> None: ...
    def inferred(self, pipeline: str, inference: Inference, latency_seconds: float, batch_fill: float) -> None: ...
    def sent(self, pipeline: str, raw_bytes: int, sent_bytes: int) -> None: ...
    def told(self, pipeline: str, event: Event) -> None: ...


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a pipeline needs of the program around it."""

    gateway: str
    time_zone: tzinfo
    open_source: Callable[[], Source]
    load_model: Callable[[], Model]
    submit: Callable[[Sequence[Entry], Callable[[Sequence[Receipt]], None]], None]
    publish: Callable[[Sequence[Entry]], None]  # called once the entries are durable
    instruments: Instruments
    new_id: Callable[[int], str]
    wall_ns: Callable[[], int]
    monotonic_ns: Callable[[], int]
    may_keep: Callable[[int], bool] = lambda _size: True  # whether the link can ever carry a picture of this size
    renew: Callable[[], None] = lambda: None  # what an earlier run had in hand may be handed to the source again
    max_held: int = 0  # messages of a leaf sensor that may be held only to fill a window


class Pipeline:
    """One source through one model. `run` blocks; everything else may be called from any thread."""

    def __init__(self, name: str, settings: PipelineSettings, source: SourceSettings, around: Surroundings) -> None:
        self.name = name
        self._settings = settings
        self._source_settings = source
        self._around = around
        self._stopping = threading.Event()
        self._inbox: LatestSlot[Sample] | Handoff[Sample] = self._new_inbox()
        self._capture: CaptureThread | None = None
        self._source_state = SourceState(settings.source, "opening", around.wall_ns())
        self._state: str = "starting"
        self._last_error: str | None = None
        self._waits_for = ""
        self._drops_lock = threading.Lock()
        self._errors: Counter[str] = Counter()  # what was dropped here, and by earlier runs of the source
        self._captures = self._inferences = self._windows = self._frames = 0
        self._events = self._raw_bytes = self._sent_bytes = 0
        # For all runs: it tells what was dropped since it told last.
        self._sums = MeasureAggregator(around.gateway, name, settings.interest.measure_every_seconds)
        self._model: ModelRef | None = None
        self._backend = ""
        self._rate = Rate()
        self._open_events = 0
        self._links: dict[str, EvidenceLink] = {}  # of open events; the inference thread's
        self._progress_ns = around.monotonic_ns()
        self._recording = False
        self._failing = False  # the last sample could not be used

    # ---- asked from outside ----------------------------------------------------------------------

    @property
    def progress_ns(self) -> int:
        """Monotonic time of the last turn of the inference thread's loop, for the watchdog.

        Waiting for a full disk, or a full class that refuses, is no standstill: a restart would not help.
        """
        return self._around.monotonic_ns() if self._recording else self._progress_ns

    def totals(self) -> PipelineTotals:
        """Sum up what was done since the start."""
        return PipelineTotals(
            captures=self._captures,
            frames=self._frames,
            windows=self._windows,
            inferences=self._inferences,
            events=self._events,
            raw_bytes=self._raw_bytes,
            sent_bytes=self._sent_bytes,
            dropped=self.dropped(),
            backend=self._backend,
            model=self._model,
            last_error=self.status().last_error,
        )

    def dropped(self) -> dict[str, int]:
        """Count what was dropped since the start, by reason."""
        with self._drops_lock:
            drops = Counter(self._errors)
            drops.update(self._run_drops())
        return {reason: count for reason, count in drops.items() if count}

    def _run_drops(self) -> Counter[str]:
        """Count what the present run of the source has dropped."""
        drops: Counter[str] = Counter()
        inbox, capture = self._inbox, self._capture
        if capture is not None:
            drops.update(capture.drops)
            if isinstance(inbox, LatestSlot):
                drops["newer-frame"] += inbox.dropped
        return drops

    def status(self) -> PipelineStatus:
        """Tell how the pipeline is doing."""
        source = self._source_state
        state = self._state
        if state == "running" and (self._failing or source.state in ("lost", "frozen")):
            state = "degraded"
        return PipelineStatus(
            pipeline=self.name,
            state=msgspec.convert(state, PipelineState),
            source_state=source.state,
            at=rfc3339(self._around.wall_ns()),
            model=self._model,
            backend=self._backend,
            inferences=self._inferences,
            inferences_per_second=round(self._rate.per_second(self._around.monotonic_ns()), 2),
            dropped=self.dropped(),
            open_events=self._open_events,
            last_error=self._last_error or source.error or None,
            waits_for=self._waits_for,
        )

    def stop(self) -> None:
        """Ask `run` to return; it ends open events and hands everything to the outbox first."""
        self._stopping.set()
        self._inbox.close()

    # ---- the inference thread --------------------------------------------------------------------

    def run(self) -> None:
        """Run until stopped, or until a finite recording has ended.

        Raises:
            ModelError: the model cannot be used.
            WeightsWithheldError: the key of the model is not given out now; run it again.
            BackendUnavailableError: the accelerator asked for is not there.
        """
        self._state = "starting"
        try:
            self._work()
            self._state = "stopped"
        finally:
            if (error := sys.exception()) is not None:
                withheld = isinstance(error, WeightsWithheldError)
                self._state, self._last_error = "starting" if withheld else "failed", _told(error)
                self._waits_for = "key" if withheld else ""
                # The source was closed: it does not stream any more, and the next run opens it again.
                self._source_state = SourceState(self._settings.source, "opening", self._around.wall_ns())

    def _work(self) -> None:
        around = self._around
        model = around.load_model()
        self._model, self._backend = model.ref, model.info.backend
        slot = ModelSlot(model)
        around.renew()
        self._inbox = self._new_inbox()
        decider = Decider(Origin(around.gateway, self.name, around.time_zone), self._settings, around.new_id)
        budget = ByteBudget(self._settings.interest.snapshot_bytes_per_hour)
        stages = _Stages(decider, self._sums, budget)
        capture = CaptureThread(
            self._settings.source,
            around.open_source,
            self._deliver(model),
            self._on_state,
            guard=guard_for(self._source_settings),
            watch=watch_for(self._source_settings),
            wall_clock=around.wall_ns,
        )
        self._capture = capture
        try:
            self._state, self._last_error, self._failing, self._waits_for = "running", None, False, ""
            if not self._stopping.is_set():
                capture.start()  # last: from here on the capture thread may have an error to tell
            self._loop(slot, stages)
        finally:
            self._inbox.close()  # the capture thread may wait for room in it
            capture.stop()
            with self._drops_lock:  # a reader must see what the run dropped once, not twice and not never
                self._errors.update(self._run_drops())
                self._capture = None
            slot.close()
            self._finish(stages)

    def _loop(self, slot: ModelSlot, stages: "_Stages") -> None:
        while not self._stopping.is_set():
            sample = self._inbox.take(_WAIT_SECONDS)
            now_ns = self._around.monotonic_ns()
            self._progress_ns = now_ns
            if sample is not None:
                self._step(slot, stages, sample)
            else:
                self._record(self._linked(stages.decider.tick(now_ns, self._around.wall_ns()).entries))
                self._measure(stages, now_ns)
                if self._inbox.closed:
                    return

    def _step(self, slot: ModelSlot, stages: "_Stages", sample: Sample) -> None:
        around = self._around
        started_ns = around.monotonic_ns()
        try:
            with slot.using() as model:
                inference = model.infer(sample)
        except InferenceError as error:
            self._fails("inference-error", error)
            _settle(sample)
            return
        if self._failing:
            self._failing = False
            log.info("pipeline_infers_again", pipeline=self.name, failed=self._errors["inference-error"])
        ended_ns = around.monotonic_ns()
        self._inferences += 1
        self._rate.tick(ended_ns)
        around.instruments.inferred(self.name, inference, (ended_ns - started_ns) / 1e9, model.batch_fill(sample))
        decision = stages.decider.step(inference)
        self._open_events = stages.decider.open_events
        entries = self._with_evidence(decision, sample, stages)
        sent_bytes = sum(len(encode(entry.body)) + len(entry.blob) for entry in entries)
        stages.sums.add(inference, sent_bytes)
        self._raw_bytes += inference.raw_bytes
        self._sent_bytes += sent_bytes
        around.instruments.sent(self.name, inference.raw_bytes, sent_bytes)
        self._record(entries, sample)
        self._measure(stages, ended_ns)

    def _measure(self, stages: "_Stages", now_ns: int) -> None:
        entry = stages.sums.take(now_ns, self.dropped())
        if entry is not None:
            self._record((entry,))

    def _finish(self, stages: "_Stages") -> None:
        entries = self._linked(stages.decider.finish(self._around.wall_ns()).entries)
        last = stages.sums.finish(self.dropped())
        self._open_events = 0
        self._record((*entries, last) if last else entries)

    def _record(self, entries: Sequence[Entry], sample: Sample | None = None) -> None:
        """Make entries durable, then tell them and settle the sample; waits when the disk is slower than the pipeline.

        A sample that nothing was decided from is settled at once: what was decided from the ones before may not be
        durable yet, but these are acknowledged first, whatever the order in which they are settled.
        """
        if not entries:
            _settle(sample)
            return

        def durable(_receipts: Sequence[Receipt]) -> None:
            _settle(sample)
            self._around.publish(entries)

        for entry in entries:
            if isinstance(entry.body, Event):
                self._events += entry.body.phase == "new"
                self._around.instruments.told(self.name, entry.body)
        self._recording = True
        try:
            self._around.submit(entries, durable)
        finally:
            self._recording = False

    def _with_evidence(self, decision: Decision, sample: Sample, stages: "_Stages") -> Sequence[Entry]:
        proofs: list[Entry] = []
        for wish in decision.snapshots:
            evidence = self._evidence(wish, sample, stages.budget)
            if evidence is not None:
                self._links[wish.event_id] = _link_to(wish.evidence_id, evidence)
                proofs.append(evidence)
        return [*self._linked(decision.entries), *proofs]

    def _linked(self, entries: Sequence[Entry]) -> list[Entry]:
        """Put the link to its evidence into each revision of an event: who sees only the last one needs it too."""
        linked: list[Entry] = []
        for entry in entries:
            body = entry.body
            link = self._links.get(body.event_id) if isinstance(body, Event) else None
            if isinstance(body, Event) and link is not None:
                if body.phase == "end":
                    del self._links[body.event_id]
                proven = msgspec.structs.replace(body, evidence=link)
                entry = Entry(entry.record_class, entry.kind, proven, entry.recorded_at_ns, entry.blob)  # noqa: PLW2901
            linked.append(entry)
        return linked

    def _evidence(self, wish: SnapshotWish, sample: Sample, budget: ByteBudget) -> Entry | None:
        interest = self._settings.interest
        snapshot = snapshot_of(sample, wish.box, max_side=interest.snapshot_max_side, quality=interest.snapshot_quality)
        if snapshot is None or not budget.spend(len(snapshot.data), self._around.monotonic_ns()):
            self._errors["snapshot-budget" if snapshot else "snapshot-error"] += 1
            return None
        if not self._around.may_keep(len(snapshot.data)):
            self._errors["link-budget"] += 1
            return None
        body = Evidence(
            evidence_id=wish.evidence_id,
            event_id=wish.event_id,
            pipeline=self.name,
            content_type=snapshot.content_type,
            captured_at_ns=sample.captured_at_ns,
            width=snapshot.width,
            height=snapshot.height,
        )
        return Entry("bulk", "evidence", body, sample.captured_at_ns, snapshot.data)

    # ---- the capture thread ----------------------------------------------------------------------

    def _new_inbox(self) -> LatestSlot[Sample] | Handoff[Sample]:
        """Choose how samples reach the inference thread.

        A recording played as fast as possible must wait for the pipeline; a live camera must not.
        """
        source = self._source_settings
        if isinstance(source, ReplaySource) and source.speed == "max":
            return Handoff(capacity=4)
        if isinstance(source, CameraSource) or (
            isinstance(source, ReplaySource) and source.file.suffix.lower() not in (".csv", ".npz")
        ):
            return LatestSlot()
        return Handoff(capacity=_WINDOWS_WAITING)

    def _deliver(self, model: Model) -> Callable[[Capture], None]:
        """Make what the capture thread does with a capture: frames go on, samples become windows."""
        spec = model.manifest.input
        inbox = self._inbox
        windower = (
            Windower(samples=spec.samples, hop=spec.hop_samples, channels=spec.channels)
            if isinstance(spec, WindowInput) and not spec.per_channel
            else None
        )
        per_channel: list[Windower] = []
        holding = Holding(self._around.max_held)

        def deliver(capture: Capture) -> None:
            self._captures += 1
            self._around.instruments.captured(self.name, 1)
            try:
                accept(capture)
            except ConfigError as error:  # told here: opening the source again would not help
                self._fails("wrong-source", error)
                if isinstance(capture, SampleBlock) and capture.held is not None:
                    capture.held.done()

        def accept(capture: Capture) -> None:
            if isinstance(capture, Frame):
                if isinstance(spec, WindowInput):
                    raise self._wrong_kind("pictures", "samples of a sensor")
                self._frames += 1
                inbox.put(capture)
                return
            if not isinstance(spec, WindowInput):
                raise self._wrong_kind("samples of a sensor", "pictures")
            maker = windower
            if maker is None:
                if not per_channel:
                    channels = capture.samples.shape[1]
                    per_channel.append(Windower(samples=spec.samples, hop=spec.hop_samples, channels=channels))
                maker = per_channel[0]
            windows = maker.push(capture)
            for window in holding.follow(capture, windows, maker.needed):
                self._windows += 1
                inbox.put(window)

        return deliver

    def _fails(self, reason: str, error: GatewayError) -> None:
        """Note a sample that could not be used; from the first of a row on the pipeline is degraded."""
        self._errors[reason] += 1
        if not self._failing:
            log.warning("pipeline_infers_nothing", pipeline=self.name, error=str(error))
        self._failing, self._last_error = True, str(error)

    def _wrong_kind(self, given: str, wanted: str) -> ConfigError:
        return ConfigError(
            f"source {self._settings.source} gives {given}, but model {self._settings.model} wants {wanted}; choose "
            f"another source or model for pipeline {self.name}"
        )

    def _on_state(self, state: SourceState) -> None:
        before, self._source_state = self._source_state, state
        if "frozen" in (before.state, state.state) and before.state != state.state:
            self._tell_frozen(state)
        if state.state == "ended":
            self._inbox.close()

    def _tell_frozen(self, state: SourceState) -> None:
        """Record that a source began or ceased to say the same again and again: nothing else would show it later."""
        frozen = state.state == "frozen"
        notice = Notice(
            code="source_frozen" if frozen else "source_not_frozen",
            severity="warning" if frozen else "info",
            detail=f"pipeline {self.name}, source {state.source}: {state.error if frozen else f'now {state.state}'}",
            at=rfc3339(state.since_ns),
        )
        try:
            self._around.submit([Entry("event", "notice", notice, state.since_ns)], lambda _receipts: None)
        except OutboxError as error:  # the gateway is stopping
            log.warning("notice_not_recorded", code=notice.code, pipeline=self.name, error=str(error))


PipelineState = PipelineStatus.__annotations__["state"]


@dataclass(frozen=True, slots=True)
class _Stages:
    """The stateful stages behind the interpreter, owned by the inference thread."""

    decider: Decider
    sums: MeasureAggregator
    budget: ByteBudget


def _settle(sample: Sample | None) -> None:
    """Say that what was decided from a sample is durable, or that it is of no use."""
    if isinstance(sample, Window) and sample.done is not None:
        sample.done()


def _told(error: BaseException) -> str:
    """Say an error; one that was not raised on purpose needs its type to be understood."""
    return str(error) if isinstance(error, GatewayError) else f"{type(error).__name__}: {error}"


def _link_to(evidence_id: str, entry: Entry) -> EvidenceLink:
    content_type = entry.body.content_type if isinstance(entry.body, Evidence) else ""
    return EvidenceLink(evidence_id=evidence_id, content_type=content_type, size_bytes=len(entry.blob))
