"""Sums of routine results, and the byte budget."""

import pytest

from gateway.decide.budget import ByteBudget
from gateway.decide.measures import MeasureAggregator
from gateway.values import Finding, Inference
from gateway.wire.messages import Measure, ModelRef

SECOND = 1_000_000_000


def seen(at: int, score: float, *, anomaly: bool = False) -> Inference:
    model = ModelRef(name="m", version="1.0.0")
    return Inference("s", 1, at * SECOND, at * SECOND, model, (Finding("x", score),), 2_000_000, 1000, anomaly)


def test_an_interval_becomes_one_measure_with_its_sums() -> None:
    sums = MeasureAggregator("gw", "p", every_seconds=10)
    for at in range(10):
        sums.add(seen(at, at / 10), sent_bytes=5)
        assert sums.take(at * SECOND, {}) is None
    entry = sums.take(10 * SECOND, {"slot": 3})
    assert entry is not None
    body = entry.body
    assert isinstance(body, Measure)
    assert (body.inferences, body.labels, body.raw_bytes, body.sent_bytes) == (10, {"x": 10}, 10_000, 50)
    assert body.dropped == {"slot": 3}
    assert body.score is not None
    assert (body.score.minimum, body.score.maximum, body.score.mean) == (0.0, 0.9, pytest.approx(0.45))


def test_drops_are_counted_once_over_several_intervals() -> None:
    sums = MeasureAggregator("gw", "p", every_seconds=1)
    drops = []
    for at, dropped in enumerate([2, 2, 5]):
        sums.add(seen(at, 0.5), sent_bytes=0)
        entry = sums.finish({"slot": dropped})
        assert entry is not None
        assert isinstance(entry.body, Measure)
        drops.append(entry.body.dropped)
    assert drops == [{"slot": 2}, {}, {"slot": 3}]


def test_an_anomaly_model_counts_only_anomalies_as_labels() -> None:
    sums = MeasureAggregator("gw", "p", every_seconds=1)
    for score in (0.1, 0.2, 0.6):
        sums.add(seen(0, score, anomaly=True), sent_bytes=0)
    entry = sums.finish({})
    assert entry is not None
    assert isinstance(entry.body, Measure)
    assert entry.body.labels == {"x": 1}


def test_a_long_interval_keeps_a_bounded_even_sample() -> None:
    sums = MeasureAggregator("gw", "p", every_seconds=1e6)
    for at in range(50_000):
        sums.add(seen(at, at / 50_000), sent_bytes=0)
    entry = sums.finish({})
    assert entry is not None
    assert isinstance(entry.body, Measure)
    assert entry.body.score is not None
    assert entry.body.score.p50 == pytest.approx(0.5, abs=0.01)
    assert entry.body.score.p95 == pytest.approx(0.95, abs=0.01)


def test_nothing_seen_makes_no_measure() -> None:
    assert MeasureAggregator("gw", "p", 1).finish({}) is None


def test_a_budget_refuses_what_it_has_not_and_refills_with_time() -> None:
    budget = ByteBudget(3600)
    assert budget.spend(3600, 0)
    assert not budget.spend(1, 0)
    assert budget.spend(10, 10 * SECOND)
    assert not budget.spend(1, 10 * SECOND)
    assert not budget.spend(3601, 3 * 3600 * SECOND)
