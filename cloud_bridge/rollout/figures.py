"""What devices measured before and with a new release. Plain sums: they add up over records and over devices."""

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from cloud_bridge.rollout.statistics import bin_of
from gateway.wire.histogram import Histogram

MOST_SCORES: Final = 20_000
"""Kept of one device on one side; what comes after is counted, and its score left out."""

_HOUR_NS: Final = 3600 * 1_000_000_000


@dataclass(slots=True)
class Side:
    """One device with one release: scores of its events (as bins), latencies, errors, and for how long.

    `by_hour` holds events and measured hours by the hour of capture, to tell bursts from a steady stream.
    """

    scores: "array[int]" = field(default_factory=lambda: array("H"))
    events: int = 0
    inferences: int = 0
    errors: int = 0
    hours: float = 0.0
    latencies: dict[tuple[float, ...], list[int]] = field(default_factory=dict)
    by_hour: dict[int, list[float]] = field(default_factory=dict)
    waiting: list[int] = field(default_factory=list)

    def add_event(self, score: float, captured_at_ns: int, *, since_ns: int = 0) -> None:
        """Take an event, in its first phase.

        Its score counts at once, the event itself when an interval that holds it has come: events travel before the
        sums, and a rate needs both. One captured before `since_ns` is out of the time that is summed up.
        """
        if len(self.scores) < MOST_SCORES:
            self.scores.append(bin_of(score))
        if captured_at_ns >= since_ns:
            self.waiting.append(captured_at_ns)

    def add_interval(self, from_ns: int, to_ns: int, inferences: int, errors: int) -> None:
        """Count an interval of routine results."""
        hours = max(0, to_ns - from_ns) / _HOUR_NS
        self.inferences += inferences
        self.errors += errors
        self.hours += hours
        self.by_hour.setdefault(from_ns // _HOUR_NS, [0.0, 0.0])[1] += hours
        later = [at_ns for at_ns in self.waiting if at_ns > to_ns]
        for at_ns in self.waiting:
            if at_ns <= to_ns:
                self.events += 1
                self.by_hour.setdefault(at_ns // _HOUR_NS, [0.0, 0.0])[0] += 1.0
        self.waiting = later

    def add_latencies(self, histogram: Histogram) -> None:
        """Add times from sample to answer, in milliseconds."""
        sums = self.latencies.setdefault(histogram.edges, [0] * len(histogram.counts))
        for at, count in enumerate(histogram.counts):
            sums[at] += count

    def main_latencies(self) -> tuple[Sequence[float], Sequence[int]] | None:
        """Return edges and counts of the histogram with the most samples; None if there is none.

        A device changes its edges with its firmware only, so there is one as a rule.
        """
        if not self.latencies:
            return None
        return max(self.latencies.items(), key=lambda item: sum(item[1]))


@dataclass(slots=True)
class Figures:
    """A device before, and with, the release that is judged."""

    old: Side = field(default_factory=Side)
    new: Side = field(default_factory=Side)
