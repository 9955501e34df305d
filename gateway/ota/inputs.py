"""Whether a release on trial is given what it was made for. Pure.

The world is the same for a release and the one before it: when the light changes, it changes for both. What can differ
is what a release was trained on, and what its manifest makes of a sample before the model sees it. So nothing here is
judged by what the samples are alone:

* **outside of the training.** More than `max_inputs_outside` of a statistic lies in the outermost half percents of the
  release's training baseline, and that is not so, by `drift_effect`, for the release before: its own baseline is held
  against the very same samples. Where it has none, samples from before the swap must have been as far outside, or else
  the scene has changed.
* **given otherwise.** Both releases declare the same preprocessing, and yet what the model is given (its input tensor)
  is distributed otherwise, while the samples themselves are not.

What preprocessing makes of a sample is compared between two releases only where they declare the same, since it may
mean anything else otherwise; the baseline of the release is then the one measure there is. `Standardised` features are
left out: what they make of a sample depends on what came before, and that begins anew with the program.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Final

from gateway.config import Trial as TrialSettings
from gateway.ota.distances import FIRST_LOOK, correlation_time, ks_chance, ks_distance, look_at
from gateway.ota.journal import MadeFor, Reference
from gateway.wire.histogram import Histogram
from gateway.wire.manifest import Standardised, WindowInput

TAIL: Final = 0.005
"""On each side of a baseline: what lies beyond is outside of what training has seen."""

Values = Mapping[str, Sequence[float]]

DOUBT: Final = 0.05
"""Samples that are other ones by chance with no more than this excuse a release."""

_WORDS: Final = {"level": "mean of what it is given", "spread": "spread of what it is given"}


def input_drift(rules: TrialSettings, before: Reference, made_for: MadeFor, *, inputs: Values, tensor: Values) -> str:
    """Say why a release is not given what it was made for, "" if it is, or nothing can be said.

    Args:
        rules: of the configuration.
        before: what the release before was given, and made for.
        made_for: what the manifest of the release on trial says.
        inputs: statistics of the samples since it took over, by name, in order.
        tensor: of what it was given of them.
    """
    was_for = before.made_for
    if isinstance(made_for.input, WindowInput) and isinstance(made_for.input.features, Standardised):
        tensor = {}
    alike = was_for is not None and was_for.input == made_for.input
    moved = _moved(rules, before.inputs, inputs)
    old_inputs = was_for.baseline.inputs if was_for is not None else {}
    old_tensor = was_for.baseline.tensor if was_for is not None else {}
    reasons = [
        _outside(rules, name, trained, inputs.get(name, ()), _Old(before.inputs.get(name, ()), old_inputs.get(name)))
        for name, trained in sorted(made_for.baseline.inputs.items())
    ]
    # Where the old release says nothing of its training, samples that are strange to the new one explain its tensor.
    strange = any(
        _share_outside(trained, inputs.get(name, ())) >= rules.max_inputs_outside / 2
        for name, trained in made_for.baseline.inputs.items()
    )
    # Another preparation makes another tensor of the same scene: then the old release is only a witness of the scene.
    if alike or not moved:
        reasons += [
            _outside(
                rules,
                name,
                trained,
                tensor.get(name, ()),
                _Old(before.tensor.get(name, ()), old_tensor.get(name), alike=alike),
            )
            for name, trained in sorted(made_for.baseline.tensor.items())
            if name in old_tensor or not strange
        ]
    if alike and not moved:
        reasons += [_otherwise(rules, name, before.tensor.get(name, ()), now) for name, now in sorted(tensor.items())]
    return next(filter(None, reasons), "")


class _Old:
    """What is known of one statistic from the release before."""

    def __init__(self, values: Sequence[float], trained: Histogram | None, *, alike: bool = True) -> None:
        """Take the values before the swap, its baseline, and whether its values mean what those of the new one do."""
        self.values = values
        self.trained = trained
        self.alike = alike


def _outside(rules: TrialSettings, name: str, trained: Histogram, now: Sequence[float], old: _Old) -> str:
    """Compare the share of values outside of the training with that of the release before."""
    look = look_at(len(now))
    if look is None or len(old.values) < FIRST_LOOK:
        return ""
    now, number = now[: look[0]], look[1]
    outside = [_is_outside(trained, value) for value in now]
    share = sum(outside) / len(now)
    if share < rules.max_inputs_outside:
        return ""
    if old.trained is not None:
        # The same samples, where they mean the same to both: whatever happens in front of the camera happens to both.
        judged = now if old.alike else old.values
        allowed = _share_outside(old.trained, judged)
    elif old.alike and _share_outside(trained, old.values) < rules.max_inputs_outside:
        return ""  # the scene has changed
    else:
        allowed = 0.0
    if share - allowed < rules.drift_effect or not _is_no_chance(rules, share - allowed, outside, number):
        return ""
    return (
        f"{share:.0%} of {len(now)} values of {_WORDS.get(name, name)} are outside of what it was trained on "
        f"({rules.max_inputs_outside:.0%} allowed); of the release before {allowed:.0%} were"
    )


def _otherwise(rules: TrialSettings, name: str, before: Sequence[float], now: Sequence[float]) -> str:
    """Compare what both releases are given, which is to be the same."""
    look = look_at(len(now))
    if look is None or len(before) < FIRST_LOOK:
        return ""
    now, number = now[: look[0]], look[1]
    distance = ks_distance(before, now)
    if distance < rules.drift_effect or not _differ(before, now):
        return ""
    if _chance(distance, before, now) >= _significance(rules, number):
        return ""
    return (
        f"{_WORDS.get(name, name)} is distributed otherwise than for the release before, with the same preprocessing "
        f"of the same samples (KS distance {distance:.2f}, {rules.drift_effect:.2f} allowed, {len(now)} values)"
    )


def _moved(rules: TrialSettings, before: Values, now: Values) -> bool:
    """Tell whether the samples themselves are other ones than before; half of what counts is enough to doubt."""
    for name, values in now.items():
        was = before.get(name, ())
        if min(len(was), len(values)) < FIRST_LOOK or not _differ(was, values):
            continue
        distance = ks_distance(was, values)
        if distance >= rules.drift_effect / 2 and _chance(distance, was, values) < DOUBT:
            return True
    return False


def _chance(distance: float, before: Sequence[float], now: Sequence[float]) -> float:
    """Return how likely a distance is by chance, for values that follow each other."""
    worth = max(correlation_time(before), correlation_time(now))
    return ks_chance(distance, len(before) / worth, len(now) / worth)


def _differ(before: Sequence[float], now: Sequence[float]) -> bool:
    """Tell whether values differ by a size: where they hardly vary, any two samples are as far apart as can be."""
    one, two = math.fsum(before) / len(before), math.fsum(now) / len(now)
    size = max(abs(value) for value in (*before, *now))
    widths = [
        math.sqrt(math.fsum((value - mean) ** 2 for value in of) / len(of)) for of, mean in ((before, one), (now, two))
    ]
    return abs(one - two) >= 0.02 * size or abs(widths[0] - widths[1]) >= 0.02 * size


def _is_no_chance(rules: TrialSettings, difference: float, outside: Sequence[bool], number: int) -> bool:
    """Tell whether a difference of shares is more than chance: normal approximation, one-sided, correlated values."""
    values = [float(each) for each in outside]
    share = math.fsum(values) / len(values)
    worth = len(values) / correlation_time(values)
    spread = math.sqrt(share * (1 - share) / worth)
    chance = 0.5 * math.erfc(difference / spread / math.sqrt(2)) if spread else 0.0
    return chance < _significance(rules, number)


def _significance(rules: TrialSettings, number: int) -> float:
    """Return what one look may spend of the significance, shared among the few statistics that there are."""
    return rules.drift_significance * 0.5 ** (number + 1) / 4


def _share_outside(trained: Histogram, values: Sequence[float]) -> float:
    return sum(_is_outside(trained, value) for value in values) / len(values) if values else 0.0


def _is_outside(trained: Histogram, value: float) -> bool:
    low, high = _range(trained)
    return not low <= value < high


def _range(trained: Histogram) -> tuple[float, float]:
    """Return between which edges all but the outermost half percents of a baseline lie; `TAIL` at most on each side."""
    total = sum(trained.counts)
    low, below = -math.inf, 0
    for edge, count in zip(trained.edges, trained.counts, strict=False):
        below += count
        if below > TAIL * total:
            break
        low = edge
    high, above = math.inf, 0
    for edge, count in zip(reversed(trained.edges), reversed(trained.counts), strict=False):
        above += count
        if above > TAIL * total:
            break
        high = edge
    return low, high
