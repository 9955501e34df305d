"""`cloud-bridge config`: checks and describes the configuration."""

import sys
from pathlib import Path

import click
import msgspec

from cloud_bridge.commands.options import WRONG_USAGE, put, say
from cloud_bridge.configload import InvalidConfigError, away, load, schema


@click.group()
def config() -> None:
    """Check the configuration."""


@config.command()
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="One line of JSON.")
def validate(file: Path, *, as_json: bool) -> None:
    """Report every mistake in a configuration file, with its place; warn of files that are not on this host."""
    try:
        warnings = away(load(file))
    except InvalidConfigError as error:
        if as_json:
            problems = [
                {"line": one.line, "column": one.column, "where": one.where, "message": one.message}
                for one in error.problems
            ]
            put({"valid": False, "problems": problems, "warnings": []})
        else:
            say(str(error), err=True)
        sys.exit(WRONG_USAGE)
    if as_json:
        told = [{"where": one.where, "message": one.message} for one in warnings]
        put({"valid": True, "problems": [], "warnings": told})
        return
    for warning in warnings:
        say(f"{file}: warning: {warning}", err=True)
    say(f"{file}: fine")


@config.command("schema")
def show_schema() -> None:
    """Print the JSON schema of the configuration file."""
    say(msgspec.json.format(msgspec.json.encode(schema()), indent=2).decode())
