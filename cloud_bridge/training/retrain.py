"""Trains a release again with what the field has sent, and refuses what is not at least as good as before."""

from dataclasses import dataclass
from typing import Final

from cloud_bridge.training import release
from cloud_bridge.training.errors import TrainingError
from cloud_bridge.training.recipes import RECIPES
from cloud_bridge.training.recipes.field import FIELD_FALSE
from cloud_bridge.training.recipes.recipe import Field, Figures, Order, Recipe

MIN_NORMAL: Final = 20
"""Healthy windows from the field: with fewer there is nothing to learn from them, and nothing to hold back."""
SLACK: Final = 0.01
"""By how much AUC and F1 may be below the parent's: as much as another seed makes."""
PART_SLACK: Final = 0.25
"""The same for figures of one kind of fault: the held-back data have tens of windows of each, from a few machines."""
FALSE_SLACK: Final = 5.0
"""The same for false alarms in 1,000 windows."""


@dataclass(frozen=True, slots=True)
class Retrained:
    """A release that has passed, with the figures of both on the same held-back data."""

    made: release.Release
    figures: Figures
    parent_figures: Figures


def recipe_of(parent: release.Release) -> Recipe:
    """Return the recipe of a release.

    Raises:
        TrainingError: it has none that is known here.
    """
    recipe = RECIPES.get(parent.manifest.name)
    lineage = parent.manifest.lineage
    if recipe is None or lineage is None:
        known = ", ".join(sorted(RECIPES))
        raise TrainingError(f"{parent.manifest.name}: there is no recipe to train it again with; recipes: {known}")
    return recipe


def next_version(version: str, taken: frozenset[str] = frozenset()) -> str:
    """Return the next patch version that is not taken."""
    major, minor, patch = version.partition("-")[0].split(".")
    at = int(patch) + 1
    while f"{major}.{minor}.{at}" in taken:
        at += 1
    return f"{major}.{minor}.{at}"


def retrain(parent: release.Release, field: Field, *, version: str, share: float, released_at: str) -> Retrained:
    """Make a release of a parent and windows from the field. The same input makes the same release.

    Args:
        parent: what is to be replaced.
        field: windows from the field; see `collect`.
        version: of the new release.
        share: of the recipe's own data; 1 but for a quick look.
        released_at: RFC 3339, for the manifest.

    Raises:
        TrainingError: there is too little to learn from, or the new release is not good enough; nothing is written.
    """
    recipe = recipe_of(parent)
    normal = len(field.train) + len(field.validation) + len(field.held)
    if normal < MIN_NORMAL:
        raise TrainingError(
            f"{normal} healthy windows came from the field, {MIN_NORMAL} are needed; "
            "`cloud-bridge training samples` shows what is there, and `training label` says what it was"
        )
    name = f"{parent.manifest.name} {parent.manifest.version}"
    made = recipe.make(Order(version, share, field, name, released_at))
    release.check_golden(made)
    figures = recipe.evaluate(made.model, made.manifest, share, field)
    parent_figures = recipe.evaluate(parent.model, parent.manifest, share, field)
    release.require_quality(made.manifest.quality)
    problems = worse(figures, parent_figures)
    if problems:
        raise TrainingError(f"the new {made.manifest.name} is not as good as {name}: " + "; ".join(problems))
    return Retrained(made, figures, parent_figures)


def worse(figures: Figures, parent: Figures) -> list[str]:
    """Name the figures that are below the parent's, both on the same held-back data.

    False alarms on the recipe's own data may rise within the slack; those on data from the field are what the training
    is for, and may not.
    """
    problems = []
    for metric, before in parent.items():
        now = figures.get(metric)
        if now is None:
            problems.append(f"{metric}: not there any more")
        elif metric.startswith("false"):
            slack = 0.0 if metric == FIELD_FALSE else FALSE_SLACK
            if now > before + slack:
                problems.append(f"{metric}: {now:.4g}, was {before:.4g}")
        elif now < before - (SLACK if metric.startswith(("AUC", "F1")) else PART_SLACK):
            problems.append(f"{metric}: {now:.4f}, was {before:.4f}")
    return problems
