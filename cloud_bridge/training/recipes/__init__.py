"""One module for each model that ships."""

from typing import Final

from cloud_bridge.training.recipes import process, vibration
from cloud_bridge.training.recipes.recipe import Recipe

RECIPES: Final[dict[str, Recipe]] = {recipe.name: recipe for recipe in (vibration.RECIPE, process.RECIPE)}
