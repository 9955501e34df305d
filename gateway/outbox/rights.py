"""Rights of the store's files: what its own user may not read is no damage."""

import os
import stat
from pathlib import Path

import structlog

from gateway.errors import OutboxError
from gateway.outbox.damage import SIDES, side

log = structlog.get_logger()


def regain(file: Path) -> None:
    """Give this user back what a `chmod`, or a copy that keeps no modes, has taken from files that are its own.

    Raises:
        OutboxError: the file system does not allow it.
    """
    for name in (file, *(side(file, end) for end in SIDES)):
        try:
            found = name.lstat()
        except OSError:
            continue  # it is not there, or whoever opens it says what is the matter
        lacks = found.st_mode & 0o600 != 0o600
        if not (lacks and stat.S_ISREG(found.st_mode) and found.st_uid == os.geteuid()):
            continue
        try:
            name.chmod(0o600)
        except OSError as error:
            raise OutboxError(f"{name}: may not be read or written: {error.strerror}: chmod 600 {name}") from error
        log.warning("store_rights_restored", file=str(name), mode=oct(stat.S_IMODE(found.st_mode)))
