"""Keeps what is in a store whose file was taken away while the bridge had it open.

A person who deletes or replaces `bridge.db` under a running bridge takes away its name only: the bridge would go on
acknowledging into a file that is gone with the process, and devices would free what nobody has any more. As long as
the file is open, everything is still in it: it is written out again, and gets its name back.
"""

import os
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Final, NamedTuple

import structlog

from cloud_bridge.errors import StoreError
from cloud_bridge.identity.files import sync_directory

log = structlog.get_logger()

SIDES: Final = ("", "-wal", "-shm")
RESCUED: Final = ".rescued"
_UNFINISHED: Final = ".rescuing"
_MODE: Final = 0o640


class Identity(NamedTuple):
    """What tells a file from another one of the same name."""

    device: int
    inode: int


def identity_of(file: Path) -> Identity | None:
    """Return what tells a file from another one of the same name; None when there is none."""
    try:
        found = file.stat()
    except OSError:
        return None
    return Identity(found.st_dev, found.st_ino)


Identities = tuple[Identity | None, ...]
"""Of a store, its log and its index."""


def identities(path: Path) -> Identities:
    """Return what tells a store, its log and its index from others.

    A log or an index that is gone is as bad as a missing store: who opens the file next begins others, and sees
    neither what this process has committed nor its locks.
    """
    return tuple(identity_of(Path(f"{path}{side}")) for side in SIDES)


def write_out(connection: sqlite3.Connection, path: Path) -> None:
    """Copy an open store to where the next opening finds it, durably and as a whole.

    Raises:
        StoreError: there is no room, or the disk fails; nothing has changed then.
    """
    fresh = Path(f"{path}{_UNFINISHED}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        for side in (*SIDES, "-journal"):
            Path(f"{fresh}{side}").unlink(missing_ok=True)
        os.close(os.open(fresh, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, _MODE))
        with closing(sqlite3.connect(fresh, isolation_level=None)) as copy:
            connection.backup(copy, pages=-1)
            copy.execute("PRAGMA journal_mode = DELETE").fetchall()  # one file, whole by itself
        with fresh.open("rb+") as written:
            os.fsync(written.fileno())
        fresh.rename(f"{path}{RESCUED}")
        sync_directory(path.parent)
    except OSError as error:
        raise StoreError(f"{fresh}: {error.strerror or error}") from error
    except sqlite3.Error as error:
        raise StoreError(f"{fresh}: {error}") from error


def clear(path: Path, stamp: int, ours: Identities = ()) -> Path | None:
    """Put what stands in the place of a store aside, with its log; return its new name, None if there is nothing.

    Of our own files nothing is kept: what was written out has all of it, and our log beside another one's file would
    be taken for its log.

    Raises:
        OSError: it cannot be renamed.
    """
    aside = None
    for side in SIDES:
        present = Path(f"{path}{side}")
        found = identity_of(present)
        if found is not None and found in ours:
            present.unlink()
        elif found is not None:
            present.rename(f"{path}.replaced-{stamp}{side}")
            aside = aside or Path(f"{path}.replaced-{stamp}")
    return aside


def put_back(path: Path, stamp: int) -> bool:
    """Give a store that was written out its name again; False if there is none. What stands there is put aside.

    Raises:
        OSError: it cannot be renamed.
    """
    rescued = Path(f"{path}{RESCUED}")
    if not rescued.exists():
        return False
    aside = clear(path, stamp)
    rescued.rename(path)
    sync_directory(path.parent)
    if aside is not None:
        log.error("store_set_aside", path=str(path), now=str(aside), error="it had replaced the one in use")
    log.error("store_put_back", path=str(path))
    return True
