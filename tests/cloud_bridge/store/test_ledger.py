from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from cloud_bridge.store.ledger import BASE, EVICTION, GapSpan, Span, Spans, StreamLedger, runs_of

ranges = st.tuples(st.integers(1, 40), st.integers(0, 12)).map(lambda pair: (pair[0], pair[0] + pair[1]))


def numbers(first: int, last: int) -> set[int]:
    return set(range(first, last + 1))


def all_of(spans: Spans) -> set[int]:
    return set().union(*(numbers(*span) for span in spans))


@given(st.sets(st.integers(1, 60)))
def test_runs_hold_exactly_the_numbers_and_are_as_long_as_possible(seqs: set[int]) -> None:
    runs = runs_of(sorted(seqs))
    assert set().union(*(numbers(*run) for run in runs)) == seqs
    assert all(later.first > earlier.last + 1 for earlier, later in pairwise(runs))


@given(st.lists(ranges), ranges)
def test_spans_are_a_set_of_numbers(added: list[tuple[int, int]], asked: tuple[int, int]) -> None:
    spans = Spans()
    truth: set[int] = set()
    for span in added:
        spans.add(*span)
        truth |= numbers(*span)
    found = list(spans)
    assert all_of(spans) == truth
    assert all(later.first > earlier.last + 1 for earlier, later in pairwise(found))
    missing = set().union(*(numbers(*part) for part in spans.missing(*asked)))
    assert missing == numbers(*asked) - truth
    assert {n for span in spans.overlapping(*asked) for n in numbers(*span)} & numbers(*asked) == (
        truth & numbers(*asked)
    )


def test_the_mark_stops_before_the_first_unknown_number() -> None:
    ledger = StreamLedger([])
    assert ledger.mark == 0
    ledger.receive([3, 4])
    assert ledger.mark == 0
    ledger.receive([1])
    assert ledger.mark == 1
    ledger.receive([2])
    assert ledger.mark == 4


def test_a_number_seen_before_is_a_duplicate() -> None:
    ledger = StreamLedger([(1, 10)])
    assert ledger.receive([9, 10, 11]) == [2]
    assert ledger.receive([11]) == []
    assert ledger.receive([12, 13]) is None


def test_a_record_that_comes_after_it_was_given_up_is_taken_and_its_gap_shrinks() -> None:
    ledger = StreamLedger([(1, 9)], [GapSpan(3, 7, BASE, "")])
    assert ledger.receive([2, 5, 8]) == [1]
    assert ledger.receive([5]) == []
    removed, added = ledger.gap_changes()
    assert removed == {GapSpan(3, 7, BASE, "")}
    assert added == {GapSpan(3, 4, BASE, ""), GapSpan(6, 7, BASE, "")}


def test_what_is_known_is_never_given_up() -> None:
    ledger = StreamLedger([(4, 6)])
    assert ledger.give_up(1, 9, EVICTION, "age") == 6
    assert ledger.gap_changes()[1] == {GapSpan(1, 3, EVICTION, "age"), GapSpan(7, 9, EVICTION, "age")}
    assert ledger.span_changes() == ({Span(4, 6)}, {Span(1, 9)})


def test_an_eviction_names_a_gap_that_only_a_base_had_told() -> None:
    ledger = StreamLedger([(1, 20)], [GapSpan(1, 10, BASE, "")])
    assert ledger.give_up(4, 15, EVICTION, "bytes") == 0
    assert ledger.gap_changes()[1] == {GapSpan(1, 3, BASE, ""), GapSpan(4, 10, EVICTION, "bytes")}


def test_nothing_changes_when_nothing_is_new() -> None:
    ledger = StreamLedger([(1, 500)])
    ledger.receive(list(range(1, 501)))
    ledger.give_up(1, 100, BASE)
    assert ledger.span_changes() == (frozenset(), frozenset())
    assert ledger.gap_changes() == (frozenset(), frozenset())
