"""`gateway run`."""

import sys
from functools import partial
from pathlib import Path

import click
import structlog

from gateway import logs, running
from gateway.commands.options import config_option
from gateway.configload import InvalidConfigError, read
from gateway.owner import other_owner_of

log = structlog.get_logger()


@click.command("run")
@config_option
def command(config_file: Path) -> None:
    """Run the gateway until it gets SIGTERM or SIGINT; open events are ended and the outbox is drained first.

    SIGHUP has it read the configuration again, and begin anew if that is valid and has changed; not in a terminal.
    """
    reading = read(config_file)
    if reading.config is None:
        raise InvalidConfigError(str(config_file), reading.errors)
    logs.configure(reading.config.log)
    for problem in reading.warnings:
        place = f"{config_file}:{problem.line}:{problem.column}"
        log.warning(
            "config_questionable", place=place, path=problem.path, problem=problem.message, remedy=problem.remedy
        )
    state = reading.config.gateway.state_directory
    if owner := other_owner_of(state):
        log.warning(
            "running_as_root_in_anothers_directory",
            directory=str(state),
            owner=owner,
            consequence=f"what it writes there belongs to root, and a gateway that {owner} runs later cannot read it",
            remedy=f"runuser -u {owner} -- gateway run, or another gateway.state_directory",
        )
    sys.exit(running.run(reading.config, partial(read, config_file)))
