"""Sums of routine results, and the byte budget."""

from dataclasses import replace

import pytest

from gateway.decide.budget import ByteBudget
from gateway.decide.measures import MeasureAggregator
from gateway.values import Entry, Finding, Inference
from gateway.wire.edges import LATENCY_EDGES_MS, SCORE_EDGES
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


def body_of(entry: Entry | None) -> Measure:
    assert entry is not None
    assert isinstance(entry.body, Measure)
    return entry.body


def test_scores_are_counted_in_twentieths_and_times_in_fixed_steps() -> None:
    sums = MeasureAggregator("gw", "p", every_seconds=10)
    for at, score in enumerate((0.0, 0.049, 0.05, 0.97, 1.0)):
        sums.add(seen(at, score), sent_bytes=0, answered_ns=at * SECOND + 3_000_000)
    body = body_of(sums.finish({}))
    assert body.scores is not None
    assert body.scores.edges == SCORE_EDGES
    assert (body.scores.counts[1], body.scores.counts[2], body.scores.counts[20]) == (2, 1, 1)
    assert body.scores.counts[21] == 1  # of exactly 1
    assert body.latencies_ms is not None
    assert body.latencies_ms.edges == LATENCY_EDGES_MS
    at = LATENCY_EDGES_MS.index(2.7)
    assert body.latencies_ms.counts[at + 1] == 5


def test_only_the_best_finding_of_a_picture_is_counted_but_every_channel_of_a_sensor() -> None:
    findings = (Finding("x", 0.9), Finding("x", 0.1), Finding("x", 0.1))
    for anomaly, counted in ((False, 1), (True, 3)):
        sums = MeasureAggregator("gw", "p", every_seconds=10)
        sums.add(replace(seen(0, 0.0, anomaly=anomaly), findings=findings), sent_bytes=0)
        scores = body_of(sums.finish({})).scores
        assert scores is not None
        assert sum(scores.counts) == counted


def test_a_picture_without_a_finding_is_counted_nowhere_but_among_the_inferences() -> None:
    sums = MeasureAggregator("gw", "p", every_seconds=10)
    sums.add(replace(seen(0, 0.0), findings=()), sent_bytes=0)
    body = body_of(sums.finish({}))
    assert (body.inferences, body.scores, body.latencies_ms) == (1, None, None)


def test_statistics_of_inputs_travel_without_the_edges_that_nothing_reached() -> None:
    sums = MeasureAggregator("gw", "p", every_seconds=10)
    for at in range(4):
        sums.add(seen(at, 0.5), sent_bytes=0, inputs=(("rms", (1.1, 2.0, float("nan"))),))
    (rms,) = body_of(sums.finish({})).inputs.values()
    assert rms.edges == (1.0, 1.2, 1.5, 1.8, 2.2)
    assert rms.counts == (0, 4, 0, 0, 4, 0)


def test_a_model_that_answers_nothing_is_told_with_its_errors() -> None:
    sums = MeasureAggregator("gw", "p", every_seconds=10)
    for at in range(3):
        sums.fail(ModelRef(name="m", version="2.0.0"), at * SECOND, at * SECOND)
    assert sums.take(9 * SECOND, {}) is None
    body = body_of(sums.take(10 * SECOND, {}))
    assert (body.inferences, body.errors) == (0, 3)
    assert body.model == ModelRef(name="m", version="2.0.0")


def test_a_measure_is_of_one_model() -> None:
    sums = MeasureAggregator("gw", "p", every_seconds=10)
    sums.add(seen(0, 0.1), sent_bytes=1)
    newer = ModelRef(name="m", version="2.0.0")
    sums.add(replace(seen(1, 0.9), model=newer), sent_bytes=2)
    first = body_of(sums.take(1 * SECOND, {"slot": 1}))
    second = body_of(sums.finish({"slot": 3}))
    assert (first.model, first.inferences, first.dropped) == (ModelRef(name="m", version="1.0.0"), 1, {"slot": 1})
    assert (second.model, second.inferences, second.dropped) == (newer, 1, {"slot": 2})
    assert sums.finish({}) is None
