"""How commands print: tables for people, JSON for programs."""

import re
from collections.abc import Callable, Sequence
from typing import Final

import click
import msgspec

from gateway.wire.plain import plain, plain_json, plain_lines

_COLOURS: Final = {"ok": "green", "warning": "yellow", "failed": "red", "error": "red"}
_VERDICT: Final = re.compile(rf"\x1b\[3[123]m(?:{'|'.join(_COLOURS)}) *\x1b\[0m")
"""What `coloured` makes: the only commands to a terminal that `say` lets through."""


def print_json(value: object) -> None:
    """Print a value as indented JSON; structs and dataclasses become objects."""
    click.echo(formatted(value).decode(), nl=False)


def print_json_line(value: object) -> None:
    """Print a value as one line of JSON."""
    click.echo(plain_json(msgspec.json.encode(value, enc_hook=str)))


def formatted(value: object) -> bytes:
    """Return a value as indented JSON with a final line end; nothing in it acts on a terminal."""
    return plain_json(msgspec.json.format(msgspec.json.encode(value, enc_hook=str), indent=2)) + b"\n"


def say(text: str = "", *, err: bool = False, nl: bool = True) -> None:
    """Print text for people; what others have put into it does nothing to their terminal."""
    click.echo(_shown(text, plain_lines), err=err, nl=nl)


def say_line(text: str) -> None:
    """Print one line for people, also where others have put line ends into it."""
    click.echo(_shown(text, plain))


def _shown(text: str, escape: Callable[[str], str]) -> str:
    """Escape all of a text but our own verdicts in their colours."""
    shown, at = [], 0
    for verdict in _VERDICT.finditer(text):
        shown += [escape(text[at : verdict.start()]), verdict[0]]
        at = verdict.end()
    return "".join([*shown, escape(text[at:])])


def print_table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print rows in columns as wide as they need."""
    rows = [[_shown(cell, plain) for cell in row] for row in rows]
    widths = [max(len(cell) for cell in column) for column in zip(headings, *rows, strict=True)]
    for row in (headings, *rows):
        say("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def coloured(word: str) -> str:
    """Colour a verdict, where the terminal can."""
    colour = _COLOURS.get(word.strip())
    return word if colour is None else click.style(word, fg=colour)


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
