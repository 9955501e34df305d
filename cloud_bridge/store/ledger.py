"""Which sequence numbers of a stream are known, decided without a database.

A stream's *spans* are the merged intervals of everything that ever came or was given up; its *gaps* are the
parts of them that never came. A number is a duplicate when a span holds it and no gap does. The result does not
depend on the order in which batches come, nor on how they are cut or repeated:

* a record that comes late, after its number was given up, is taken, and its gap shrinks;
* what is given up covers only numbers that are not known already.
"""

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from typing import Final, NamedTuple

BASE: Final = "base"
EVICTION: Final = "eviction"
QUARANTINE: Final = "quarantine"
DEAD_LETTER: Final = "dead-letter"


class Span(NamedTuple):
    """Numbers from `first` to `last`, both included."""

    first: int
    last: int


class GapSpan(NamedTuple):
    """Numbers that never came, with who said so and why."""

    first: int
    last: int
    source: str
    reason: str


def runs_of(seqs: Sequence[int]) -> list[Span]:
    """Fold strictly rising numbers into spans."""
    if not seqs:
        return []
    if seqs[-1] - seqs[0] == len(seqs) - 1:
        return [Span(seqs[0], seqs[-1])]
    runs = []
    first = last = seqs[0]
    for seq in seqs[1:]:
        if seq != last + 1:
            runs.append(Span(first, last))
            first = seq
        last = seq
    runs.append(Span(first, last))
    return runs


class Spans:
    """Disjoint spans in order, no two of them adjacent."""

    def __init__(self, spans: Iterable[tuple[int, int]] = ()) -> None:
        self._spans = sorted(Span(*span) for span in spans)

    def __iter__(self) -> Iterator[Span]:
        return iter(self._spans)

    def overlapping(self, first: int, last: int) -> list[Span]:
        """Return the spans that share a number with `first..last`."""
        at = max(0, bisect_right(self._spans, (first,)) - 1)
        found = []
        while at < len(self._spans) and self._spans[at].first <= last:
            if self._spans[at].last >= first:
                found.append(self._spans[at])
            at += 1
        return found

    def missing(self, first: int, last: int) -> list[Span]:
        """Return the parts of `first..last` that no span holds."""
        parts = []
        for span in self.overlapping(first, last):
            if first < span.first:
                parts.append(Span(first, span.first - 1))
            first = span.last + 1
        if first <= last:
            parts.append(Span(first, last))
        return parts

    def add(self, first: int, last: int) -> None:
        """Merge `first..last` in."""
        begin = bisect_right(self._spans, (first,))
        if begin and self._spans[begin - 1].last >= first - 1:
            begin -= 1
        end = begin
        while end < len(self._spans) and self._spans[end].first <= last + 1:
            first, last = min(first, self._spans[end].first), max(last, self._spans[end].last)
            end += 1
        self._spans[begin:end] = [Span(first, last)]


class StreamLedger:
    """One stream during one transaction.

    It is made from the spans that touch what came (adjacent ones, and the one that holds 1, included) and from
    the gaps that overlap it; it need not know the others.
    """

    def __init__(self, spans: Iterable[tuple[int, int]], gaps: Iterable[GapSpan] = ()) -> None:
        self._before = frozenset(Span(*span) for span in spans)
        self._spans = Spans(self._before)
        self._gaps_before = frozenset(gaps)
        self._gaps = sorted(self._gaps_before)

    @property
    def mark(self) -> int:
        """The highest number up to which nothing is unknown."""
        return next((span.last for span in self._spans if span.first == 1), 0)

    @property
    def mark_moved(self) -> bool:
        """Whether the mark is higher than at the beginning."""
        return self.mark > next((span.last for span in self._before if span.first == 1), 0)

    def receive(self, seqs: Sequence[int]) -> list[int] | None:
        """Take strictly rising numbers; return the positions of those that are new, or None if all are."""
        runs = runs_of(seqs)
        known = [span for run in runs for span in self._spans.overlapping(*run)]
        for run in runs:
            self._spans.add(*run)
        if not known:
            return None
        held = Spans(set(known))
        return [at for at, seq in enumerate(seqs) if not held.overlapping(seq, seq) or self._late(seq)]

    def give_up(self, first: int, last: int, source: str, reason: str = "") -> int:
        """Say that these numbers will not come; return how many of them were unknown.

        An eviction also names what so far was known to be missing only because a batch began above it.
        """
        if source == EVICTION:
            self._rename(first, last, reason)
        parts = self._spans.missing(first, last)
        for part in parts:
            self._gaps.append(GapSpan(part.first, part.last, source, reason))
        if parts:
            self._gaps.sort()
            self._spans.add(first, last)
        return sum(part.last - part.first + 1 for part in parts)

    def span_changes(self) -> tuple[frozenset[Span], frozenset[Span]]:
        """Return the spans to remove and the spans to add."""
        after = frozenset(self._spans)
        return self._before - after, after - self._before

    def gap_changes(self) -> tuple[frozenset[GapSpan], frozenset[GapSpan]]:
        """Return the gaps to remove and the gaps to add."""
        after = frozenset(self._gaps)
        return self._gaps_before - after, after - self._gaps_before

    def _rename(self, first: int, last: int, reason: str) -> None:
        renamed = []
        for gap in self._gaps:
            low, high = max(first, gap.first), min(last, gap.last)
            if gap.source != BASE or low > high:
                renamed.append(gap)
                continue
            around = [(gap.first, low - 1), (high + 1, gap.last)]
            renamed.extend(gap._replace(first=a, last=b) for a, b in around if a <= b)
            renamed.append(GapSpan(low, high, EVICTION, reason))
        self._gaps = sorted(renamed)

    def _late(self, seq: int) -> bool:
        """Take a number out of its gap; tell whether it was in one."""
        at = bisect_right(self._gaps, (seq + 1,)) - 1
        if at < 0 or self._gaps[at].last < seq:
            return False
        gap = self._gaps[at]
        parts = [(gap.first, seq - 1), (seq + 1, gap.last)]
        self._gaps[at : at + 1] = [gap._replace(first=a, last=b) for a, b in parts if a <= b]
        return True
