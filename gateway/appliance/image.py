"""Which image this device runs."""

from pathlib import Path

import msgspec


class Image(msgspec.Struct, frozen=True, kw_only=True):
    """`/usr/lib/sluice/release.json`; empty on a machine that is no appliance."""

    version: str = ""
    commit: str = ""
    target: str = ""
    compatible: str = ""
    floor: str | int = ""


def read_image(file: Path) -> Image:
    """Return what the image says of itself; an empty one where it says nothing that can be read."""
    try:
        return msgspec.json.decode(file.read_bytes(), type=Image)
    except (OSError, msgspec.DecodeError, UnicodeDecodeError):
        return Image()
