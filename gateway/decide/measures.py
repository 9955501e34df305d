"""Routine results travel as sums: one measure an interval instead of every inference."""

from collections import Counter
from collections.abc import Mapping

import numpy as np

from gateway.decide.episodes import SECOND
from gateway.values import Entry, Inference
from gateway.wire.messages import Measure, ModelRef, Spread
from gateway.wire.times import rfc3339

_KEPT = 8192
"""Scores and latencies kept of one interval; past that every second one is dropped, and the rest stand for all."""


class MeasureAggregator:
    """Sums up the inferences of one pipeline. Owned by its inference thread."""

    def __init__(self, gateway: str, pipeline: str, every_seconds: float) -> None:
        self._gateway = gateway
        self._pipeline = pipeline
        self._every_ns = int(every_seconds * SECOND)
        self._dropped_before: Counter[str] = Counter()
        self._due_ns: int | None = None
        self._reset()

    def _reset(self) -> None:
        self._from_ns = self._to_ns = 0
        self._inferences = 0
        self._labels: Counter[str] = Counter()
        self._scores = _Sample()
        self._latencies = _Sample()
        self._raw_bytes = self._sent_bytes = 0
        self._model: ModelRef | None = None

    def add(self, inference: Inference, sent_bytes: int) -> None:
        """Count one inference, and the bytes that its decision sends to the cloud."""
        if self._inferences == 0:
            self._from_ns = inference.captured_at_ns
            if self._due_ns is None:
                self._due_ns = inference.received_ns + self._every_ns
        self._to_ns = inference.captured_at_ns
        self._inferences += 1
        self._raw_bytes += inference.raw_bytes
        self._sent_bytes += sent_bytes
        self._latencies.add(inference.invoke_ns / 1e6)
        self._model = inference.model
        for finding in inference.findings:
            self._scores.add(finding.score)
            if not inference.anomaly or finding.score >= 0.5:
                self._labels[finding.label] += 1

    def take(self, now_ns: int, dropped: Mapping[str, int]) -> Entry | None:
        """Return the measure when its interval is over; `dropped` counts since the start of the pipeline."""
        if self._due_ns is None or now_ns < self._due_ns:
            return None
        self._due_ns = None
        return self.finish(dropped)

    def finish(self, dropped: Mapping[str, int]) -> Entry | None:
        """Return what has gathered so far, or None if nothing has."""
        if self._inferences == 0:
            return None
        since = Counter(dropped)
        since.subtract(self._dropped_before)
        self._dropped_before = Counter(dropped)
        measure = Measure(
            gateway=self._gateway,
            pipeline=self._pipeline,
            started_at=rfc3339(self._from_ns),
            ended_at=rfc3339(self._to_ns),
            captured_from_ns=self._from_ns,
            captured_to_ns=self._to_ns,
            inferences=self._inferences,
            labels=dict(self._labels),
            score=self._scores.spread(),
            latency_ms=self._latencies.spread(),
            dropped={reason: count for reason, count in since.items() if count},
            raw_bytes=self._raw_bytes,
            sent_bytes=self._sent_bytes,
            model=self._model,
        )
        recorded_at_ns = self._to_ns
        self._reset()
        return Entry("measure", "measure", measure, recorded_at_ns)


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
