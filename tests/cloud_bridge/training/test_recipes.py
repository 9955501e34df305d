"""The recipes make a model, reproducibly; here with little data, so that it takes seconds."""

import pytest

from cloud_bridge.training import release
from cloud_bridge.training.recipes import RECIPES
from cloud_bridge.training.recipes.recipe import Recipe


@pytest.mark.slow
@pytest.mark.timeout(240)
@pytest.mark.parametrize(
    ("recipe", "share", "metric"),
    [(RECIPES["vibration-anomaly"], 0.15, "AUC, all faults"), (RECIPES["process-anomaly"], 0.1, "AUC, windows")],
    ids=["vibration", "process"],
)
def test_a_reduced_recipe_makes_a_useful_model_and_the_same_one_twice(
    recipe: Recipe, share: float, metric: str
) -> None:
    first, second = recipe.train(share), recipe.train(share)
    assert first.model == second.model
    assert first.manifest == second.manifest
    release.check_golden(first)
    (figure,) = (figure for figure in first.manifest.quality if figure.metric == metric)
    assert figure.shipped_value > 0.9
    assert figure.shipped_value >= release.KEPT * figure.float_value
