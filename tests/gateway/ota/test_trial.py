"""When a release is kept, and when it is taken back."""

from typing import Any

import msgspec
import numpy as np
import pytest

from gateway.config import Trial
from gateway.ota.distances import ks_chance, ks_distance, look_at
from gateway.ota.journal import Reference
from gateway.ota.trial import Proven, Seen, TakeBack, Wait, judge

RULES = Trial(seconds=100.0, min_inferences=50)
RNG = np.random.default_rng(1)
BEFORE = Reference(
    scores=tuple(RNG.beta(2, 5, 400)), labels={"cat": 200, "dog": 200}, latency_p95_ms=10.0, error_share=0.0
)


def seen(seconds: float = 10.0, answers: int = 100, **more: Any) -> Seen:
    same = tuple(RNG.beta(2, 5, answers))
    usual: dict[str, Any] = {
        "latencies_ms": (9.0,) * answers,
        "scores": same,
        "labels": {"cat": answers // 2, "dog": answers // 2},
    }
    return Seen(seconds, answers, **{**usual, **more})


def code(verdict: object) -> str:
    assert isinstance(verdict, TakeBack), verdict
    assert verdict.reason
    return verdict.code


@pytest.mark.parametrize(
    ("what", "expected"),
    [
        ({"crashes": 2}, "crash-loop"),
        ({"stuck_seconds": 20.0}, "hangs"),
        ({"not_finite": 3, "errors": 3}, "not-a-number"),
        ({"errors": 6}, "errors"),
        ({"latencies_ms": (31.0,) * 20}, "latency"),
        ({"scores": tuple(RNG.beta(5, 2, 100))}, "output-drift"),
        ({"labels": {"cat": 100}}, "output-drift"),
    ],
)
def test_what_a_release_fails_at_takes_it_back(what: dict[str, Any], expected: str) -> None:
    assert code(judge(RULES, BEFORE, None, seen(**what))) == expected


@pytest.mark.parametrize(
    "what", [{"crashes": 1}, {"stuck_seconds": 1.0}, {"not_finite": 1, "errors": 1}, {"latencies_ms": (29.0,) * 20}]
)
def test_a_little_of_it_does_not(what: dict[str, Any]) -> None:
    assert judge(RULES, BEFORE, None, seen(**what)) == Wait()


def test_the_slowest_few_of_a_first_release_have_the_room_that_those_of_another_have() -> None:
    """There is nothing to compare with: a busy machine must not break a promise that is kept on average."""
    busy = (2.0,) * 90 + (11.0,) * 10
    assert judge(RULES, Reference(), 5.0, seen(latencies_ms=busy)) == Wait()
    assert code(judge(RULES, Reference(), 3.0, seen(latencies_ms=busy))) == "latency"
    assert code(judge(RULES, Reference(), 1.9, seen(latencies_ms=busy))) == "latency"


def test_it_is_kept_after_its_time_and_not_before_so_many_answers() -> None:
    assert judge(RULES, BEFORE, None, seen(99.0)) == Wait()
    assert judge(RULES, BEFORE, None, seen(100.0)) == Proven()
    assert judge(RULES, BEFORE, None, seen(1000.0, answers=49)) == Wait()


def test_a_target_counts_where_the_release_before_kept_it() -> None:
    slow = seen(latencies_ms=(15.0,) * 20)
    assert code(judge(RULES, BEFORE, 12.0, slow)) == "latency"
    assert judge(RULES, BEFORE, 5.0, slow) == Wait()  # this machine never kept 5 ms: 3 times as slow is the limit
    assert judge(RULES, Reference(), None, slow) == Wait()


def test_a_few_milliseconds_more_are_nothing_to_take_a_small_model_back_for() -> None:
    quick = msgspec.structs.replace(BEFORE, latency_p95_ms=0.4)
    assert judge(RULES, quick, None, seen(latencies_ms=(1.7,) * 20)) == Wait()
    assert code(judge(RULES, quick, None, seen(latencies_ms=(6.0,) * 20))) == "latency"
    assert code(judge(RULES, quick, 1.2, seen(latencies_ms=(1.7,) * 20))) == "latency"  # unless a target promises it


def test_a_few_slow_answers_are_the_machines_and_many_are_the_releases() -> None:
    def mixed(slow: int, of: int = 60) -> Seen:
        return seen(latencies_ms=(3.0,) * (of - slow) + (40.0,) * slow)

    assert judge(RULES, BEFORE, 5.0, mixed(2)) == Wait()
    assert judge(RULES, BEFORE, 5.0, mixed(2, of=20)) == Wait()  # a tenth, but of too few
    assert code(judge(RULES, BEFORE, 5.0, mixed(6))) == "latency"


def test_what_stalls_a_thread_now_and_then_is_the_machines_and_what_keeps_it_busy_the_releases() -> None:
    def mixed(stalled: int, busy_ms: float, usually: float = 0.0) -> Seen:
        took = (3.0 + usually,) * (60 - stalled) + (40.0 + usually,) * stalled
        return seen(latencies_ms=took, busy_ms=(3.0,) * (60 - stalled) + (busy_ms,) * stalled)

    assert judge(RULES, BEFORE, 5.0, mixed(6, 3.0)) == Wait()
    assert judge(RULES, BEFORE, None, mixed(6, 3.0, usually=10.0)) == Wait(), "an accelerator, as before"
    assert code(judge(RULES, BEFORE, 5.0, mixed(6, 40.0))) == "latency", "the control: it is busy itself"
    assert code(judge(RULES, BEFORE, None, mixed(6, 3.0, usually=40.0))) == "latency", "always late is no stall"


def test_a_source_that_is_broken_is_not_blamed_on_the_new_release() -> None:
    broken = Reference(error_share=0.3)
    assert judge(RULES, broken, None, seen(errors=40)) == Wait()
    assert code(judge(RULES, BEFORE, None, seen(errors=40))) == "errors"


def test_looks_come_at_sizes_that_double() -> None:
    assert [look_at(n) for n in (49, 50, 99, 100, 399, 400)] == [None, (50, 0), (50, 0), (100, 1), (200, 2), (400, 3)]


def test_the_distance_is_that_of_scipy() -> None:
    stats = pytest.importorskip("scipy.stats")
    for shift in (0.0, 0.2, 0.5, 1.0):
        one, two = RNG.normal(size=300), RNG.normal(shift, size=200)
        expected = stats.ks_2samp(one, two, method="asymp")
        distance = ks_distance(one.tolist(), two.tolist())
        assert distance == pytest.approx(expected.statistic)
        assert ks_chance(distance, 300, 200) == pytest.approx(expected.pvalue, abs=0.03)


def test_releases_that_answer_alike_are_not_taken_back_by_chance() -> None:
    rng = np.random.default_rng(7)
    taken = 0
    for _ in range(150):
        before = Reference(scores=tuple(rng.beta(2, 5, 400)))
        scores = tuple(rng.beta(2, 5, 800))
        taken += any(
            isinstance(judge(RULES, before, None, Seen(1.0, size, scores=scores[:size])), TakeBack)
            for size in (50, 100, 200, 400, 800)
        )
    assert taken == 0


def test_scores_that_hardly_vary_may_differ_a_little() -> None:
    before = Reference(scores=(0.5,) * 400)
    assert judge(RULES, before, None, Seen(1.0, 100, scores=(0.503,) * 100)) == Wait()
    assert code(judge(RULES, before, None, Seen(1.0, 100, scores=(0.53,) * 100))) == "output-drift"


def test_without_the_floor_under_the_effect_small_differences_would_take_it_back() -> None:
    """The control: a difference that nobody would notice is significant once there are enough samples."""
    rng = np.random.default_rng(7)
    before = Reference(scores=tuple(rng.beta(2.0, 5.0, 400)))
    scores = tuple(rng.beta(2.6, 5.0, 3200))
    floor = Trial(drift_effect=0.001)
    assert code(judge(floor, before, None, Seen(1.0, 3200, scores=scores))) == "output-drift"
    assert judge(RULES, before, None, Seen(1.0, 3200, scores=scores)) == Wait()
