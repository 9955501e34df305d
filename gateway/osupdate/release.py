"""Which system runs here, as `release.json` of the image says (`os.release_file`); and what a bundle says of itself."""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from gateway.osupdate.errors import BelowFloorError, IncompatibleError, NotAsAnnouncedError
from gateway.osupdate.versions import is_below, version_key

_MAX_BYTES: Final = 64 * 1024


class SystemRelease(msgspec.Struct, frozen=True, kw_only=True):
    """What the image says of itself. `floor`: versions below it are not installed over this one."""

    version: str
    commit: str = ""
    target: str = ""
    compatible: str = ""
    floor: str = ""


@dataclass(frozen=True, slots=True)
class BundleFacts:
    """What a signed bundle, or the signed list of the repository, says of it.

    `floor`: below it nothing is installed once this one runs. `counter`: the highest value of the vault's counter at
    which its image still gets the key; None: not said. `pcr11`: what its image measures, by slot.
    """

    compatible: str
    version: str
    floor: str = ""
    counter: int | None = None
    adaptive: bool = False
    pcr11: tuple[tuple[str, str], ...] = ()


def read_release(file: Path) -> SystemRelease | None:
    """Return which system runs; None where no image says so."""
    try:
        with file.open("rb") as source:
            return msgspec.json.decode(source.read(_MAX_BYTES), type=SystemRelease)
    except (OSError, msgspec.DecodeError, UnicodeDecodeError):
        return None


def require_installable(
    bundle: BundleFacts, running: SystemRelease | None, *, compatible: str, counter: int | None
) -> None:
    """Make sure that a bundle may be installed here.

    Args:
        bundle: what is to be installed.
        running: the system that runs.
        compatible: what this device is, as RAUC says.
        counter: of the vault; None where there is none.

    Raises:
        IncompatibleError: it is for other hardware.
        BelowFloorError: it is older than what this device may still run.
        NotAsAnnouncedError: its version is none.
    """
    if bundle.compatible != compatible:
        raise IncompatibleError(f"the bundle is for {bundle.compatible!r}; this device is {compatible!r}")
    try:
        version_key(bundle.version)
        below = running is not None and is_below(bundle.version, running.floor)
    except ValueError as error:
        raise NotAsAnnouncedError(str(error)) from error
    if below:
        assert running is not None
        raise BelowFloorError(
            f"version {bundle.version} is below {running.floor}, the oldest that may follow {running.version}"
        )
    if counter is not None and bundle.counter is not None and bundle.counter < counter:
        raise BelowFloorError(
            f"version {bundle.version} gets the vault's key up to counter {bundle.counter}; this device is at {counter}"
        )
