"""Connects the stages for one pipeline: source, preprocessing, inference, decisions, outbox.

Two threads: `capture-<source>` owns the device, `infer-<name>` owns the interpreter and the rules. Frames of a
live camera pass through a slot that keeps the newest; windows and recordings pass through a queue.
"""

import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence

import msgspec
import structlog

from gateway.config import Pipeline as PipelineSettings
from gateway.config import Source as SourceSettings
from gateway.decide.budget import ByteBudget
from gateway.decide.decider import Decider, Origin
from gateway.decide.measures import MeasureAggregator
from gateway.errors import (
    BackendUnavailableError,
    ConfigError,
    GatewayError,
    InferenceError,
    ModelAwaitedError,
    OutboxError,
    PipelineBusyError,
    WeightsWithheldError,
)
from gateway.inference.model import Model
from gateway.inference.slot import ModelSlot
from gateway.intake import Intake, same_samples, same_source
from gateway.pipelinerun import AbandonedError, Handover, Inbox, Run, Stages, inbox_for, settle
from gateway.preprocess.statistics import statistics_of
from gateway.proofs import Proofs
from gateway.rate import Rate
from gateway.report import PipelineTotals
from gateway.sources.capture import CaptureThread, SourceState
from gateway.sources.fresh import guard_for
from gateway.sources.presence import LocalDevice
from gateway.sources.slot import LatestSlot
from gateway.sources.still import watch_for
from gateway.surroundings import Surroundings
from gateway.swapgap import SwapGap
from gateway.values import Capture, Entry, Frame, Receipt, Sample, SampleBlock
from gateway.wire.messages import Event, ModelRef, Notice, PipelineStatus, encode
from gateway.wire.times import rfc3339

log = structlog.get_logger()

_WAIT_SECONDS = 0.25
"""How long the inference thread waits for a sample before it lets time pass for the rules."""
_LOOK_EVERY_SECONDS = 0.02


