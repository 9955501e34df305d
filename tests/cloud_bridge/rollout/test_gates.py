"""Each gate fails for what it is there for, and for nothing else."""

import random

import msgspec
import pytest

from cloud_bridge.config import Rollout as Defaults
from cloud_bridge.rollout.figures import Figures
from cloud_bridge.rollout.gates import GATES, Gate, Seen, is_due, judge
from cloud_bridge.rollout.service import thresholds_from
from gateway.wire.histogram import Histogram

LIMITS = thresholds_from(Defaults())
HOUR_NS = 3600 * 10**9
EDGES = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0)


def device(
    *,
    shift: float = 1.0,
    rate: float = 1.0,
    errors: int = 0,
    slower: int = 0,
    events: int = 40,
    seed: int = 1,
) -> Figures:
    """Ten hours before and ten after; each knob changes one thing of the time after."""
    chance = random.Random(seed)
    found = Figures()
    for side, is_new in ((found.old, False), (found.new, True)):
        for hour in range(10):
            for number in range(int(events * (rate if is_new else 1.0))):
                score = chance.betavariate(8, 2) * (shift if is_new else 1.0)
                side.add_event(score, hour * HOUR_NS + number)
            side.add_interval(hour * HOUR_NS, (hour + 1) * HOUR_NS, 3600, errors if is_new else 2)
            counts = [0] * 7
            counts[2 + (slower if is_new else 0)] = 3400
            counts[3 + (slower if is_new else 0)] = 200
            side.add_latencies(Histogram(edges=EDGES, counts=tuple(counts)))
    return found


def failed(figures: dict[str, Figures], limits: object = LIMITS) -> set[str]:
    assert isinstance(limits, type(LIMITS))
    return {one.gate for one in judge(figures, limits, look=5).failed}


@pytest.mark.parametrize(
    ("changed", "gate"),
    [
        ({"shift": 0.8}, "drift"),
        ({"rate": 4.0}, "anomalies"),
        ({"rate": 0.2}, "anomalies"),
        ({"errors": 300}, "errors"),
        ({"slower": 2}, "latency"),
    ],
)
def test_a_gate_fails_for_its_own_reason_alone(changed: dict[str, float], gate: Gate) -> None:
    figures = {f"gw-{n}": device(seed=n, **changed) for n in range(5)}  # type: ignore[arg-type]  # knobs by name
    assert failed(figures) == {gate}


def test_an_equal_release_passes_all_gates() -> None:
    verdict = judge({f"gw-{n}": device(seed=n) for n in range(5)}, LIMITS, look=1)
    assert [(one.gate, one.state) for one in verdict.findings] == [(gate, "passed") for gate in GATES]


def test_a_small_difference_that_is_certain_is_below_the_least_effect() -> None:
    figures = {f"gw-{n}": device(seed=n, shift=0.985, events=200) for n in range(40)}
    found = {one.gate: one for one in judge(figures, LIMITS, look=1).findings}
    assert found["drift"].p < 1e-6
    assert found["drift"].state == "passed"
    assert failed(figures, msgspec.structs.replace(LIMITS, min_effect=0.01)) == {"drift"}


def test_a_release_that_says_nothing_at_all_fails_by_its_silence() -> None:
    assert failed({"gw": device(rate=0.0)}) == {"anomalies"}


def test_one_slow_device_in_three_is_seen_although_the_median_is_fine() -> None:
    figures = {f"gw-{n}": device(seed=n, slower=2 if n == 0 else 0) for n in range(3)}
    found = {one.gate: one for one in judge(figures, LIMITS, look=1).findings}
    assert found["latency"].state == "failed"
    assert found["latency"].value == pytest.approx(1.0)


def test_too_little_to_see_is_not_judged() -> None:
    verdict = judge({"gw": Figures()}, LIMITS, look=1)
    assert {one.state for one in verdict.findings} == {"unjudged"}


def test_a_look_is_due_when_there_is_a_fifth_more_to_see() -> None:
    assert not is_due(Seen(), Seen())
    assert is_due(Seen(), Seen(0, 100, 1.0))
    assert not is_due(Seen(1, 100, 1.0), Seen(1, 119, 1.19))
    assert is_due(Seen(1, 100, 1.0), Seen(1, 120, 1.1))
    assert is_due(Seen(1, 100, 1.0), Seen(1, 100, 1.2))


def test_events_count_for_the_rate_only_when_their_interval_has_come() -> None:
    side = Figures().new
    side.add_event(0.5, 10)
    side.add_event(0.5, HOUR_NS + 1)
    assert (side.events, len(side.scores)) == (0, 2)
    side.add_interval(0, HOUR_NS, 60, 0)
    assert (side.events, side.hours) == (1, 1.0)
