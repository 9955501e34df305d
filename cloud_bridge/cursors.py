"""Where a page of a list ended, as a text that goes through URLs and command lines."""

from base64 import urlsafe_b64decode, urlsafe_b64encode
from typing import Final, TypeVar

import msgspec

P = TypeVar("P", bound=tuple[int | str, ...])

MAX_LENGTH: Final = 2000
_MAX_NUMBER: Final = 2**63 - 1


class BadCursorError(ValueError):
    """A text that is no cursor of this list."""


def cursor_of(place: tuple[int | str, ...]) -> str:
    """Write a place as a cursor."""
    return urlsafe_b64encode(msgspec.json.encode(place)).decode("ascii").rstrip("=")


def place_of(cursor: str, kind: type[P]) -> P:
    """Read a cursor back.

    Raises:
        BadCursorError: it is none of this list.
    """
    try:
        if len(cursor) > MAX_LENGTH:
            raise BadCursorError("too long")
        place = msgspec.json.decode(urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)), type=kind)
        if any(isinstance(part, int) and abs(part) > _MAX_NUMBER for part in place):
            raise BadCursorError("a number is beyond 64 bits")
    except ValueError as error:  # msgspec's and binascii's errors are some
        raise BadCursorError("not the cursor of a page of this list") from error
    return place