class Pipeline:
    """One source through one model. `run` blocks; everything else may be called from any thread."""

    def __init__(self, name: str, settings: PipelineSettings, source: SourceSettings, around: Surroundings) -> None:
        self.name = name
        self._settings = settings
        self._source_settings = source
        self._around = around
        self._stopping = threading.Event()
        self._inbox: Inbox = inbox_for(self._source_settings)
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
        self._proofs = Proofs(
            name, settings.interest, around.may_keep, around.monotonic_ns, self._drop, wanted=around.wants_pictures
        )
        self._progress_ns = around.monotonic_ns()
        self._recording = False
        self._failing = False  # the last sample could not be used
        self._swapping = threading.Lock()
        self._run: Run | None = None  # while it runs
        self._gap = SwapGap()
        self._looking_ns: int | None = None

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
            if self._capture is not None:
                drops.update(_drops_of(self._capture, self._inbox))
        return {reason: count for reason, count in drops.items() if count}

    def status(self) -> PipelineStatus:
        """Tell how the pipeline is doing."""
        source, capture = self._source_state, self._capture
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
            waits_for=self._waits_for or ("device" if capture is not None and capture.absent else ""),
        )

    @property
    def looking_seconds(self) -> float:
        """How long the model has been looking at the present sample; 0 between two."""
        since_ns = self._looking_ns
        return 0.0 if since_ns is None else (self._around.monotonic_ns() - since_ns) / 1e9

    def swap(self, model: Model, timeout_seconds: float = 30.0) -> Model:
        """Let another model answer from the next sample on; returns the old one, idle and the caller's to close.

        No sample is lost. Where the new model wants other windows than the old, those that are cut already are answered
        by the old one, and the window that is being filled is begun anew.

        Raises:
            PipelineBusyError: the pipeline waits for the outbox and does not come to the end of its windows: the new
                model was not taken and is the caller's to close.
            InferenceError: the same where it does not wait for that, or does not run. Or the old model is at one sample
                for longer than the time-out: the new one is in its place (`model`), and waits.
        """
        with self._swapping:
            run = self._run
            if run is None or run.abandoned:
                raise InferenceError(f"pipeline {self.name} does not run")
            slot = run.slot
            old = slot.current
            if not same_source(old.manifest.input, model.manifest.input):
                raise InferenceError(
                    f"model {model.ref.name} {model.ref.version} wants other samples than source "
                    f"{self._settings.source} gives"
                )
            if same_samples(old.manifest.input, model.manifest.input):
                slot.exchange(model)
            else:
                self._hand_over(run, Handover(model), old, timeout_seconds)
            self._model, self._backend = model.ref, model.info.backend
        if not slot.drained(old, timeout_seconds):
            raise InferenceError(f"model {old.ref.name} {old.ref.version} is at one sample for too long")
        return old

    @property
    def model(self) -> Model | None:
        """The model that the next sample gets; None while it does not run. Read its manifest, do not use it."""
        run = self._run
        return run.slot.current if run is not None and not run.abandoned else None

    @property
    def device(self) -> LocalDevice | None:
        """What its source reads, where it is a device of this machine."""
        return self._around.device

    @property
    def backend(self) -> str:
        """What the present run answers on; empty while there is none."""
        return self._backend if self._run is not None else ""

    @property
    def failing(self) -> bool:
        """Whether the model could not answer the last sample."""
        return self._failing

    def look_again(self) -> None:
        """Act at once on a device of the source that may have come or gone; from any thread."""
        capture = self._capture
        if capture is not None:
            capture.look_again()

    def abandon(self, reason: str, error: GatewayError | None = None) -> None:
        """Leave the present run, whose thread hangs in its model: open events end, and `leave` hears of it.

        The thread stays where it is for as long as the model does; its sample is lost and counted. `error`: what the
        run ended with, where it is not the model's fault.
        """
        run = self._run
        if run is None:
            return
        run.abandoned = True
        self._ended_with(error, reason)
        self._inbox.close()
        # A thread that does not hang comes to its own end.
        if self._looking_ns is not None and run.claim():
            log.error("pipeline_abandoned", pipeline=self.name, reason=reason)
            self._errors["hanging-model"] += 1
            self._looking_ns = None
            self._end(run)
        else:  # the next run needs the device, however long this one waits for the outbox
            run.capture.stop()
        self._around.leave(error or InferenceError(f"pipeline {self.name} was left: {reason}"))

    def _hand_over(self, run: Run, handover: Handover, old: Model, timeout_seconds: float) -> None:
        """Have a model take over behind the last window that was cut for the old one; errors as `swap`."""
        deadline = time.monotonic() + timeout_seconds
        # Not begun while it waits for the outbox: windows that are cut for the new model meanwhile suit no other.
        while self._recording and time.monotonic() < deadline:
            self._stopping.wait(_LOOK_EVERY_SECONDS)
        if self._recording:
            raise self._busy()

        def follow(left_seconds: float) -> bool:
            if isinstance(run.inbox, LatestSlot):  # which always has room
                run.inbox.put(handover)
                return True
            return run.inbox.put(handover, left_seconds)

        if run.intake.change(handover.model.manifest.input, follow, max(0.0, deadline - time.monotonic())):
            if handover.done.wait(max(0.0, deadline - time.monotonic())) or not handover.claim():
                return
            run.intake.recall(old.manifest.input)
        if self._recording:
            raise self._busy()
        raise InferenceError(f"pipeline {self.name} does not come to the end of its windows")

    def _busy(self) -> PipelineBusyError:
        return PipelineBusyError(f"pipeline {self.name} waits for the outbox: look at its disk, and at its quotas")

    def stop(self) -> None:
        """Ask `run` to return; it ends open events and hands everything to the outbox first."""
        self._stopping.set()
        self._inbox.close()

    # ---- the inference thread --------------------------------------------------------------------

    def run(self) -> None:
        """Run until stopped, or until a finite recording has ended.

        Raises:
            InferenceError: the run was abandoned.
            ModelError: the model cannot be used.
            WeightsWithheldError: the key of the model is not given out now; run it again.
            ModelAwaitedError: none is here; run it again.
            BackendUnavailableError: the accelerator asked for is not there.
        """
        self._state = "starting"
        try:
            self._work()
            self._state = "stopped"
        finally:
            error = sys.exception()
            if error is not None and not isinstance(error, AbandonedError):
                self._ended_with(error, _told(error))
                # The source was closed: it does not stream any more, and the next run opens it again.
                self._source_state = SourceState(self._settings.source, "opening", self._around.wall_ns())

    def _ended_with(self, error: BaseException | None, reason: str) -> None:
        """Note what a run ended with; one that waits for something has not failed."""
        self._waits_for = _awaited(error)
        self._state = "starting" if self._waits_for in ("key", "model") else "failed"
        self._last_error = reason
        if self._waits_for == "model":
            self._model, self._backend = None, ""

    def _work(self) -> None:
        around = self._around
        model = around.load_model()
        self._model, self._backend = model.ref, model.info.backend
        slot = ModelSlot(model)
        around.renew()
        self._inbox = inbox_for(self._source_settings)
        self._gap = SwapGap()
        intake = Intake(model.manifest.input, around.max_held, self._wrong_kind)
        decider = Decider(Origin(around.gateway, self.name, around.time_zone), self._settings, around.new_id)
        budget = ByteBudget(self._settings.interest.snapshot_bytes_per_hour)
        stages = Stages(decider, self._sums, budget)
        capture = CaptureThread(
            self._settings.source,
            around.open_source,
            self._deliver(intake),
            self._on_state,
            guard=guard_for(self._source_settings),
            watch=watch_for(self._source_settings),
            there=around.device.there if around.device is not None else None,
            wall_clock=around.wall_ns,
        )
        self._capture = capture
        run = Run(slot, intake, stages, capture, self._inbox)
        try:
            self._state, self._last_error, self._failing, self._waits_for = "running", None, False, ""
            if not self._stopping.is_set():
                capture.start()  # last: from here on the capture thread may have an error to tell
            self._run = run
            self._loop(run)
        finally:
            if run.claim():
                self._end(run)
            slot.close()  # here, where the model is not in use any more
        if run.abandoned:
            raise AbandonedError(f"pipeline {self.name} was abandoned")

    def _end(self, run: Run) -> None:
        """End what a run has begun, but for its model; the next one may have begun before it comes to that."""
        if self._run is run:
            self._run = None
        run.inbox.close()  # the capture thread may wait for room in it
        run.capture.stop()
        with self._drops_lock:  # a reader must see what the run dropped once, not twice and not never
            self._errors.update(_drops_of(run.capture, run.inbox))
            if self._capture is run.capture:
                self._capture = None
        self._finish(run.stages)

    def _loop(self, run: Run) -> None:
        slot, stages = run.slot, run.stages
        while not self._stopping.is_set() and not run.abandoned:
            sample = run.inbox.take(_WAIT_SECONDS)
            now_ns = self._around.monotonic_ns()
            self._progress_ns = now_ns
            if isinstance(sample, Handover):
                if sample.claim():
                    slot.exchange(sample.model)
                    sample.done.set()
            elif sample is not None:
                self._step(run, sample)
            else:
                self._record(self._proofs.linked(stages.decider.tick(now_ns, self._around.wall_ns()).entries))
                self._measure(stages, now_ns)
                if run.inbox.closed:
                    return

    def _step(self, run: Run, sample: Sample) -> None:
        around, stages = self._around, run.stages
        started_ns, waited_ns, busy_ns = around.monotonic_ns(), around.waited_ns(), around.busy_ns()
        self._looking_ns = started_ns
        try:
            with run.slot.using() as model:
                run.answers(model)
                inference = model.infer(sample)
        except InferenceError as error:
            if run.abandoned:
                return
            around.spectator.failed(model.ref, error)
            self._fails("inference-error", error)
            stages.sums.fail(model.ref, sample.captured_at_ns, sample.received_ns)
            settle(sample)
            self._measure(stages, around.monotonic_ns())
            return
        finally:
            if not run.abandoned:
                self._looking_ns = None
        if run.abandoned:  # another run has the source by now; a leaf's message is handed over again
            return
        if self._failing:
            self._failing = False
            log.info("pipeline_infers_again", pipeline=self.name, failed=self._errors["inference-error"])
        ended_ns = around.monotonic_ns()
        own_ns = max(0, ended_ns - started_ns - (around.waited_ns() - waited_ns))
        # What this thread waits for an accelerator is the model's, also where that comes now and then.
        busy_ns = around.busy_ns() - busy_ns if model.info.device == "cpu" else own_ns
        self._inferences += 1
        self._rate.tick(ended_ns)
        around.spectator.answered(sample, inference, own_ns / 1e9, busy_ns / 1e9)
        if (gap_seconds := self._gap.answered(inference.model, ended_ns)) is not None:
            around.spectator.swapped(inference.model, gap_seconds)
        around.instruments.inferred(self.name, inference, (ended_ns - started_ns) / 1e9, model.batch_fill(sample))
        decision = stages.decider.step(inference)
        self._open_events = stages.decider.open_events
        entries = self._proofs.with_evidence(decision, sample, stages.budget)
        sent_bytes = sum(len(encode(entry.body)) + len(entry.blob) for entry in entries)
        stages.sums.add(inference, sent_bytes, answered_ns=ended_ns, inputs=statistics_of(sample))
        self._raw_bytes += inference.raw_bytes
        self._sent_bytes += sent_bytes
        around.instruments.sent(self.name, inference.raw_bytes, sent_bytes)
        self._record(entries, sample)
        self._measure(stages, ended_ns)

    def _measure(self, stages: Stages, now_ns: int) -> None:
        entry = stages.sums.take(now_ns, self.dropped())
        if entry is not None:
            self._record((entry,))

    def _finish(self, stages: Stages) -> None:
        entries = self._proofs.linked(stages.decider.finish(self._around.wall_ns()).entries)
        while (last := stages.sums.finish(self.dropped())) is not None:
            entries.append(last)
        self._open_events = 0
        self._record(entries)

    def _record(self, entries: Sequence[Entry], sample: Sample | None = None) -> None:
        """Make entries durable, then tell them and settle the sample; waits when the disk is slower than the pipeline.

        A sample that nothing was decided from is settled at once: what was decided from the ones before may not be
        durable yet, but these are acknowledged first, whatever the order in which they are settled.
        """
        if not entries:
            settle(sample)
            return

        def durable(_receipts: Sequence[Receipt]) -> None:
            settle(sample)
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

    def _drop(self, reason: str) -> None:
        self._errors[reason] += 1

    # ---- the capture thread ----------------------------------------------------------------------

    def _deliver(self, intake: Intake) -> Callable[[Capture], None]:
        """Make what the capture thread does with a capture: frames go on, samples become windows."""
        inbox = self._inbox

        def put(sample: Sample) -> None:
            if isinstance(sample, Frame):
                self._frames += 1
            else:
                self._windows += 1
            inbox.put(sample)

        def deliver(capture: Capture) -> None:
            self._captures += 1
            self._around.instruments.captured(self.name, 1)
            try:
                intake.accept(capture, put)
            except ConfigError as error:  # told here: opening the source again would not help
                self._fails("wrong-source", error)
                if self._model is not None:  # a release on trial must not wait for ever for samples that cannot come
                    self._around.spectator.failed(self._model, InferenceError(str(error)))
                if isinstance(capture, SampleBlock) and capture.held is not None:
                    capture.held.done()

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


def _drops_of(capture: CaptureThread, inbox: Inbox) -> Counter[str]:
    """Count what one run of the source has dropped."""
    drops: Counter[str] = Counter(capture.drops)
    if isinstance(inbox, LatestSlot):
        drops["newer-frame"] += inbox.dropped
    return drops


PipelineState = PipelineStatus.__annotations__["state"]


def _awaited(error: BaseException | None) -> str:
    """Return what a run that ended so waits for, "" for nothing."""
    match error:
        case WeightsWithheldError():
            return "key"
        case ModelAwaitedError():
            return "model"
        case BackendUnavailableError():
            return "accelerator"
        case _:
            return ""


def _told(error: BaseException) -> str:
    """Say an error; one that was not raised on purpose needs its type to be understood."""
    return str(error) if isinstance(error, GatewayError) else f"{type(error).__name__}: {error}"
