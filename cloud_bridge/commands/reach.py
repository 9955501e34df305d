"""What a command may not read or write, because another user than the bridge's has called it."""

import os
import pwd
from pathlib import Path

from cloud_bridge.errors import BridgeError


class ReachError(BridgeError):
    """Whoever calls may not reach a file; another user may."""


def not_allowed(error: OSError) -> ReachError | None:
    """Return what to tell of a file that the caller may not reach; None if the error is about something else."""
    if not isinstance(error, PermissionError) or error.filename is None:
        return None
    path = Path(os.fsdecode(error.filename))
    caller = _name(os.geteuid())
    words = f"{path}: {error.strerror or error}, for {caller}"
    barrier = _barrier(path)
    if barrier is None:
        return ReachError(f"{words}; call it as the user that the bridge runs as")
    place, owner = barrier
    if owner == os.geteuid():
        return ReachError(f"{words}; {place} is of that user, so look at its mode with `ls -ld`")
    return ReachError(f"{words}; {place} belongs to {_name(owner)}: call it as that user, `sudo -u '{_name(owner)}' …`")


def _barrier(path: Path) -> tuple[Path, int] | None:
    """Return the deepest place on the way to a file that can be looked at, and the id of its owner."""
    for place in (path.absolute(), *path.absolute().parents):
        try:
            return place, place.stat().st_uid
        except OSError:
            continue
    return None


def _name(user: int) -> str:
    try:
        return pwd.getpwuid(user).pw_name
    except KeyError:
        return f"#{user}"
