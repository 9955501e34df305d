"""The `gateway` command. Each subcommand lives in a module of `gateway.commands`."""

import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Any, Final, NoReturn

import click

from gateway.commands.output import say
from gateway.commands.stdout import not_text, require_output, told_nowhere
from gateway.errors import (
    ConfigAwayError,
    ConfigError,
    ControlClosedError,
    ControlError,
    GatewayError,
    RequestRefusedError,
)
from gateway.version import program_version

EXIT_PROBLEM: Final = 1
EXIT_NOT_RUNNING: Final = 3
EXIT_CONFIGURATION: Final = 4

_EPILOG: Final = """\b
Exit status:
  0  all is well
  1  a problem was found, or the command failed
  2  wrong usage
  3  no gateway is running
  4  the configuration cannot be used

The configuration is /etc/sluice/gateway.yaml, or what $SLUICE_CONFIG or --config says.
"""


class Commands(click.Group):
    """A group that imports a command's module only when that command is asked for.

    `gateway run` needs OpenCV and an inference runtime, which take longer to import than any other command
    takes to run; their modules name them at the top as usual, and this is the only place that waits.
    """

    lazy: Final = {
        "run": ("gateway.commands.run", "Run the gateway until it is told to stop."),
        "config": ("gateway.commands.config", "Check, describe and begin a configuration file."),
        "try": ("gateway.commands.tryout", "See what a pipeline would tell of a recording."),
        "status": ("gateway.commands.status", "Tell how the running gateway is."),
        "doctor": ("gateway.commands.doctor", "Examine this machine, and say what to do."),
        "outbox": ("gateway.commands.outbox", "Look into the records that wait for the cloud."),
        "identity": ("gateway.commands.identity", "The one-hour certificate: how it stands, how to enrol."),
        "qualify-storage": (
            "gateway.commands.qualify",
            "Find out whether a medium keeps what it says it has written.",
        ),
        "models": ("gateway.commands.models", "List and check model releases."),
        "ota": ("gateway.commands.ota", "Models over the air: what runs, what was tried, how to go back."),
        "appliance": ("gateway.commands.appliance", "Provision, judge and reset an appliance."),
        "support-bundle": (
            "gateway.commands.supportbundle",
            "Collect what support needs into one file, without secrets.",
        ),
        "os": ("gateway.commands.os", "Updates of the system: what runs, what was tried, install a bundle."),
        "vault": ("gateway.commands.vault", "Look after the key that protects model weights."),
        "schema": ("gateway.commands.schema", "Print the JSON schemas of the messages."),
    }

    def list_commands(self, _ctx: click.Context) -> list[str]:
        """Name the commands, in the order of the help."""
        return list(self.lazy)

    def get_command(self, _ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a command."""
        if cmd_name not in self.lazy:
            return None
        command = import_module(self.lazy[cmd_name][0]).command
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, _ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, summary) for name, (_, summary) in self.lazy.items()])

    def main(self, args: Sequence[str] | None = None, *more: Any, **extra: Any) -> Any:
        """Run a command; errors of this program become one message and an exit status."""
        try:
            if list(sys.argv[1:] if args is None else args)[:1] != ["run"]:  # which says nothing there
                require_output()
            return super().main(args, *more, **extra)
        except GatewayError as error:
            _fail(error)
        except OSError as error:
            told = told_nowhere(error)
            if told is None:
                raise
            _fail(told)
        except UnicodeEncodeError as error:
            told = not_text(error)
            if told is None:
                raise
            _fail(told)


def _fail(error: GatewayError) -> NoReturn:
    say(f"gateway: {error}", err=True)
    sys.exit(exit_status(error))


def exit_status(error: GatewayError) -> int:
    """Return the exit status for an error."""
    match error:
        case ConfigAwayError():
            return EXIT_PROBLEM  # a supervisor starts the gateway again, which it does not with a wrong configuration
        case ConfigError():
            return EXIT_CONFIGURATION
        case RequestRefusedError() | ControlClosedError():
            return EXIT_PROBLEM
        case ControlError():
            return EXIT_NOT_RUNNING
        case _:
            return EXIT_PROBLEM


@click.group(cls=Commands, epilog=_EPILOG, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(program_version(), prog_name="gateway")
def main() -> None:
    """Sluice: quantized models watch cameras and sensors here; what matters reaches the cloud exactly once."""
