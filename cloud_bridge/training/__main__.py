"""`python -m cloud_bridge.training`: list, train and evaluate the models that ship."""

import json
import sys
from pathlib import Path
from typing import Any, Final

import click
import msgspec

from cloud_bridge.commands.options import Share
from cloud_bridge.training import release
from cloud_bridge.training.errors import TrainingError
from cloud_bridge.training.recipes import RECIPES
from cloud_bridge.training.recipes.recipe import NO_FIELD, Recipe

SHIPPED: Final = Path(__file__).resolve().parents[2] / "gateway" / "models"
TOLERANCE: Final = 0.02
"""How far a figure may be from the manifest's before an evaluation fails."""

name_argument = click.argument("name", type=click.Choice(sorted(RECIPES)))
json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
share_option = click.option(
    "--share", type=Share(0.01), default=1.0, help="Share of the full amount of data, for a quick look."
)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """Make and judge the models that ship. Set OMP_NUM_THREADS=1: the networks are too small for more."""


@main.command("list")
@json_option
def list_recipes(*, as_json: bool) -> None:
    """List the recipes."""
    rows = [{"name": r.name, "version": r.version, "summary": r.summary} for r in RECIPES.values()]
    _tell(rows if as_json else "\n".join(f"{r['name']:20} {r['version']:8} {r['summary']}" for r in rows))


@main.command()
@name_argument
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), required=True, help="Where releases lie.")
@share_option
@json_option
def train(name: str, out: Path, share: float, *, as_json: bool) -> None:
    """Train a model, quantize it, judge it and write its release below OUT."""
    made = RECIPES[name].train(share)
    release.check_golden(made)
    place = release.write(made, out)
    _tell_figures(
        made, {figure.metric: figure.shipped_value for figure in made.manifest.quality}, place, as_json=as_json
    )


@main.command()
@name_argument
@click.option(
    "--release", "place", type=click.Path(exists=True, file_okay=False, path_type=Path), help="Its directory."
)
@share_option
@json_option
def evaluate(name: str, place: Path | None, share: float, *, as_json: bool) -> None:
    """Judge a release (by default the one that ships) on the held-back split; fail if it is not what it says."""
    recipe = RECIPES[name]
    place = place or SHIPPED / recipe.name / recipe.version
    found = release.read(place)
    release.check_golden(found)
    figures = recipe.evaluate(found.model, found.manifest, share, NO_FIELD)
    _tell_figures(found, dict(figures), place, as_json=as_json)
    if share == 1.0:
        _compare(recipe, found, dict(figures))


@main.command()
@name_argument
@click.option(
    "--release", "place", type=click.Path(exists=True, file_okay=False, path_type=Path), help="Its directory."
)
@share_option
def baseline(name: str, place: Path | None, share: float) -> None:
    """Write into a manifest what healthy data look like and what the model answers; its files stay as they are."""
    recipe = RECIPES[name]
    place = place or SHIPPED / recipe.name / recipe.version
    found = release.read(place)
    made = recipe.baseline(found.model, found.manifest, share, NO_FIELD)
    release.write_manifest(msgspec.structs.replace(found.manifest, baseline=made), place)
    _tell(f"{place}: a baseline of {made.samples} scores and {', '.join(sorted(made.inputs))}")


def _compare(recipe: Recipe, found: release.Release, figures: dict[str, float]) -> None:
    said = {figure.metric: figure.shipped_value for figure in found.manifest.quality}
    off = [
        f"{metric}: {figures.get(metric, float('nan')):.4f}, the manifest says {value:.4f}"
        for metric, value in said.items()
        if not abs(figures.get(metric, float("nan")) - value) <= TOLERANCE * max(abs(value), 1)
    ]
    if off:
        raise TrainingError(f"{recipe.name} is not what its manifest says: " + "; ".join(off))


def _tell_figures(found: release.Release, figures: dict[str, float], place: Path, *, as_json: bool) -> None:
    artefact = found.artefact
    if as_json:
        facts = {"name": found.manifest.name, "version": found.manifest.version, "directory": str(place)}
        _tell({**facts, "sha256": artefact.sha256, "size_bytes": artefact.size_bytes, "figures": figures})
        return
    lines = [f"{found.manifest.name} {found.manifest.version}: {place}"]
    lines += [f"  {artefact.file}, {artefact.size_bytes:,} bytes, sha256 {artefact.sha256}"]
    lines += [f"  {value:10.4f}  {metric}" for metric, value in figures.items()]
    _tell("\n".join(lines))


def _tell(what: Any) -> None:
    click.echo(what if isinstance(what, str) else json.dumps(what))


if __name__ == "__main__":
    try:
        main()
    except TrainingError as problem:
        click.echo(f"training: {problem}", err=True)
        sys.exit(1)
