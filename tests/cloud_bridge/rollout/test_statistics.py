"""The tests behind the gates: right by hand, and right by chance no more often than they say."""

import math
import random
from array import array

import pytest

from cloud_bridge.rollout.statistics import (
    Rate,
    Stratum,
    bin_of,
    correlation_time,
    dispersion_of,
    distance,
    quantile,
    rate_p,
    spent_at,
)
from tests.bench.rollout import aa_rollouts, ab_rollouts


def bins(*scores: float) -> "array[int]":
    return array("H", [bin_of(score) for score in scores])


def test_all_looks_together_spend_no_more_than_alpha() -> None:
    assert math.fsum(spent_at(0.05, look) for look in range(1, 100_000)) == pytest.approx(0.05, rel=1e-4)


def test_the_distance_is_that_of_kolmogorov_and_smirnov() -> None:
    found = distance([Stratum(bins(0.1, 0.2, 0.3, 0.4), bins(0.3, 0.4, 0.5, 0.6))])
    assert found is not None
    assert found.value == pytest.approx(0.5)
    assert found.sign == -1  # higher scores
    assert found.p == pytest.approx(min(1.0, 2 * math.exp(-2 * 0.25 * 2)))


def test_a_canary_that_differs_from_the_fleet_is_held_against_itself() -> None:
    chance = random.Random(1)

    def dark(count: int) -> "array[int]":
        return bins(*(chance.betavariate(3, 6) for _ in range(count)))

    bright = bins(*(chance.betavariate(8, 2) for _ in range(2000)))
    own = distance([Stratum(dark(2000), dark(500))])
    against_fleet = distance([Stratum(array("H"), dark(500))], pool=bright)
    assert own is not None
    assert against_fleet is not None
    assert own.value < 0.1
    assert against_fleet.value > 0.6


def test_devices_weigh_by_what_they_say_with_the_new_release() -> None:
    # Each device is unchanged; only how much each of them says has changed. Added up blindly, that is a distance.
    low, high = bins(*[0.2] * 100), bins(*[0.8] * 900)
    mixed = distance([Stratum(low, bins(*[0.2] * 900)), Stratum(high, bins(*[0.8] * 100))])
    blind = distance([Stratum(low + high, bins(*[0.2] * 900) + bins(*[0.8] * 100))])
    assert mixed is not None
    assert blind is not None
    assert mixed.value == pytest.approx(0.0, abs=1e-9)
    assert blind.value == pytest.approx(0.8)


def test_nothing_is_said_without_scores_on_both_sides() -> None:
    assert distance([]) is None
    assert distance([Stratum(bins(0.5), array("H"))]) is None
    assert distance([Stratum(array("H"), bins(0.5))]) is None


def test_equal_rates_are_no_news_and_unequal_ones_are() -> None:
    assert rate_p(Rate(100, 10.0), Rate(100, 10.0)) == 1.0
    assert rate_p(Rate(100, 10.0), Rate(300, 10.0)) < 1e-15
    assert rate_p(Rate(100, 10.0), Rate(0, 10.0)) < 1e-10
    assert rate_p(Rate(0, 10.0), Rate(0, 10.0)) == 1.0
    assert rate_p(Rate(100, 10.0), Rate(300, 10.0), dispersion=20.0) > 0.1


def test_bursts_are_seen_as_such() -> None:
    steady = [([10, 11, 9, 10], [1.0] * 4)]
    bursty = [([0, 40, 0, 0], [1.0] * 4)]
    assert dispersion_of(steady) == 1.0
    assert dispersion_of(bursty) > 30
    assert dispersion_of([]) == 1.0


def test_quantiles_are_read_between_edges() -> None:
    assert quantile((1.0, 10.0), (0, 100, 0), 0.5) == pytest.approx(10**0.5)
    assert quantile((1.0, 10.0), (0, 0, 5), 0.95) == 10.0
    assert quantile((1.0, 10.0), (0, 0, 0), 0.95) is None


def test_events_of_one_scene_count_as_one() -> None:
    chance = random.Random(2)
    independent = [[chance.randrange(4096) for _ in range(500)] for _ in range(20)]
    bursts = [[scene for scene in sequence[:100] for _ in range(5)] for sequence in independent]
    assert correlation_time(independent) == pytest.approx(1.0, abs=0.1)
    assert correlation_time(bursts) == pytest.approx(5.0, rel=0.15)
    assert correlation_time([]) == correlation_time([[7]]) == correlation_time([[7, 7, 7]]) == 1.0


def test_scenes_that_are_counted_as_events_would_be_news() -> None:
    """The control: the same scores, once taken for independent and once for what they are."""
    chance = random.Random(4)
    old, new = (
        array("H", [scene for _ in range(60) for scene in [bin_of(chance.betavariate(5, 3))] * 10]) for _ in range(2)
    )
    taken_for_independent = distance([Stratum(old, new)])
    as_it_is = distance([Stratum(old, new)], worth=correlation_time([old, new]))
    assert taken_for_independent is not None
    assert as_it_is is not None
    assert taken_for_independent.p < 0.01
    assert as_it_is.p > 0.3


def test_equal_releases_that_speak_in_bursts_are_seldom_halted_either() -> None:
    assert aa_rollouts(rollouts=40, seed=11, burst=5)["false_halts"] <= 0.05 * 40


def test_equal_releases_are_seldom_halted_however_often_one_looks() -> None:
    found = aa_rollouts(rollouts=80, seed=11)
    assert found["looks"] > 80 * 10
    assert found["false_halts"] <= 0.05 * 80


def test_looking_without_correction_halts_equal_releases() -> None:
    """The control: the same looks, each at the full level and without a least effect, as one might do it naively."""
    naive = aa_rollouts(rollouts=80, seed=11, corrected=False)
    assert naive["false_halts"] > 0.1 * 80


def test_a_shift_of_a_fifth_is_caught_within_five_hundred_events() -> None:
    found = ab_rollouts(rollouts=100, seed=5, shift=0.2)
    assert found["caught"] >= 95
