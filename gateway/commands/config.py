"""`gateway config`: check, describe and begin a configuration file."""

import sys
from importlib.resources import files
from pathlib import Path

import click

from gateway.commands.output import print_json, say
from gateway.configload import read, reference, schema
from gateway.wire.plain import so_many


@click.group("config")
def command() -> None:
    """Check, describe and begin a configuration file."""


@command.command("validate")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print JSON for programs.")
@click.option("--no-files", is_flag=True, help="Do not look at the files and models that it names.")
def validate(file: Path, as_json: bool, no_files: bool) -> None:  # noqa: FBT001 - click passes flags by name
    """Report every mistake in FILE with its place and remedy; exit status 1 if there is an error."""
    reading = read(file, require_files=not no_files, take_stock=not no_files)
    usable = reading.config is not None
    if as_json:
        print_json({"file": str(file), "valid": usable, "problems": reading.problems})
    else:
        for problem in reading.problems:
            say(problem.told(str(file)))
        errors, warnings = len(reading.errors), len(reading.warnings)
        verdict = f"{so_many(errors, 'error')}, {so_many(warnings, 'warning')}" if errors or warnings else "no mistakes"
        say(f"{file}: {verdict}", err=not usable)
    sys.exit(0 if usable else 1)


@command.command("schema")
def print_schema() -> None:
    """Print the JSON schema (draft 2020-12) of the configuration file."""
    print_json(schema())


@command.command("example")
def example() -> None:
    """Print a configuration with comments, to begin with."""
    say((files("gateway") / "example.yaml").read_text(encoding="utf-8"), nl=False)


@command.command("reference")
def print_reference() -> None:
    """Print the reference of all keys as Markdown."""
    say(reference(), nl=False)
