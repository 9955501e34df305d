"""Lets a new release answer the live samples of the old one before it takes over; only the old answers count.

The new one runs on a thread of its own and rests as long as it has worked, so that the pipeline keeps its pace; what
comes meanwhile is not shown to it.
"""

import threading
from collections.abc import Callable
from typing import Final

import structlog

from gateway.errors import InferenceError
from gateway.inference.model import Model
from gateway.ota.distances import ks_distance, quantile
from gateway.ota.watch import Look
from gateway.values import Inference, Sample

log = structlog.get_logger()

NEAR: Final = 0.1
"""Two scores that differ by no more say the same."""
_PATIENCE_SECONDS: Final = 300.0


class Shadow:
    """A paired comparison of two releases."""

    def __init__(self, model: Model, wanted: int, monotonic: Callable[[], float]) -> None:
        """Take the model that is not to count yet; it stays the caller's.

        Args:
            model: loaded.
            wanted: how many samples both are to answer.
            monotonic: a clock, seconds.
        """
        self._model = model
        self._wanted = wanted
        self._monotonic = monotonic
        self._changed = threading.Condition()
        self._next: tuple[Sample, Inference] | None = None
        self._pairs: list[tuple[Inference, Inference, float]] = []
        self._errors = 0

    def look(self, sample: Sample, inference: Inference) -> None:
        """Take a sample and the old answer if nothing is being looked at; never waits."""
        with self._changed:
            if self._next is None:
                self._next = (sample, inference)
                self._changed.notify()

    def compare(
        self, show: Callable[[Look | None], None], stopping: threading.Event, patience: float = _PATIENCE_SECONDS
    ) -> dict[str, float]:
        """Look at samples until there are enough; returns the figures for `UpdateState.comparison`.

        Args:
            show: has `look` called with each sample, and no more with None.
            stopping: ends it early.
            patience: seconds; a source that gives little must not hold up an update for ever.
        """
        until = self._monotonic() + patience
        show(self.look)
        try:
            while len(self._pairs) + self._errors < self._wanted and not stopping.is_set():
                with self._changed:
                    self._changed.wait_for(lambda: self._next is not None, 0.2)
                    given = self._next
                if self._monotonic() >= until:
                    log.info("shadow_ended_early", samples=len(self._pairs), wanted=self._wanted)
                    break
                if given is not None:
                    stopping.wait(self._answer(*given))
                    with self._changed:
                        self._next = None
        finally:
            show(None)
        return self.figures()

    def figures(self) -> dict[str, float]:
        """Sum up: samples, errors, agreement of the best labels, how far scores are apart, ratio of run times."""
        figures = {"samples": float(len(self._pairs)), "errors": float(self._errors)}
        if not self._pairs:
            return figures
        agreed = sum(_agree(old, new) for old, new, _ in self._pairs)
        before = [_score(old) for old, _, _ in self._pairs]
        after = [_score(new) for _, new, _ in self._pairs]
        old_ms = quantile([old.invoke_ns / 1e6 for old, _, _ in self._pairs], 0.5)
        new_ms = quantile([new.invoke_ns / 1e6 for _, new, _ in self._pairs], 0.5)
        return figures | {
            "agreement": round(agreed / len(self._pairs), 4),
            "score_ks": round(ks_distance(before, after), 4),
            "score_mean_difference": round((sum(after) - sum(before)) / len(self._pairs), 5),
            "latency_ratio": round(new_ms / old_ms, 3) if old_ms > 0 else 0.0,
            "latency_p95_ms": round(quantile([ms for _, _, ms in self._pairs], 0.95), 3),
        }

    def _answer(self, sample: Sample, old: Inference) -> float:
        """Answer a sample; returns how long that took, seconds."""
        began = self._monotonic()
        try:
            new = self._model.infer(sample)
        except InferenceError as error:
            self._errors += 1
            if self._errors == 1:
                log.warning("shadow_without_answer", model=self._model.ref.version, error=str(error))
            return self._monotonic() - began
        took = self._monotonic() - began
        self._pairs.append((old, new, took * 1e3))
        return took


def _score(inference: Inference) -> float:
    return inference.findings[0].score if inference.findings else 0.0


def _agree(one: Inference, other: Inference) -> bool:
    if not one.findings or not other.findings:
        return not one.findings and not other.findings
    if one.anomaly or other.anomaly:
        return (_score(one) >= 0.5) == (_score(other) >= 0.5) or abs(_score(one) - _score(other)) <= NEAR
    return one.findings[0].label == other.findings[0].label
