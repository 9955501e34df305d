"""The gates that a wave must pass: confidence drift, anomaly rate, errors, latency. Pure: figures in, a verdict out."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Final, Literal

import msgspec

from cloud_bridge.rollout.figures import Figures
from cloud_bridge.rollout.statistics import (
    Rate,
    Stratum,
    correlation_time,
    dispersion_of,
    distance,
    quantile,
    rate_p,
    spent_at,
)
from gateway.wire.plain import in_figures

Gate = Literal["drift", "anomalies", "errors", "latency"]
GATES: Final[tuple[Gate, ...]] = ("drift", "anomalies", "errors", "latency")
State = Literal["passed", "failed", "unjudged"]

GROWTH: Final = 1.2
"""The next look is due when there is a fifth more to see: looks are sparse where there is much to see already."""

_LEAST_EVENTS: Final = 20
_LEAST_SAMPLES: Final = 100
_LEAST_DISPERSION: Final = 2.0
_LATENCY_DISPERSION: Final = 4.0
"""Neighbouring latencies are alike (heat, load): four of them are taken for one."""
_TAIL: Final = 0.05
_BEYOND: Final = 1e6
"""Stands for a ratio to nothing; JSON has no infinity."""


class Thresholds(msgspec.Struct, frozen=True, kw_only=True):
    """When a gate fails. `significance`: of a false halt by any gate at any look over the whole rollout."""

    enabled: bool = True
    max_failing_share: Annotated[float, msgspec.Meta(ge=0, le=1)]
    min_events: int
    significance: float
    min_effect: float
    max_latency_ratio: float
    max_anomaly_ratio: float
    max_error_share: float


@dataclass(frozen=True, slots=True)
class Finding:
    """What one gate found. `value` and `limit` are in its own measure; `p` bounds the chance of it being chance."""

    gate: Gate
    state: State
    value: float
    limit: float
    p: float
    text: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """All gates at one look."""

    look: int
    findings: tuple[Finding, ...] = ()

    @property
    def failed(self) -> tuple[Finding, ...]:
        """The gates that say halt."""
        return tuple(one for one in self.findings if one.state == "failed")


@dataclass(frozen=True, slots=True)
class Seen:
    """How much there was to see at the last look, and how many looks there were. Kept with the rollout."""

    looks: int = 0
    events: int = 0
    hours: float = 0.0


def seen_now(figures: Iterable[Figures], before: Seen) -> Seen:
    """Return how much there is to see now."""
    events, hours = 0, 0.0
    for one in figures:
        events += one.new.events
        hours += one.new.hours
    return Seen(before.looks, events, hours)


def is_due(before: Seen, now: Seen) -> bool:
    """Tell whether there is enough more to see than at the last look, so that looking is worth its price."""
    if not now.events and not now.hours:
        return False
    more_events = now.events >= max(_LEAST_EVENTS, before.events * GROWTH)
    more_hours = now.hours >= max(1 / 60, before.hours * GROWTH)
    return more_events or more_hours


def judge(figures: Mapping[str, Figures], thresholds: Thresholds, *, look: int, pool: Sequence[int] = ()) -> Verdict:
    """Look once. O(n) in the events and devices, and linear in the bins of a score.

    figures: of the devices of the wave. pool: scores of devices that stay with the old release, for those without a
    past of their own. look: the number of this look over the whole rollout, from 1.
    """
    alpha = spent_at(thresholds.significance, look) / len(GATES)
    both = list(figures.values())
    alike = correlation_time(side.scores for one in both for side in (one.old, one.new))
    return Verdict(
        look,
        (
            _drift(both, pool, thresholds, alpha, alike),
            _anomalies(both, thresholds, alpha, alike),
            _errors(both, thresholds, alpha),
            _latency(both, thresholds, alpha),
        ),
    )


def _drift(figures: Sequence[Figures], pool: Sequence[int], limits: Thresholds, alpha: float, alike: float) -> Finding:
    new = sum(len(one.new.scores) for one in figures)
    found = None
    if new >= limits.min_events:
        found = distance((Stratum(one.old.scores, one.new.scores) for one in figures), pool, alike)
    if found is None or found.old < limits.min_events:
        old = sum(len(one.old.scores) for one in figures) + len(pool)
        text = f"{new} events with the new release and {old} before, {limits.min_events} of each are needed"
        return Finding("drift", "unjudged", 0.0, limits.min_effect, 1.0, text)
    failed = found.value >= limits.min_effect and found.p <= alpha
    side = "lower" if found.sign > 0 else "higher"
    text = (
        f"scores {side} by a KS distance of {found.value:.3f} at {found.at:.2f}, {found.new} events against {found.old}"
    )
    return Finding("drift", "failed" if failed else "passed", found.value, limits.min_effect, found.p, text)


def _anomalies(figures: Sequence[Figures], limits: Thresholds, alpha: float, alike: float) -> Finding:
    with_past = [one for one in figures if one.old.hours > 0 and one.new.hours > 0]
    old, new = _comparable(
        [(one.old.events, one.old.hours) for one in with_past], [(one.new.events, one.new.hours) for one in with_past]
    )
    if old.count + new.count < _LEAST_EVENTS:
        text = f"{old.count} events before and {new.count} with the new release, {_LEAST_EVENTS} are needed"
        return Finding("anomalies", "unjudged", 1.0, limits.max_anomaly_ratio, 1.0, text)
    bursts = dispersion_of(
        ([int(hour[0]) for hour in one.old.by_hour.values()], [hour[1] for hour in one.old.by_hour.values()])
        for one in with_past
    )
    p = rate_p(old, new, max(_LEAST_DISPERSION, bursts, alike))
    ratio = new.value / old.value if old.value else _BEYOND
    outside = ratio > limits.max_anomaly_ratio or ratio < 1 / limits.max_anomaly_ratio
    text = f"{in_figures(new.value)} events an hour, {in_figures(old.value)} were to be expected"
    state: State = "failed" if outside and p <= alpha else "passed"
    return Finding("anomalies", state, ratio, limits.max_anomaly_ratio, p, text)


def _errors(figures: Sequence[Figures], limits: Thresholds, alpha: float) -> Finding:
    old = Rate(sum(one.old.errors for one in figures), sum(one.old.inferences + one.old.errors for one in figures))
    new = Rate(sum(one.new.errors for one in figures), sum(one.new.inferences + one.new.errors for one in figures))
    if new.exposure < _LEAST_SAMPLES:
        text = f"{new.exposure:.0f} samples with the new release, {_LEAST_SAMPLES} are needed"
        return Finding("errors", "unjudged", 0.0, limits.max_error_share, 1.0, text)
    if not old.exposure:
        old = Rate(0, new.exposure)  # nothing is known of before: held against a release without errors
    rise = new.value - old.value
    p = rate_p(old, new, _LEAST_DISPERSION)
    state: State = "failed" if rise > limits.max_error_share and p <= alpha else "passed"
    text = f"{new.value:.2%} of the samples not answered, {old.value:.2%} before"
    return Finding("errors", state, rise, limits.max_error_share, p, text)


def _latency(figures: Sequence[Figures], limits: Thresholds, alpha: float) -> Finding:
    """Hold every device against its own past: more than a twentieth beyond `ratio` times its old p95 is a worse p95."""
    old_slow = old_all = new_slow = new_all = 0.0
    ratios = []
    for one in figures:
        before, after = one.old.main_latencies(), one.new.main_latencies()
        if before is None or after is None or sum(before[1]) < _LEAST_SAMPLES:
            continue
        p95, p95_now = quantile(*before, 1 - _TAIL), quantile(*after, 1 - _TAIL)
        if not p95 or p95_now is None:
            continue
        size, size_now = sum(before[1]), sum(after[1])
        slow = p95 * limits.max_latency_ratio
        share = size_now / size  # the past of a device weighs as much as its present
        old_slow += _above(*before, slow) * share
        old_all += size * share
        new_slow += _above(*after, slow)
        new_all += size_now
        ratios.append(p95_now / p95)
    if new_all < _LEAST_SAMPLES:
        text = f"{new_all:.0f} latencies that can be compared, {_LEAST_SAMPLES} are needed"
        return Finding("latency", "unjudged", 1.0, limits.max_latency_ratio, 1.0, text)
    p = rate_p(Rate(round(old_slow), old_all), Rate(round(new_slow), new_all), _LATENCY_DISPERSION)
    middle = sorted(ratios)[len(ratios) // 2]
    failed = new_slow / new_all > _TAIL and p <= alpha
    text = (
        f"p95 {middle:.2f} times that of before on the median device; {new_slow / new_all:.1%} of the answers take"
        f" longer than {limits.max_latency_ratio:g} times the old p95"
    )
    return Finding("latency", "failed" if failed else "passed", middle, limits.max_latency_ratio, p, text)


def _above(edges: Sequence[float], counts: Sequence[int], limit: float) -> float:
    """Count the values above a limit; of the bin that it cuts, the part above it on a logarithmic scale."""
    above = 0.0
    for at, count in enumerate(counts):
        low = edges[at - 1] if at else 0.0
        high = edges[at] if at < len(edges) else math.inf
        if low >= limit:
            above += count
        elif high > limit and low > 0 and math.isfinite(high):
            above += count * math.log(high / limit) / math.log(high / low)
    return above


def _comparable(old: Sequence[tuple[int, float]], new: Sequence[tuple[int, float]]) -> tuple[Rate, Rate]:
    """Add up devices, each with its own past: the old exposure is stretched so that the same mix of devices counts."""
    old_count, new_count = sum(n for n, _ in old), sum(n for n, _ in new)
    new_hours = sum(hours for _, hours in new)
    expected = sum(n / hours * now for (n, hours), (_, now) in zip(old, new, strict=True))
    old_hours = new_hours * old_count / expected if expected > 0 else sum(hours for _, hours in old)
    return Rate(old_count, old_hours), Rate(new_count, new_hours)
