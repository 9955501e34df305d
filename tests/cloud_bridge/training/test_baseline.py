"""Baselines: the same figures as the device makes, and the shipped manifests have them."""

import numpy as np
import pytest

from cloud_bridge.training import release
from cloud_bridge.training.__main__ import SHIPPED
from cloud_bridge.training.baseline import baseline_of, squashed, window_statistics
from cloud_bridge.training.recipes import RECIPES
from cloud_bridge.training.recipes.recipe import NO_FIELD, Recipe
from gateway.inference.postprocess import squash
from gateway.preprocess.statistics import statistics_of
from gateway.values import Window

recipes = pytest.mark.parametrize("recipe", RECIPES.values(), ids=list(RECIPES))


def test_training_describes_windows_as_the_device_does() -> None:
    random = np.random.default_rng(4)
    windows = random.normal(0, [0.1, 5.0, 0.0], (20, 320, 3)).cumsum(axis=1) + 3.0
    windows[3, :, 1] = 1.25
    ours = window_statistics(windows)
    theirs: dict[str, list[float]] = {}
    for cut in windows:
        for name, values in statistics_of(Window("s", 1, 0, 0, 1.0, cut.astype(np.float32))):
            theirs.setdefault(name, []).extend(values)
    assert set(ours) == set(theirs)
    for name, described in ours.items():
        np.testing.assert_allclose(described, theirs[name], rtol=1e-3, atol=1e-5)


def test_training_squashes_scores_as_the_device_does() -> None:
    raw = np.array([-1.0, 0.0, 0.3, 2.0, 50.0])
    np.testing.assert_allclose(squashed(raw, 0.7), [squash(float(one), 0.7) for one in raw])


def test_a_baseline_counts_its_scores() -> None:
    made = baseline_of([0.0, 0.1, 0.12, 0.9], {"rms": [0.5, 2.0]})
    assert made.samples == 4
    assert made.score is not None
    assert sum(made.score.counts) == 4
    assert sum(made.inputs["rms"].counts) == 2


@recipes
def test_what_ships_has_a_baseline_of_healthy_data(recipe: Recipe) -> None:
    baseline = release.read(SHIPPED / recipe.name / recipe.version).manifest.baseline
    assert baseline is not None
    assert baseline.score is not None
    assert baseline.samples >= 2000
    below = sum(
        count for edge, count in zip(baseline.score.edges, baseline.score.counts[1:], strict=True) if edge < 0.5
    )
    assert below >= 0.99 * baseline.samples
    assert {"crest", "roughness"} <= set(baseline.inputs)


@recipes
def test_a_baseline_does_not_depend_on_when_it_is_made(recipe: Recipe) -> None:
    found = release.read(SHIPPED / recipe.name / recipe.version)
    first = recipe.baseline(found.model, found.manifest, 0.05, NO_FIELD)
    assert recipe.baseline(found.model, found.manifest, 0.05, NO_FIELD) == first
