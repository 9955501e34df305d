"""Figures against references, and what they must never do."""

import math
from bisect import bisect_right
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chi2, kstwobign

from cloud_bridge.drift.statistics import (
    chi_squared_p_value,
    common_edges,
    compare,
    effective_samples,
    ks_distance,
    ks_p_value,
    merged,
    over,
    psi,
    total,
)
from gateway.wire.edges import SCORE_EDGES, trimmed
from gateway.wire.histogram import Histogram

counts_of_scores = st.lists(st.integers(0, 50), min_size=22, max_size=22)


def whole(counts: Sequence[int]) -> Histogram:
    return Histogram(edges=SCORE_EDGES, counts=tuple(counts))


def histogram(values: Sequence[float]) -> Histogram:
    counts = [0] * (len(SCORE_EDGES) + 1)
    for value in values:
        counts[bisect_right(SCORE_EDGES, value)] += 1
    return whole(counts)


def series(n: int, seed: int, *, memory: float = 0.0, shift: float = 0.0) -> list[float]:
    """Scores of which each remembers the one before."""
    random = np.random.default_rng(seed)
    state, found = float(random.normal()), []
    for noise in random.normal(0, 1, n):
        state = memory * state + math.sqrt(1 - memory**2) * float(noise)
        found.append(1 / (1 + math.exp(-(state + shift))))
    return found


def blocks(values: Sequence[float], count: int = 24) -> list[Histogram]:
    size = len(values) // count
    return [histogram(values[at * size : (at + 1) * size]) for at in range(count)]


@pytest.mark.parametrize("degrees", [1, 2, 3, 4, 9, 10])
@pytest.mark.parametrize("value", [0.1, 1.0, 5.0, 20.0, 80.0])
def test_chi_squared_is_what_scipy_says(degrees: int, value: float) -> None:
    assert chi_squared_p_value(value, degrees) == pytest.approx(float(chi2.sf(value, degrees)), rel=1e-9)


@pytest.mark.parametrize("distance", [0.01, 0.05, 0.1, 0.3])
def test_the_ks_p_value_is_that_of_its_limit(distance: float) -> None:
    root = math.sqrt(500 * 800 / 1300)
    at = (root + 0.12 + 0.11 / root) * distance
    assert ks_p_value(distance, 500, 800) == pytest.approx(float(kstwobign.sf(at)), abs=1e-9)


def test_psi_and_ks_of_known_distributions() -> None:
    expected, found = [50, 50], [20, 80]
    index, cells = psi(expected, found)
    assert cells == 2
    assert index == pytest.approx(0.3 * math.log(0.5 / 0.2) + 0.3 * math.log(0.8 / 0.5), abs=0.01)
    assert ks_distance(expected, found) == pytest.approx(0.3)


@given(st.lists(counts_of_scores, min_size=1, max_size=5))
def test_trimmed_histograms_add_up_to_what_whole_ones_do(several: list[list[int]]) -> None:
    small = merged([trimmed(SCORE_EDGES, counts) for counts in several])
    large = merged([whole(counts) for counts in several])
    assert small is not None
    assert large is not None
    assert over(small, small.edges) == list(small.counts)
    assert total(small) == total(large)
    for edge in set(small.edges) & set(large.edges):
        assert _below(small, edge) == _below(large, edge)


def _below(one: Histogram, edge: float) -> int:
    return sum(one.counts[: one.edges.index(edge) + 1])


def test_histograms_of_other_edges_are_compared_where_they_agree_and_not_at_all_where_nowhere() -> None:
    fine = whole([0, *range(21)])
    coarse = Histogram(edges=(0.0, 0.5, 1.0), counts=(0, 10, 30, 0))
    assert common_edges((fine, coarse)) == (0.0, 0.5, 1.0)
    foreign = Histogram(edges=(0.33,), counts=(5, 5))
    assert common_edges((fine, foreign)) == ()
    assert compare(fine, foreign, reference_effective=1, effective=1) is None
    assert merged((fine, foreign)) is None


def test_independent_samples_are_worth_about_what_they_are_and_correlated_ones_far_less() -> None:
    loose, tight = series(1440, 1), series(1440, 1, memory=0.95)
    assert effective_samples(blocks(loose)) > 400
    assert effective_samples(blocks(tight)) < 150
    assert effective_samples(blocks(loose)[:1]) == 1.0, "one block says nothing"


def test_values_that_are_all_in_one_cell_are_no_trouble() -> None:
    same = histogram([0.02] * 500)
    assert effective_samples([same] * 5) == 2500
    found = compare(same, same, reference_effective=500, effective=500)
    assert found is not None
    assert (found.psi, found.ks, found.outside) == (pytest.approx(0), 0, 0)
    moved = compare(same, histogram([0.93] * 500), reference_effective=500, effective=500)
    assert moved is not None
    assert moved.psi > 1
    assert (moved.ks, moved.outside) == (1, 1)


@given(counts_of_scores, counts_of_scores)
def test_a_comparison_never_fails_and_stays_within_its_bounds(one: list[int], other: list[int]) -> None:
    found = compare(whole(one), whole(other), reference_effective=sum(one) or 1, effective=sum(other) or 1)
    if not sum(one) or not sum(other):
        assert found is None
        return
    assert found is not None
    assert found.psi >= -1e-12
    assert 0 <= found.ks <= 1
    assert 0 <= found.p_value <= 1
    assert 0 <= found.outside <= 1
    assert 0 <= found.outside_p_value <= 1


@pytest.mark.timeout(120)
def test_without_drift_chance_fires_no_more_often_than_stated_also_on_correlated_scores() -> None:
    """And the control: who takes correlated scores for independent ones raises false alarms nearly every time."""
    false = careless = 0
    for seed in range(100):
        before, after = blocks(series(1440, 2 * seed, memory=0.9)), blocks(series(1440, 2 * seed + 1, memory=0.9))
        reference, seen = merged(before), merged(after)
        assert reference is not None
        assert seen is not None
        careful = compare(
            reference, seen, reference_effective=effective_samples(before), effective=effective_samples(after)
        )
        naive = compare(reference, seen, reference_effective=1440, effective=1440)
        assert careful is not None
        assert naive is not None
        false += careful.p_value <= 0.01
        careless += naive.p_value <= 0.01
    assert false <= 5
    assert careless >= 40
