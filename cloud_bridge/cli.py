"""`cloud-bridge`: runs the bridge, and looks into its store.

Exit status: 0 done; 1 it failed (the store or the bridge cannot be reached); 2 wrong usage or configuration;
3 done, but something could not be used (a line of an import, a dead letter). With --json, standard output is JSON
and nothing else.
"""

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import click
import msgspec

from cloud_bridge import app, logs
from cloud_bridge.commands.broker_config import broker_config
from cloud_bridge.commands.deadletters import deadletters
from cloud_bridge.commands.drift import drift
from cloud_bridge.commands.fleet import fleet
from cloud_bridge.commands.identity import identity
from cloud_bridge.commands.look import events, gaps, records, status
from cloud_bridge.commands.model import model
from cloud_bridge.commands.move import export, import_
from cloud_bridge.commands.options import FAILED, WRONG_USAGE, Place, placed, put, say
from cloud_bridge.commands.os import os_
from cloud_bridge.commands.registry import registry
from cloud_bridge.commands.rollout import rollout
from cloud_bridge.commands.rollups import rollups
from cloud_bridge.commands.stdout import OutputError, not_text, require_output, told_nowhere
from cloud_bridge.commands.store import backup, restore_, store
from cloud_bridge.commands.training import training
from cloud_bridge.configload import InvalidConfigError, load, schema
from cloud_bridge.errors import BridgeError, ConfigError


class _Commands(click.Group):
    """Turns our errors into messages and exit statuses."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except ConfigError as error:
            say(f"error: {error}", err=True)
            ctx.exit(WRONG_USAGE)
        except BridgeError as error:
            say(f"error: {error}", err=True)
            ctx.exit(FAILED)
        except KeyboardInterrupt:
            ctx.exit(0)  # the usual end of --follow

    def main(self, args: Sequence[str] | None = None, *more: Any, **extra: Any) -> Any:
        try:
            if list(sys.argv[1:] if args is None else args)[:1] != ["run"]:  # which says nothing there
                require_output()
            return super().main(args, *more, **extra)
        except OutputError as error:
            _fail(error, FAILED)
        except OSError as error:
            told = told_nowhere(error)
            if told is None:
                raise
            _fail(told, FAILED)
        except UnicodeEncodeError as error:
            told = not_text(error)
            if told is None:
                raise
            _fail(told, WRONG_USAGE)


def _fail(error: BridgeError, status: int) -> NoReturn:
    say(f"error: {error}", err=True)
    sys.exit(status)


@click.group(cls=_Commands, epilog=(__doc__ or "").partition("\n\n")[2])
@click.version_option(package_name="sluice", prog_name="cloud-bridge")
def main() -> None:
    """Take records from a fleet of gateways, keep each exactly once, and look at them."""


@main.command()
@placed
@click.option("--broker", "broker_url", metavar="URL", help="Instead of the file's brokers: mqtt://127.0.0.1:1883.")
@click.option("--take-over", is_flag=True, help="Take the records of the brokers even if a bridge has an older store.")
def run(file: Path | None, store_url: str | None, broker_url: str | None, *, take_over: bool) -> None:
    """Run the bridge until it is told to stop."""
    config = Place(file, store_url).config(broker_url)
    logs.configure(config.log)
    app.run(config, os.environ, take_over=take_over)


@main.group()
def config() -> None:
    """Check the configuration."""


@config.command()
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="One line of JSON.")
def validate(file: Path, *, as_json: bool) -> None:
    """Report every mistake in a configuration file, with its place."""
    try:
        load(file)
    except InvalidConfigError as error:
        if as_json:
            problems = [
                {"line": one.line, "column": one.column, "where": one.where, "message": one.message}
                for one in error.problems
            ]
            put({"valid": False, "problems": problems})
        else:
            say(str(error), err=True)
        sys.exit(WRONG_USAGE)
    if as_json:
        put({"valid": True, "problems": []})
    else:
        say(f"{file}: fine")


@config.command("schema")
def show_schema() -> None:
    """Print the JSON schema of the configuration file."""
    say(msgspec.json.format(msgspec.json.encode(schema()), indent=2).decode())


for command in (status, records, events, gaps, deadletters, export, import_, rollups, store, backup, restore_):
    main.add_command(command)
main.add_command(identity)
main.add_command(broker_config)
main.add_command(fleet)
main.add_command(rollout)
main.add_command(drift)
main.add_command(training)
main.add_command(model)
main.add_command(os_)
main.add_command(registry)
