"""What the documentation promises of a device, read where customers read it."""

import re
from pathlib import Path
from typing import Final, Literal

APPLIANCE: Final = Path(__file__).parents[2] / "docs/appliance.md"
When = Literal["always", "with a key", "never"]


def listeners(text: str) -> dict[str, When]:
    """Return what listens by "What listens" of docs/appliance.md, as `tcp/22`, and when it does so beyond loopback.

    Raises:
        ValueError: the table is not there, or says of a port something that is not known here.
    """
    _, _, section = text.partition("\n## What listens\n")
    found: dict[str, When] = {}
    for line in section.partition("\n## ")[0].splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        for port, protocols in re.findall(r"(\d+)/([a-z+]+)", cells[0]) if line.startswith("|") else ():
            for protocol in protocols.split("+"):
                found[f"{protocol}/{port}"] = _when(cells[2])
    if not found:
        raise ValueError('no table "What listens"')
    return found


def _when(cell: str) -> When:
    if cell == "yes":
        return "always"
    if cell.startswith("only when the claim brings a key"):
        return "with a key"
    if cell == "no" or cell.startswith("no;"):
        return "never"
    raise ValueError(f"beyond loopback: {cell!r}")


def reachable(*, with_key: bool) -> set[str]:
    """Return what may accept something from outside on a device with a key for SSH, or without one."""
    allowed: tuple[When, ...] = ("always", "with a key") if with_key else ("always",)
    return {port for port, when in listeners(APPLIANCE.read_text("utf-8")).items() if when in allowed}
