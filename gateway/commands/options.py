"""Options that several commands share."""

import math
from pathlib import Path
from typing import Any, Final

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


class Number(click.FloatRange):
    """A finite number in a range. To click `nan` is within any range, and neither it nor `inf` is a length of time."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """See click.ParamType."""
        found = super().convert(value, param, ctx)
        return found if math.isfinite(found) else self.fail(f"{value!r} is no finite number", param, ctx)


json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON for programs.")
