"""Options that several commands share."""

from pathlib import Path
from typing import Final

import click

DEFAULT_CONFIG: Final = Path("/etc/sluice/gateway.yaml")

config_option = click.option(
    "--config",
    "config_file",
    type=click.Path(path_type=Path),
    envvar="SLUICE_CONFIG",
    default=DEFAULT_CONFIG,
    show_default=True,
    show_envvar=True,
    help="The configuration file.",
)

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON for programs.")
