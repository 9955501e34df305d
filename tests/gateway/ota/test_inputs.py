"""What a release on trial is given: blamed where it is not what it was made for, never where the world has changed."""

from bisect import bisect_right
from collections.abc import Iterable
from typing import Any

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray

from gateway.config import Trial
from gateway.ota.inputs import input_drift
from gateway.ota.journal import MadeFor, Reference
from gateway.ota.trial import Seen, TakeBack, Wait, judge
from gateway.wire.edges import INPUT_EDGES, TENSOR_EDGES, trimmed
from gateway.wire.histogram import Histogram
from gateway.wire.manifest import Baseline, ImageInput, Standardised, WindowInput

RULES = Trial(seconds=1000.0, min_inferences=50)
SPEC = ImageInput(height=8, width=8, mean=(0.0,), scale=(255.0,))
OTHERWISE = ImageInput(height=8, width=8, mean=(127.5,), scale=(127.5,))
DAY, NIGHT = 0.55, 0.12

Values = NDArray[np.float64]


def histogram(values: Iterable[float], edges: tuple[float, ...]) -> Histogram:
    counts = [0] * (len(edges) + 1)
    for value in values:
        counts[bisect_right(edges, value)] += 1
    return trimmed(edges, counts)


class World:
    """A scene of some brightness, and what a preprocessing that divides by `scale` makes of it."""

    def __init__(self, brightness: float, seed: int, count: int = 400, alike: float = 0.0) -> None:
        random = np.random.default_rng(seed)
        noise = random.normal(0, 1, count)
        for at in range(1, count):
            noise[at] = alike * noise[at - 1] + np.sqrt(1 - alike**2) * noise[at]
        self.brightness = np.clip(brightness + 0.05 * noise, 0, 1)
        self.contrast = np.clip(0.2 + 0.02 * random.normal(0, 1, count), 0, 1)

    @property
    def inputs(self) -> dict[str, tuple[float, ...]]:
        return {"brightness": tuple(self.brightness.tolist()), "contrast": tuple(self.contrast.tolist())}

    def tensor(self, scale: float = 1.0, offset: float = 0.0) -> dict[str, tuple[float, ...]]:
        level, spread = self.brightness * scale + offset, self.contrast * scale
        return {"level": tuple(level.tolist()), "spread": tuple(spread.tolist())}

    def baseline(self, scale: float = 1.0, offset: float = 0.0) -> Baseline:
        inputs = {name: histogram(values, INPUT_EDGES[name]) for name, values in self.inputs.items()}
        tensor = {name: histogram(values, TENSOR_EDGES[name]) for name, values in self.tensor(scale, offset).items()}
        return Baseline(inputs=inputs, tensor=tensor, samples=len(self.brightness))


TRAINED = World(DAY, 1, 4000).baseline()
BEFORE = World(DAY, 2)
NO_BASELINE = Baseline()


def before(baseline: Baseline = TRAINED, world: World = BEFORE, spec: ImageInput = SPEC) -> Reference:
    return Reference(inputs=world.inputs, tensor=world.tensor(), made_for=MadeFor(input=spec, baseline=baseline))


def drift(
    now: World, baseline: Baseline = TRAINED, *, was: Reference | None = None, spec: Any = SPEC, scale: float = 1.0
) -> str:
    made_for = MadeFor(input=spec, baseline=baseline)
    return input_drift(RULES, was or before(), made_for, inputs=now.inputs, tensor=now.tensor(scale))


# ---- it is the release's doing ---------------------------------------------------------------------------------------


def test_a_release_that_was_trained_on_another_scene_is_blamed() -> None:
    reason = drift(World(DAY, 3, 100), World(NIGHT, 1, 4000).baseline())
    assert reason == (
        "100% of 100 values of brightness are outside of what it was trained on (50% allowed); of the release before "
        "1% were"
    )


def test_so_is_one_whose_predecessor_says_nothing_of_its_training_if_the_scene_was_so_before() -> None:
    assert "brightness" in drift(World(DAY, 3, 100), World(NIGHT, 1, 4000).baseline(), was=before(NO_BASELINE))


