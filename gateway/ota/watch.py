"""Looks on while a pipeline answers: what the release that serves does lately, and what one on trial has done."""

import threading
from collections import Counter, deque
from collections.abc import Callable
from typing import Final

from gateway.errors import InferenceError
from gateway.inference.postprocess import NotFiniteError
from gateway.ota.distances import quantile, without_stalls
from gateway.ota.journal import MadeFor, Reference
from gateway.ota.trial import Seen
from gateway.preprocess.statistics import Statistics, statistics_of
from gateway.values import Inference, Sample
from gateway.wire.manifest import ModelManifest
from gateway.wire.messages import ModelRef

LATELY: Final = 400
"""Answers of the release before that one on trial is held against; they go into the journal."""
TRIAL_SCORES: Final = 6400
TRIAL_INPUTS: Final = 400
"""Values of each statistic of the inputs of a release on trial; what does not show in so many is for the bridge."""
_OUTCOMES: Final = 400

Look = Callable[[Sample, Inference], None]


class Watch:
    """The spectator of one pipeline (`gateway.surroundings.Spectator`). Every method may be called from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._model: ModelRef | None = None
        self._shadow: Look | None = None
        self._gaps: dict[tuple[str, str], float] = {}
        self._clear()

    def _clear(self) -> None:
        self._answers = self._errors = self._not_finite = 0
        self._scores: deque[float] = deque(maxlen=LATELY)
        self._labels: deque[str] = deque(maxlen=LATELY)
        self._latencies: deque[float] = deque(maxlen=LATELY)
        self._busy: deque[float] = deque(maxlen=LATELY)
        self._outcomes: deque[bool] = deque(maxlen=_OUTCOMES)
        self._trial_scores: list[float] = []
        self._trial_labels: Counter[str] = Counter()
        self._inputs, self._tensor = _Lately(), _Lately()

    # ---- told by the pipeline -----------------------------------------------------------------------

    def answered(self, sample: Sample, inference: Inference, seconds: float, busy_seconds: float) -> None:
        """Note an answer."""
        best = inference.findings[0] if inference.findings else None
        score = best.score if best is not None else 0.0
        # Of an anomaly model the label is always the same; whether it is one is the answer.
        says = best is not None and (not inference.anomaly or score >= 0.5)
        label = best.label if best is not None and says else ""
        inputs = statistics_of(sample)
        with self._lock:
            self._begin(inference.model)
            self._answers += 1
            self._scores.append(score)
            self._labels.append(label)
            self._latencies.append(seconds * 1e3)
            self._busy.append(busy_seconds * 1e3)
            self._outcomes.append(True)
            if len(self._trial_scores) < TRIAL_SCORES:
                self._trial_scores.append(score)
                self._trial_labels[label] += 1
            self._inputs.add(inputs)
            self._tensor.add(inference.given)
            shadow = self._shadow
        if shadow is not None:
            shadow(sample, inference)

    def failed(self, model: ModelRef, error: InferenceError) -> None:
        """Note a sample without an answer."""
        with self._lock:
            self._begin(model)
            self._errors += 1
            self._not_finite += isinstance(error, NotFiniteError)
            self._outcomes.append(False)

    def swapped(self, model: ModelRef, gap_seconds: float) -> None:
        """Note how long nothing was answered at a swap."""
        with self._lock:
            self._gaps[model.name, model.version] = gap_seconds

    # ---- asked by the agent -------------------------------------------------------------------------

    def gap_ms(self, model: ModelRef) -> float | None:
        """Return by how much the first answer of a release was late, None while there is none."""
        with self._lock:
            seconds = self._gaps.get((model.name, model.version))
        return None if seconds is None else round(seconds * 1e3, 3)

    def forget_gap(self, model: ModelRef) -> None:
        """Forget it, before the release takes over once more."""
        with self._lock:
            self._gaps.pop((model.name, model.version), None)

    def reference(self, manifest: ModelManifest | None = None) -> Reference:
        """Sum up what the release that serves, whose manifest this is, did lately."""
        with self._lock:
            return Reference(
                scores=tuple(round(score, 5) for score in self._scores),
                labels=dict(Counter(self._labels)),
                latency_p95_ms=(
                    round(quantile(without_stalls(self._latencies, self._busy), 0.95), 3) if self._latencies else None
                ),
                error_share=1 - sum(self._outcomes) / len(self._outcomes) if self._outcomes else 0.0,
                inputs=self._inputs.last(),
                tensor=self._tensor.last(),
                made_for=MadeFor.of(manifest) if manifest is not None else None,
            )

    def seen(self, name: str, version: str, *, seconds: float, crashes: int, stuck_seconds: float) -> Seen:
        """Sum up what a release has done since it took over; nothing, if it has not answered yet."""
        with self._lock:
            model = self._model
            if model is None or (model.name, model.version) != (name, version):
                return Seen(seconds=seconds, crashes=crashes, stuck_seconds=stuck_seconds)
            return Seen(
                seconds=seconds,
                answers=self._answers,
                errors=self._errors,
                not_finite=self._not_finite,
                latencies_ms=tuple(self._latencies),
                busy_ms=tuple(self._busy),
                scores=tuple(self._trial_scores),
                labels=dict(self._trial_labels),
                inputs=self._inputs.first(),
                tensor=self._tensor.first(),
                crashes=crashes,
                stuck_seconds=stuck_seconds,
            )

    def let_look(self, shadow: Look | None) -> None:
        """Show each sample and its answer to somebody else, too; None: to nobody."""
        with self._lock:
            self._shadow = shadow

    def _begin(self, model: ModelRef) -> None:
        if model != self._model:
            self._model = model
            self._clear()


class _Lately:
    """Values of statistics by name: the first ones of a release, and the last ones."""

    def __init__(self) -> None:
        self._first: dict[str, list[float]] = {}
        self._last: dict[str, deque[float]] = {}

    def add(self, statistics: Statistics) -> None:
        for name, values in statistics:
            first = self._first.setdefault(name, [])
            first.extend(values[: TRIAL_INPUTS - len(first)])
            self._last.setdefault(name, deque(maxlen=LATELY)).extend(values)

    def first(self) -> dict[str, tuple[float, ...]]:
        return {name: tuple(values) for name, values in self._first.items()}

    def last(self) -> dict[str, tuple[float, ...]]:
        return {name: tuple(float(f"{value:.5g}") for value in values) for name, values in self._last.items()}
