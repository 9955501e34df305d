"""Text and JSON that do nothing to a terminal and break no line, whoever wrote what is in them.

What devices and leaf sensors send is shown to people and split into lines by programs. Of what Unicode calls a line
end (`str.splitlines`), and of what a terminal obeys (ECMA-48: C0, DEL, and C1, where U+009B alone begins a command),
JSON escapes C0 only (RFC 8259 §7). The marks that turn the direction of writing (UAX #9) let one name pass for another.
"""

import re
from decimal import Decimal
from typing import Final

_JSON_ACTS: Final = re.compile(rb"\x7f|\xc2[\x80-\x9f]|\xe2\x80[\xa8-\xae]|\xe2\x81[\xa6-\xa9]")
_JSON_ESCAPE: Final = re.compile(rb"\\(?:u(007f|00[89][0-9a-f]|202[89a-e]|206[6-9])|.)", re.S)
_TEXT_ACTS: Final = re.compile("[\x00-\x08\n-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def plain_json(data: bytes) -> bytes:
    r"""Return JSON, meaning the same, with what acts on a terminal or ends a line escaped (`\u009b`)."""
    return _JSON_ACTS.sub(lambda found: b"\\u%04x" % ord(found[0].decode()), data)


def exact_json(data: bytes) -> bytes:
    """Undo `plain_json`, so that digests of what is in it hold again: our encoder escapes none of them by itself."""
    return _JSON_ESCAPE.sub(lambda found: found[0] if found[1] is None else chr(int(found[1], 16)).encode(), data)


def plain(text: str) -> str:
    r"""Return a text in one line, with every character escaped (`\x1b`, `\u2028`) that acts; tabs stay."""
    return _TEXT_ACTS.sub(_escaped, text)


def plain_lines(text: str) -> str:
    """Do the same to a text of several lines, which stay."""
    return "\n".join(plain(line) for line in text.split("\n"))


def so_many(number: int, noun: str) -> str:
    """Return a count with its noun: `1 record`, `2 records`; `noun` is the singular of one that takes an s."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def in_figures(value: float) -> str:
    """Return a number with three significant figures: `5180`, `0.0123`; as a power of ten where that is long."""
    text = f"{value:.3g}"
    return format(Decimal(text), "f") if 1e-6 <= abs(value) < 1e15 else text


def _escaped(found: re.Match[str]) -> str:
    code = ord(found[0])
    return "\\n" if code == 0x0A else f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"
