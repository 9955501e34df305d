"""Keeps what is in a store whose file was taken away while it was open.

A person who deletes or replaces `outbox.db` under a running gateway takes away its name only: as long as the file is
open, everything is still in it. It is written out again under another name, and takes its place at the next opening.
"""

import os
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Final

import structlog

from gateway.errors import OutboxError
from gateway.outbox.damage import SIDES, side, sync_directory
from gateway.outbox.faults import translated
from gateway.outbox.quarantine import Damage, quarantine, write_down
from gateway.wire.times import rfc3339

log = structlog.get_logger()

RESCUED: Final = ".rescued"
_UNFINISHED: Final = ".rescuing"

Identity = tuple[int, int]
"""Device and inode."""


def identity_of(file: Path) -> Identity | None:
    """Return what tells a file from another one of the same name; None when there is none."""
    try:
        found = file.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def write_out(db: sqlite3.Connection, file: Path) -> None:
    """Copy an open store to where the next opening finds it, durably and as a whole.

    Raises:
        OutboxError: there is no room, or the disk fails; nothing has changed then.
    """
    fresh = side(file, _UNFINISHED)
    try:
        for end in ("", *SIDES):
            side(fresh, end).unlink(missing_ok=True)
        os.close(os.open(fresh, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        with translated(fresh):
            target = sqlite3.connect(fresh, isolation_level=None)
            try:
                db.backup(target)
                target.execute("UPDATE meta SET value = '0' WHERE name = 'in_use'")  # it has no WAL that could be lost
                target.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            finally:
                target.close()
        descriptor = os.open(fresh, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        fresh.rename(side(file, RESCUED))
        sync_directory(file.parent)
    except OSError as error:
        raise OutboxError(f"{fresh}: {error.strerror or error}") from error


def put_back(file: Path, wall_ns: Callable[[], int]) -> bool:
    """Give a store that was written out its name again; what stands there now is put aside. False: there is none.

    That something was put aside is written down first, for the opening that follows to leave a notice of it.

    Raises:
        OutboxError: it cannot be renamed.
    """
    rescued = side(file, RESCUED)
    if not rescued.exists():
        return False
    if file.exists():
        reason = f"{file} was replaced by another store while the gateway had it open"
        write_down(file, Damage(reason=reason, at=rfc3339(wall_ns()), usurper=True))
        aside = quarantine(file)
        log.error("store_quarantined", file=str(file), aside=str(aside), reason=reason)
    try:
        for end in SIDES:
            side(file, end).unlink(missing_ok=True)
        rescued.rename(file)
        sync_directory(file.parent)
    except OSError as error:
        raise OutboxError(f"{rescued}: cannot take its place: {error.strerror}: rename it to {file.name}") from error
    log.error("store_put_back", file=str(file))
    return True
