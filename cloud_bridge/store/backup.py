"""Copies of a SQLite store, and of databases beside it: made while they are written, and put back while not."""

import os
import shutil
import sqlite3
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cloud_bridge.errors import StoreError, TransferError
from cloud_bridge.identity.errors import IdentityError
from cloud_bridge.identity.files import own_like_directory, sync_directory
from cloud_bridge.store import schema
from cloud_bridge.store.displaced import RESCUED, SIDES
from cloud_bridge.store.sqlite import take_lock

_REPLACED: Final = (*SIDES, RESCUED)
"""What goes with a store; one that was written out, and not put back yet, must not come back over the copy."""


@dataclass(frozen=True, slots=True)
class Beside:
    """A copy of a database that belongs to the store's; it has the table `table`."""

    copy: Path
    file: Path
    table: str


def back_up(source: Path, target: Path) -> int:
    """Copy a database as it is at one instant, whoever writes it meanwhile; return the bytes of the copy.

    The copy appears under its name only when it is whole, checked and on the disk.

    Raises:
        TransferError: there is something of that name already, or it cannot be written.
        StoreError: the store cannot be read.
    """
    if target.exists():
        raise TransferError(f"{target} is there already; give another name, or move it away")
    part = Path(f"{target}.part")
    try:
        part.unlink(missing_ok=True)
        part.touch(mode=0o600)  # what people have been filmed at, and who may come in, is for its owner
        _copy(source, part)
        with part.open("rb+") as copied:
            os.fsync(copied.fileno())
        part.rename(target)
        sync_directory(target.parent)
    except OSError as error:
        raise TransferError(f"{target}: {error.strerror or error}") from error
    finally:
        for suffix in SIDES:
            Path(f"{part}{suffix}").unlink(missing_ok=True)
    return target.stat().st_size


def _copy(source: Path, part: Path) -> None:
    try:
        uri = f"{source.absolute().as_uri()}?mode=ro"
        with closing(sqlite3.connect(uri, uri=True)) as store, closing(sqlite3.connect(part)) as copy:
            # All pages in one step: between two, a write from elsewhere would make it begin again and again.
            store.backup(copy, pages=-1)
            copy.execute("PRAGMA journal_mode = DELETE")  # one file, whole by itself
            answer = copy.execute("PRAGMA quick_check(1)").fetchone()
    except sqlite3.Error as error:
        raise StoreError(f"{source}: {error}; nothing was copied") from error
    if answer != ("ok",):
        raise StoreError(f"{source} is damaged ({answer[0]}), and so would be its copy; nothing was kept")


def restore(
    backup: Path, store: Path, wall_ns: Callable[[], int] = time.time_ns, *, beside: Sequence[Beside] = ()
) -> Path | None:
    """Put a copy in the place of a store; return under which name the present one is kept.

    All copies are looked at before anything is changed, and the store's comes last: whoever is killed before that does
    the same once more.

    Args:
        backup: the copy of the store.
        store: where it goes.
        wall_ns: UTC.
        beside: copies of databases that go with it; what is in their place is kept, too.

    Raises:
        StoreInUseError: the bridge has the store; stop it first.
        TransferError: the copy is none of a store, is damaged, or cannot be put there.
    """
    _check_copy(backup)
    for one in beside:
        _check_beside(one)
    lock = take_lock(store)
    try:
        stamp = wall_ns()
        aside = Path(f"{store}.before-restore-{stamp}") if store.exists() else None
        for one in beside:
            _put(one.copy, one.file, stamp)
        _put(backup, store, stamp)
    except (OSError, IdentityError) as error:
        raise TransferError(f"{store}: {getattr(error, 'strerror', '') or error}") from error
    finally:
        os.close(lock)
    return aside


def _put(copy: Path, file: Path, stamp: int) -> None:
    part = Path(f"{file}.restoring")
    file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    part.unlink(missing_ok=True)
    part.touch(mode=0o600)
    shutil.copyfile(copy, part)
    own_like_directory(part)  # put back by root, it must be the bridge's all the same
    with part.open("rb+") as copied:
        os.fsync(copied.fileno())
    for suffix in _REPLACED:
        present = Path(f"{file}{suffix}")
        if present.exists():
            present.rename(f"{file}.before-restore-{stamp}{suffix}")
    part.rename(file)
    sync_directory(file.parent)


def _check_copy(backup: Path) -> None:
    try:
        with closing(sqlite3.connect(f"{backup.absolute().as_uri()}?mode=ro", uri=True)) as copy:
            answer = copy.execute("PRAGMA quick_check(1)").fetchone()
            (version,) = copy.execute("PRAGMA user_version").fetchone()
            tables = {name for (name,) in copy.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")}
    except sqlite3.Error as error:
        raise TransferError(f"{backup}: {error}") from error
    if answer != ("ok",):
        raise TransferError(f"{backup} is damaged: {answer[0]}; take another copy")
    if not {"streams", "stream_records", "stream_spans"} <= tables or not 1 <= version <= len(schema.SQLITE):
        raise TransferError(f"{backup} is no copy of a store that this version knows (layout {version})")


def _check_beside(one: Beside) -> None:
    try:
        with closing(sqlite3.connect(f"{one.copy.absolute().as_uri()}?mode=ro", uri=True)) as copy:
            answer = copy.execute("PRAGMA quick_check(1)").fetchone()
            tables = {name for (name,) in copy.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")}
    except sqlite3.Error as error:
        raise TransferError(f"{one.copy}: {error}") from error
    if answer != ("ok",):
        raise TransferError(f"{one.copy} is damaged: {answer[0]}; take another copy")
    if one.table not in tables:
        raise TransferError(f"{one.copy} is no copy of {one.file.name}: it has no table {one.table}")