def test_a_scale_in_the_manifest_that_the_training_did_not_have_is_blamed() -> None:
    """Pixels are divided by 1 instead of 255: the samples are as they were, what the model is given is not."""
    now = World(DAY, 3, 100)
    trained = World(DAY, 1, 4000).baseline()
    reason = drift(now, trained, spec=OTHERWISE, scale=255.0)
    assert reason.startswith("100% of 100 values of mean of what it is given are outside")
    assert drift(now, trained, spec=OTHERWISE) == ""  # control: with the scale of the training


def test_a_tensor_that_differs_with_the_same_preprocessing_is_blamed_without_any_baseline() -> None:
    """As when the artefact's own quantization cuts off half of the range."""
    reason = drift(World(DAY, 3, 100), NO_BASELINE, was=before(NO_BASELINE), scale=0.5)
    assert "with the same preprocessing of the same samples" in reason
    assert drift(World(DAY, 3, 100), NO_BASELINE, was=before(NO_BASELINE)) == ""  # control


def test_it_takes_the_release_back_with_a_code_of_its_own() -> None:
    now = World(DAY, 3, 100)
    seen = Seen(10.0, 100, inputs=now.inputs, tensor=now.tensor())
    made_for = MadeFor(input=SPEC, baseline=World(NIGHT, 1, 4000).baseline())
    verdict = judge(RULES, before(), None, seen, made_for)
    assert isinstance(verdict, TakeBack)
    assert verdict.code == "input-drift"
    assert judge(RULES, before(), None, seen) == Wait()  # control: without looking at the inputs
    assert judge(RULES, before(), None, seen, MadeFor(input=SPEC, baseline=TRAINED)) == Wait()


# ---- it is the world's doing -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("baseline", [TRAINED, NO_BASELINE], ids=["told", "untold"])
@pytest.mark.parametrize("old", [TRAINED, NO_BASELINE], ids=["told before", "untold before"])
@pytest.mark.parametrize("count", [50, 100, 400])
def test_a_scene_that_changes_for_both_blames_nobody(baseline: Baseline, old: Baseline, count: int) -> None:
    assert drift(World(NIGHT, 3, count), baseline, was=before(old)) == ""
    assert drift(World(NIGHT, 3, count), baseline, was=before(old, spec=OTHERWISE)) == ""


def test_a_device_that_is_odd_for_both_blames_nobody() -> None:
    """One machine of many may lie outside of the training of every release."""
    odd = World(0.95, 2)
    assert drift(World(0.95, 3), was=before(world=odd)) == ""
    older = msgspec.structs.replace(TRAINED, tensor={})
    assert drift(World(0.95, 3), was=before(older, odd)) == ""


def test_the_same_release_again_is_never_blamed() -> None:
    """A/A, looked at as often as a trial does: also where what follows is like what was, and shifts a little."""
    blamed = [
        (seed, alike)
        for alike in (0.0, 0.9, 0.98)
        for seed in range(60)
        if any(
            drift(part, was=before(world=World(DAY, 10_000 + seed, alike=alike)))
            for world in [World(DAY, seed, 400, alike)]
            for part in [cut(world, count) for count in (50, 100, 200, 400)]
        )
    ]
    assert blamed == []


def cut(world: World, count: int) -> World:
    part = World(DAY, 0, 1)
    part.brightness, part.contrast = world.brightness[:count], world.contrast[:count]
    return part


# ---- nothing can be said ---------------------------------------------------------------------------------------------


def test_too_few_samples_say_nothing() -> None:
    night = World(NIGHT, 1, 4000).baseline()
    assert drift(World(DAY, 3, 49), night) == ""
    assert drift(World(DAY, 3, 50), night)  # control
    assert drift(World(DAY, 3, 100), night, was=Reference()) == ""  # nobody has answered before


def test_what_depends_on_what_came_before_is_not_compared() -> None:
    spec = WindowInput(samples=4, hop_samples=4, rate_hz=1.0, features=Standardised())
    was = msgspec.structs.replace(before(NO_BASELINE), made_for=MadeFor(input=spec))
    assert drift(World(DAY, 3, 100), NO_BASELINE, was=was, spec=spec, scale=0.5) == ""


def test_a_reference_goes_through_the_journal_unchanged() -> None:
    whole = before()
    assert msgspec.json.decode(msgspec.json.encode(whole), type=Reference) == whole
    assert len(msgspec.json.encode(whole)) < 60_000
