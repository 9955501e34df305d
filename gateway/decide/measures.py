"""Routine results travel as sums: one measure an interval instead of every inference."""

from bisect import bisect_right
from collections import Counter, deque
from collections.abc import Iterable, Mapping

import numpy as np

from gateway.decide.episodes import SECOND
from gateway.values import Entry, Inference
from gateway.wire.edges import INPUT_EDGES, LATENCY_EDGES_MS, SCORE_EDGES, Edges, trimmed
from gateway.wire.histogram import Histogram
from gateway.wire.messages import Measure, ModelRef, Spread
from gateway.wire.times import rfc3339

_KEPT = 8192
"""Scores and latencies kept of one interval; past that every second one is dropped, and the rest stand for all."""

Inputs = Iterable[tuple[str, Iterable[float]]]
"""Statistics of one sample by name, as `gateway.preprocess.statistics` makes them."""


class MeasureAggregator:
    """Sums up the inferences of one pipeline. Owned by its inference thread.

    A measure is of one model: when another answers, what was gathered before becomes a measure of its own.
    """

    def __init__(self, gateway: str, pipeline: str, every_seconds: float) -> None:
        self._gateway = gateway
        self._pipeline = pipeline
        self._every_ns = int(every_seconds * SECOND)
        self._dropped_before: Counter[str] = Counter()
        self._due_ns: int | None = None
        self._sums = _Sums()
        self._closed: deque[_Sums] = deque()

    def add(
        self, inference: Inference, sent_bytes: int, *, answered_ns: int | None = None, inputs: Inputs = ()
    ) -> None:
        """Count one inference.

        Args:
            inference: the answer.
            sent_bytes: what its decision sends to the cloud.
            answered_ns: monotonic time of the answer; without it the time from sample to answer is not counted.
            inputs: statistics of the sample.
        """
        sums = self._sums_of(inference.model, inference.captured_at_ns, inference.received_ns)
        sums.add(inference, sent_bytes, inputs)
        if answered_ns is not None:
            sums.times.add((answered_ns - inference.received_ns) / 1e6)

    def fail(self, model: ModelRef, captured_at_ns: int, received_ns: int) -> None:
        """Count one sample that the model could not answer: `captured_at_ns` is UTC, `received_ns` monotonic."""
        self._sums_of(model, captured_at_ns, received_ns).errors += 1

    def take(self, now_ns: int, dropped: Mapping[str, int]) -> Entry | None:
        """Return the measure when its interval is over; `dropped` counts since the start of the pipeline."""
        if self._closed:
            return self._entry(self._closed.popleft(), dropped)
        if self._due_ns is None or now_ns < self._due_ns:
            return None
        return self.finish(dropped)

    def finish(self, dropped: Mapping[str, int]) -> Entry | None:
        """Return what has gathered so far, or None if nothing has; more than once if the model has changed."""
        if self._closed:
            return self._entry(self._closed.popleft(), dropped)
        sums, self._sums, self._due_ns = self._sums, _Sums(), None
        return self._entry(sums, dropped) if sums.samples else None

    def _sums_of(self, model: ModelRef, captured_at_ns: int, received_ns: int) -> "_Sums":
        if self._sums.samples and self._sums.model != model:
            self._closed.append(self._sums)
            self._sums, self._due_ns = _Sums(), None
        sums = self._sums
        if not sums.samples:
            sums.model, sums.from_ns = model, captured_at_ns
            if self._due_ns is None:
                self._due_ns = received_ns + self._every_ns
        sums.to_ns = captured_at_ns
        return sums

    def _entry(self, sums: "_Sums", dropped: Mapping[str, int]) -> Entry:
        since = Counter(dropped)
        since.subtract(self._dropped_before)
        self._dropped_before = Counter(dropped)
        measure = Measure(
            gateway=self._gateway,
            pipeline=self._pipeline,
            started_at=rfc3339(sums.from_ns),
            ended_at=rfc3339(sums.to_ns),
            captured_from_ns=sums.from_ns,
            captured_to_ns=sums.to_ns,
            inferences=sums.inferences,
            labels=dict(sums.labels),
            score=sums.scores.spread(),
            latency_ms=sums.latencies.spread(),
            dropped={reason: count for reason, count in since.items() if count},
            raw_bytes=sums.raw_bytes,
            sent_bytes=sums.sent_bytes,
            model=sums.model,
            errors=sums.errors,
            scores=sums.best.whole(),
            latencies_ms=sums.times.whole(),
            inputs={name: trimmed(bins.edges, bins.counts) for name, bins in sums.inputs.items()},
        )
        return Entry("measure", "measure", measure, sums.to_ns)


class _Sums:
    """What one measure is made of."""

    def __init__(self) -> None:
        self.model: ModelRef | None = None
        self.from_ns = self.to_ns = 0
        self.inferences = self.errors = 0
        self.labels: Counter[str] = Counter()
        self.scores, self.latencies = _Sample(), _Sample()
        self.best, self.times = _Bins(SCORE_EDGES), _Bins(LATENCY_EDGES_MS)
        self.inputs: dict[str, _Bins] = {}
        self.raw_bytes = self.sent_bytes = 0

    @property
    def samples(self) -> int:
        """Answered or not."""
        return self.inferences + self.errors

    def add(self, inference: Inference, sent_bytes: int, inputs: Inputs) -> None:
        self.inferences += 1
        self.raw_bytes += inference.raw_bytes
        self.sent_bytes += sent_bytes
        self.latencies.add(inference.invoke_ns / 1e6)
        for finding in inference.findings:
            self.scores.add(finding.score)
            if not inference.anomaly or finding.score >= 0.5:
                self.labels[finding.label] += 1
        # The best of many channels is distributed otherwise than one channel, which is what training has seen.
        counted = inference.findings if inference.anomaly else inference.findings[:1]
        for finding in counted:
            self.best.add(finding.score)
        for name, values in inputs:
            bins = self.inputs.get(name)
            if bins is None:
                bins = self.inputs[name] = _Bins(INPUT_EDGES[name])
            for value in values:
                bins.add(value)


class _Bins:
    """A histogram that grows."""

    def __init__(self, edges: Edges) -> None:
        self.edges = edges
        self.counts = [0] * (len(edges) + 1)

    def add(self, value: float) -> None:
        if value == value:  # noqa: PLR0124  # not a number: counted nowhere
            self.counts[bisect_right(self.edges, value)] += 1

    def whole(self) -> Histogram | None:
        return Histogram(edges=self.edges, counts=tuple(self.counts)) if any(self.counts) else None


class _Sample:
    """A bounded, evenly thinned sample with an exact minimum, mean and maximum."""

    def __init__(self) -> None:
        self._kept: list[float] = []
        self._stride = 1
        self._count = 0
        self._sum = 0.0
        self._minimum = float("inf")
        self._maximum = float("-inf")

    def add(self, value: float) -> None:
        if self._count % self._stride == 0:
            self._kept.append(value)
            if len(self._kept) >= _KEPT:
                self._kept = self._kept[::2]
                self._stride *= 2
        self._count += 1
        self._sum += value
        self._minimum = min(self._minimum, value)
        self._maximum = max(self._maximum, value)

    def spread(self) -> Spread | None:
        if self._count == 0:
            return None
        p50, p95 = (float(q) for q in np.percentile(self._kept, (50, 95)))
        return Spread(
            minimum=round(self._minimum, 6),
            mean=round(self._sum / self._count, 6),
            maximum=round(self._maximum, 6),
            p50=round(p50, 6),
            p95=round(p95, 6),
        )
