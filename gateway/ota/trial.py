"""Whether a new release has proved itself, or is taken back. Pure: what was seen goes in, a verdict comes out.

Scores are compared with the two-sample Kolmogorov-Smirnov test (Smirnov 1948; the asymptotic distribution as in Press
et al., Numerical Recipes §14.3). It is looked at again and again while samples come in, so each look may spend only a
part of the significance: half of it at the first look, a quarter at the second, and so on (a spending function after
Lan and DeMets 1983); looks are at sizes that double. Samples that follow each other are alike, which makes any such
test fire too early: they count as fewer, by their integrated autocorrelation time (Sokal 1997, §3), and a difference
must have a size, too (`drift_effect`).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from gateway.config import Trial as TrialSettings
from gateway.ota.distances import (
    FIRST_LOOK,
    correlation_time,
    ks_chance,
    ks_distance,
    look_at,
    mean_shift,
    quantile,
    without_stalls,
)
from gateway.ota.inputs import input_drift
from gateway.ota.journal import MadeFor, Reference

LEAST_ANSWERS: Final = 10
"""Samples before latency and errors are judged: the first invocations of any model are slow."""
LEAST_FOR_TAIL: Final = 50
"""Samples before the slowest twentieth of them is judged."""
SLOWER_MS: Final = 5.0
"""A model that takes no more than this longer than before is not taken back for it: a busy machine does as much."""
LEAST_SHIFT: Final = 0.02
"""Scores must differ by so much on average: where they hardly vary, any two releases are as far apart as can be."""
NOT_FINITE_ANSWERS: Final = 3
"""Answers that are no numbers; a single one may be the sample's fault."""


@dataclass(frozen=True, slots=True)
class Seen:
    """What the release on trial did since it took over."""

    seconds: float  # since then, without the time the gateway was off
    answers: int = 0
    errors: int = 0  # samples without an answer, those that were not finite included
    not_finite: int = 0
    latencies_ms: Sequence[float] = ()  # the latest
    busy_ms: Sequence[float] = ()  # of each of these, how long its thread was on a processor; empty: all the time
    scores: Sequence[float] = ()  # best score of each sample, in order
    labels: Mapping[str, int] | None = None
    inputs: Mapping[str, Sequence[float]] = field(default_factory=dict)  # statistics of the samples by name, in order
    tensor: Mapping[str, Sequence[float]] = field(default_factory=dict)  # of what it was given of them
    crashes: int = 0
    stuck_seconds: float = 0.0  # how long the present sample has been looked at


@dataclass(frozen=True, slots=True)
class Wait:
    """Nothing can be said yet."""


@dataclass(frozen=True, slots=True)
class Proven:
    """The release is kept."""


@dataclass(frozen=True, slots=True)
class TakeBack:
    """The release goes; `code` for programs, `reason` for people."""

    code: str
    reason: str


Verdict = Wait | Proven | TakeBack

STUCK_SECONDS: Final = 15.0


def judge(
    rules: TrialSettings, reference: Reference, target_ms: float | None, seen: Seen, made_for: MadeFor | None = None
) -> Verdict:
    """Say whether a release on trial is kept.

    Args:
        rules: of the configuration.
        reference: what the release before did; empty where nothing is known of it.
        target_ms: latency that the release promises, if it does.
        seen: so far.
        made_for: what its manifest says of its inputs.
    """
    bad = (
        _crashes(rules, seen)
        or _not_finite(seen)
        or _errors(rules, reference, seen)
        or _latency(rules, reference, target_ms, seen)
        or _input_drift(rules, reference, made_for, seen)
        or _drift(rules, reference, seen)
    )
    if bad is not None:
        return bad
    if seen.seconds >= rules.seconds and seen.answers >= rules.min_inferences:
        return Proven()
    return Wait()


def _crashes(rules: TrialSettings, seen: Seen) -> TakeBack | None:
    if seen.crashes >= rules.max_crashes:
        return TakeBack("crash-loop", f"{seen.crashes} runs under it ended badly")
    if seen.stuck_seconds >= STUCK_SECONDS:
        return TakeBack("hangs", f"it has looked at one sample for {seen.stuck_seconds:.0f} s")
    return None


def _not_finite(seen: Seen) -> TakeBack | None:
    if seen.not_finite >= NOT_FINITE_ANSWERS:
        return TakeBack("not-a-number", f"{seen.not_finite} answers were not finite")
    return None


