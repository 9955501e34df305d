"""How commands print: tables for people, JSON for programs."""

from collections.abc import Sequence
from typing import Final

import click
import msgspec

_COLOURS: Final = {"ok": "green", "warning": "yellow", "failed": "red", "error": "red"}


def print_json(value: object) -> None:
    """Print a value as indented JSON; structs and dataclasses become objects."""
    click.echo(formatted(value).decode(), nl=False)


def formatted(value: object) -> bytes:
    """Return a value as indented JSON with a final line end."""
    return msgspec.json.format(msgspec.json.encode(value, enc_hook=str), indent=2) + b"\n"


def print_table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print rows in columns as wide as they need."""
    widths = [max(len(cell) for cell in column) for column in zip(headings, *rows, strict=True)]
    for row in (headings, *rows):
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def coloured(word: str) -> str:
    """Colour a verdict, where the terminal can."""
    return click.style(word, fg=_COLOURS.get(word.strip()))


def size(count: float) -> str:
    """Say bytes for people: `12.3 MiB`."""
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} GiB"


def duration(seconds: float | None) -> str:
    """Say a duration for people, in its two largest units: `6 h 20 min`."""
    if seconds is None:
        return "-"
    whole = int(seconds)
    parts: list[str] = []
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60), ("s", 1)):
        count, whole = divmod(whole, length)
        if count or (unit == "s" and not parts):
            parts.append(f"{count} {unit}")
    return " ".join(parts[:2])
