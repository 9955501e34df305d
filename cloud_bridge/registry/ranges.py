"""The `Range` header (RFC 9110 §14), as far as a download needs it: one range of bytes. Pure."""

import re
from dataclasses import dataclass
from typing import Final

_RANGE: Final = re.compile(r"bytes=(\d{0,18})-(\d{0,18})")


@dataclass(frozen=True, slots=True)
class Part:
    """Bytes `offset` to `offset + length` of a file."""

    offset: int
    length: int


class UnsatisfiableError(Exception):
    """The range lies beyond the end of the file."""


def part_of(header: str | None, size_bytes: int) -> Part | None:
    """Return which part is asked for; None for the whole file, also when the header is none that is understood.

    Raises:
        UnsatisfiableError: no byte of the range is there.
    """
    match = None if header is None else _RANGE.fullmatch(header.strip())
    if match is None or match[1] == match[2] == "":
        return None
    if match[1] == "":
        wanted = int(match[2])
        if wanted == 0 or size_bytes == 0:
            raise UnsatisfiableError
        return Part(max(0, size_bytes - wanted), min(wanted, size_bytes))
    first = int(match[1])
    last = min(int(match[2]), size_bytes - 1) if match[2] else size_bytes - 1
    if match[2] and int(match[2]) < first:
        return None  # not valid, so it is passed over (RFC 9110 §14.1.1)
    if first >= size_bytes:
        raise UnsatisfiableError
    return Part(first, last - first + 1)
