"""Sizes as people write them. Pure."""

import re
from typing import Final

_UNITS: Final = {
    "B": 1,
    "kB": 1000,
    "KB": 1000,
    "MB": 1000**2,
    "GB": 1000**3,
    "KiB": 1024,
    "MiB": 1024**2,
    "GiB": 1024**3,
}
_FORM: Final = re.compile(r"([0-9]+(?:\.[0-9]+)?) ?([A-Za-z]+)")


def byte_count(size: int | str) -> int:
    """Return a size in bytes: 52428800, `50MB` (as on a bill, powers of ten) or `50MiB`; at least 1.

    Raises:
        ValueError: it is neither; the configuration types let nothing else pass.
    """
    if isinstance(size, int):
        return size
    found = _FORM.fullmatch(size)
    if found is None or found[2] not in _UNITS:
        raise ValueError(f"{size!r} is no size; write a number, or one such as 50MB or 64MiB")
    return max(1, round(float(found[1]) * _UNITS[found[2]]))
