"""Copies of a SQLite store: made while it is written, and put back while it is not."""

import os
import shutil
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Final

from cloud_bridge.errors import StoreError, TransferError
from cloud_bridge.store import schema
from cloud_bridge.store.sqlite import take_lock

_SIDES: Final = ("", "-wal", "-shm")


def back_up(source: Path, target: Path) -> int:
    """Copy a store as it is at one instant, whoever writes it meanwhile; return the bytes of the copy.

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
        _copy(source, part)
        with part.open("rb+") as copied:
            os.fsync(copied.fileno())
        part.rename(target)
        _sync_directory(target.parent)
    except OSError as error:
        raise TransferError(f"{target}: {error.strerror or error}") from error
    finally:
        for suffix in _SIDES:
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


def restore(backup: Path, store: Path, wall_ns: Callable[[], int] = time.time_ns) -> Path | None:
    """Put a copy in the place of a store; return under which name the present one is kept.

    Raises:
        StoreInUseError: the bridge has the store; stop it first.
        TransferError: the copy is none of a store, is damaged, or cannot be put there.
    """
    _check_copy(backup)
    lock = take_lock(store)
    try:
        stamp = wall_ns()
        aside = Path(f"{store}.before-restore-{stamp}") if store.exists() else None
        part = Path(f"{store}.restoring")
        shutil.copyfile(backup, part)
        with part.open("rb+") as copied:
            os.fsync(copied.fileno())
        for suffix in _SIDES:
            file = Path(f"{store}{suffix}")
            if file.exists():
                file.rename(f"{store}.before-restore-{stamp}{suffix}")
        part.rename(store)
        _sync_directory(store.parent)
    except OSError as error:
        raise TransferError(f"{store}: {error.strerror or error}") from error
    finally:
        os.close(lock)
    return aside


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


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