def _errors(rules: TrialSettings, reference: Reference, seen: Seen) -> TakeBack | None:
    samples = seen.answers + seen.errors
    if samples < LEAST_ANSWERS:
        return None
    # A source that gives what no model can use is not the fault of the new one.
    allowed = max(rules.max_error_share, 2 * reference.error_share)
    share = seen.errors / samples
    if share > allowed:
        return TakeBack("errors", f"{share:.1%} of {samples} samples got no answer, {allowed:.1%} are allowed")
    return None


def _latency(rules: TrialSettings, reference: Reference, target_ms: float | None, seen: Seen) -> TakeBack | None:
    answers = len(seen.latencies_ms)
    if answers < LEAST_ANSWERS:
        return None
    before = reference.latency_p95_ms
    relative = _roomy(rules, before) if before is not None else None
    # A device too slow for the promise was so with the release before: then that one is the measure.
    limit = target_ms if target_ms is not None and (before is None or before <= target_ms) else relative
    if limit is None:
        return None
    told = f", {before:.1f} ms before" if before is not None else ""
    median = quantile(seen.latencies_ms, 0.5)
    if median > limit:
        return TakeBack("latency", f"half of the answers took over {median:.1f} ms, {limit:.1f} ms are allowed{told}")
    # The slowest few say as much of a busy machine as of the release: there must be enough of them, and a promise that
    # was kept on average is not broken by what the machine did at that moment. A first release is given as much room
    # over its promise as another one over the release before.
    limit = max(limit, _roomy(rules, before if before is not None else limit))
    p95 = quantile(without_stalls(seen.latencies_ms, seen.busy_ms or seen.latencies_ms), 0.95)
    if answers >= LEAST_FOR_TAIL and p95 > limit:
        return TakeBack("latency", f"95 % of answers took up to {p95:.1f} ms, {limit:.1f} ms are allowed{told}")
    return None


def _roomy(rules: TrialSettings, latency_ms: float) -> float:
    """Return up to what a latency passes for as good as this one."""
    return max(latency_ms * rules.max_latency_ratio, latency_ms + SLOWER_MS)


def _input_drift(rules: TrialSettings, reference: Reference, made_for: MadeFor | None, seen: Seen) -> TakeBack | None:
    if made_for is None:
        return None
    reason = input_drift(rules, reference, made_for, inputs=seen.inputs, tensor=seen.tensor)
    return TakeBack("input-drift", reason) if reason else None


def _drift(rules: TrialSettings, reference: Reference, seen: Seen) -> TakeBack | None:
    look = look_at(len(seen.scores))
    if look is None or len(reference.scores) < FIRST_LOOK:
        return None
    size, significance = look[0], rules.drift_significance * 0.5 ** (look[1] + 1)
    distance = ks_distance(reference.scores, seen.scores[:size])
    worth = max(correlation_time(reference.scores), correlation_time(seen.scores[:size]))
    chance = ks_chance(distance, len(reference.scores) / worth, size / worth)
    moved = mean_shift(reference.scores, seen.scores[:size])
    if distance >= rules.drift_effect and moved >= LEAST_SHIFT and chance < significance:
        return TakeBack(
            "output-drift",
            f"its scores are distributed otherwise than those of the release before (KS distance {distance:.2f}, "
            f"{rules.drift_effect:.2f} allowed, p {chance:.1e}, {size} samples)",
        )
    return _label_drift(rules, reference, seen, significance)


def _label_drift(rules: TrialSettings, reference: Reference, seen: Seen, significance: float) -> TakeBack | None:
    """Compare how often each label is the best: a release whose labels are mixed up has the scores it should have."""
    before, now = reference.labels, seen.labels or {}
    labels = sorted({*before, *now})
    total_before, total_now = sum(before.values()), sum(now.values())
    if len(labels) < 2 or min(total_before, total_now) < FIRST_LOOK:
        return None
    for label in labels:
        was, is_ = before.get(label, 0) / total_before, now.get(label, 0) / total_now
        pooled = (before.get(label, 0) + now.get(label, 0)) / (total_before + total_now)
        spread = math.sqrt(pooled * (1 - pooled) * (1 / total_before + 1 / total_now))
        chance = math.erfc(abs(was - is_) / spread / math.sqrt(2)) if spread else 1.0
        if abs(was - is_) >= rules.drift_effect and chance < significance / len(labels):
            return TakeBack(
                "output-drift",
                f"{is_:.0%} of its answers are {label or 'nothing'!r}, {was:.0%} of those of the release before were",
            )
    return None
