"""Where the outbox must not be: a file of something else would be overwritten, or be none."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import msgspec

from gateway.config import CameraSource, Config

_KEY: Final = "outbox.file"
_NO_DISKS: Final = (Path("/dev"), Path("/proc"), Path("/sys"))


def outbox_place_problems(config: Config, configuration: Path | None) -> Iterator[tuple[str, str]]:
    """Report what is wrong with `outbox.file`, where it is given, and the remedy. Links are followed."""
    file = config.outbox.file
    if file is None:
        return
    place = _real(file)
    if any(place.is_relative_to(kernel) for kernel in _NO_DISKS):
        yield f"{file} is no place on a disk: nothing lasts there", "name a file on a disk that keeps what it is given"
    if configuration is not None and place == _real(configuration):
        yield f"{file} is this configuration itself", "give the outbox a file of its own"
    for path, other in _paths("", config):
        if path != _KEY and place == _real(other):
            yield f"{file} is `{path}` as well", "give the outbox a file of its own"


def _real(file: Path) -> Path:
    return Path(os.path.realpath(file))


def _paths(path: str, part: object) -> Iterator[tuple[str, Path]]:
    """Yield every path of a configuration, the defaults included, with its key."""
    if isinstance(part, Path):
        yield path, part
    elif isinstance(part, msgspec.Struct):
        if isinstance(part, CameraSource) and part.device and "://" not in part.device:
            yield f"{path}.device", Path(part.device)
        for key in part.__struct_fields__:
            yield from _paths(f"{path}.{key}" if path else key, getattr(part, key))
    elif isinstance(part, dict):
        for key, value in part.items():
            yield from _paths(f"{path}.{key}", value)
    elif isinstance(part, list):
        for at, value in enumerate(part):
            yield from _paths(f"{path}[{at}]", value)
