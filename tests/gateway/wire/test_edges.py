"""Histograms with fixed edges, and what may be left out of them."""

from hypothesis import given
from hypothesis import strategies as st

from gateway.wire.edges import INPUT_EDGES, LATENCY_EDGES_MS, SCORE_EDGES, trimmed


def test_all_edges_rise_and_are_short() -> None:
    for edges in (SCORE_EDGES, LATENCY_EDGES_MS, *INPUT_EDGES.values()):
        assert list(edges) == sorted(set(edges))
    assert (SCORE_EDGES[0], SCORE_EDGES[-1], len(SCORE_EDGES)) == (0.0, 1.0, 21)
    assert (LATENCY_EDGES_MS[0], LATENCY_EDGES_MS[-1]) == (0.1, 10_000.0)
    assert all(len(str(edge)) <= 9 for edge in LATENCY_EDGES_MS)


@given(st.lists(st.integers(0, 3), min_size=22, max_size=22))
def test_trimming_loses_no_value_and_moves_none(counts: list[int]) -> None:
    small = trimmed(SCORE_EDGES, counts)
    assert sum(small.counts) == sum(counts)
    for at, edge in enumerate(small.edges):
        whole = SCORE_EDGES.index(edge)
        assert sum(small.counts[: at + 1]) == sum(counts[: whole + 1])
    if any(counts):
        assert small.counts[0] == 0 or small.edges[0] == SCORE_EDGES[0]
        assert small.counts[-1] == 0 or small.edges[-1] == SCORE_EDGES[-1]
