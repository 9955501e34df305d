"""`cloud-bridge`: runs the bridge, and looks into its store.

Exit status: 0 done; 1 it failed (the store or the bridge cannot be reached); 2 wrong usage or configuration;
3 done, but something could not be used (a line of an import, a dead letter). With --json, standard output is JSON
and nothing else.
"""

import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Any, Final, NoReturn

import click

from cloud_bridge.commands.options import FAILED, WRONG_USAGE, say
from cloud_bridge.commands.reach import not_allowed
from cloud_bridge.commands.stdout import OutputError, not_text, require_output, told_nowhere
from cloud_bridge.errors import BridgeError, ConfigError, StoreError

_IN: Final = "cloud_bridge.commands."


class _Commands(click.Group):
    """Turns our errors into messages and exit statuses; imports a command only when it is asked for.

    `cloud-bridge run` needs web servers, databases and cryptography, which take longer to import than most commands
    take to run.
    """

    lazy: Final = {
        "backup": (_IN + "store", "backup", "Copy a SQLite store and the databases beside it while the bridge runs."),
        "broker-config": (_IN + "broker_config", "broker_config", "Write all that mosquitto needs for the fleet."),
        "config": (_IN + "config", "config", "Check the configuration."),
        "deadletters": (
            _IN + "deadletters",
            "deadletters",
            "Look at what could not be used; try it again, or drop it.",
        ),
        "drift": (_IN + "drift", "drift", "Inputs and answers that move away from what a release was trained on."),
        "events": (_IN + "look", "events", "Show events in their latest phase."),
        "export": (_IN + "move", "export", "Write records to a file, NDJSON or Parquet."),
        "fleet": (_IN + "fleet", "fleet", "Devices: labels, features, what they are to run; forget one."),
        "gaps": (_IN + "look", "gaps", "Show which sequence numbers will never come, and why."),
        "identity": (_IN + "identity", "identity", "Who devices are, who may enrol, which boot states are approved."),
        "import": (_IN + "move", "import_", "Bring records in from a file of `gateway outbox export` or `export`."),
        "model": (_IN + "model", "model", "Releases of models: publish, compare, approve, take back."),
        "os": (_IN + "os", "os_", "Images of the appliance's system: publish, list, take back."),
        "records": (_IN + "look", "records", "Show records in the order of receipt."),
        "registry": (_IN + "registry", "registry", "The signed repository: begin it, look after its keys, sign."),
        "restore": (_IN + "store", "restore_", "Put a backup in the place of a SQLite store."),
        "rollout": (_IN + "rollout", "rollout", "Give releases to the fleet in waves, and take back what is worse."),
        "rollups": (_IN + "rollups", "rollups", "Show sums of events and measures by hour or day of capture."),
        "run": (_IN + "run", "run", "Run the bridge until it is told to stop."),
        "status": (_IN + "look", "status", "Show the fleet, the store, and how far each stream is complete."),
        "store": (_IN + "store", "store", "Look after the store."),
        "training": (_IN + "training", "training", "Learn from the field: samples, labels, releases trained again."),
    }

    def list_commands(self, _ctx: click.Context) -> list[str]:
        """Name the commands, in the order of the help."""
        return list(self.lazy)

    def get_command(self, _ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a command."""
        if cmd_name not in self.lazy:
            return None
        module, name, _ = self.lazy[cmd_name]
        command = vars(import_module(module))[name]
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, _ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, summary) for name, (*_, summary) in self.lazy.items()])

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except ConfigError as error:
            say(f"error: {error}", err=True)
            ctx.exit(WRONG_USAGE)
        except BridgeError as error:
            cause = error.__cause__
            told = not_allowed(cause) if isinstance(error, StoreError) and isinstance(cause, OSError) else None
            say(f"error: {told or error}", err=True)
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
            told = told_nowhere(error) or not_allowed(error)
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
