"""Versions of the system: `1.4.0`, or a plain number, in the order of semantic versions (§11). Pure."""

import re
from typing import Final

VersionKey = tuple[tuple[int, int, int], bool, tuple[tuple[bool, int, str], ...]]

_VERSION: Final = re.compile(
    r"(\d{1,9})(?:\.(\d{1,9}))?(?:\.(\d{1,9}))?(?:-([0-9A-Za-z.-]{1,100}))?(?:\+[0-9A-Za-z.-]*)?"
)


def version_key(version: str) -> VersionKey:
    """Return a key to sort by.

    Raises:
        ValueError: it is no version.
    """
    match = _VERSION.fullmatch(version)
    if match is None:
        raise ValueError(f"{version[:64]!r} is no version; one is like 1.4.0, or a number")
    parts = tuple(
        (not part.isdigit(), int(part) if part.isdigit() else 0, part) for part in (match[4] or "").split(".")
    )
    return (int(match[1]), int(match[2] or 0), int(match[3] or 0)), match[4] is None, parts


def is_below(version: str, floor: str) -> bool:
    """Tell whether a version is older than a floor; an empty floor stops nothing.

    Raises:
        ValueError: one of them is no version.
    """
    return bool(floor) and version_key(version) < version_key(floor)
