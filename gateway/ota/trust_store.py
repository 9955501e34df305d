"""Where verified metadata are kept: plain files, each whole or not there, also after a power cut."""

import contextlib
import fcntl
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from gateway.ota.errors import BusyError, StorageError
from gateway.ota.trust import MAX_BYTES, Role
from gateway.owner import words_for_a_stranger

LOCK_SECONDS: Final = 30.0
"""So long another process that looks at the repository is waited for."""
_LOCK_STEP_SECONDS: Final = 0.05


def make_directory(directory: Path) -> None:
    """Make a directory for ourselves alone.

    Raises:
        StorageError: it cannot be made.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise storage_error(directory, error) from error


def write_durably(file: Path, content: bytes) -> None:
    """Replace a file: written beside it, synced, renamed, the directory synced.

    Raises:
        StorageError: the disk refuses; the old file is as it was.
    """
    replace_whole(file, content)
    try:
        sync_directory(file.parent)
    except OSError as error:
        raise storage_error(file, error) from error


def replace_whole(file: Path, content: bytes) -> None:
    """Replace a file: written beside it, synced, renamed.

    Until somebody syncs the directory a power cut may leave the old file, whole, under the name; never neither.

    Raises:
        StorageError: the disk refuses; the old file is as it was.
    """
    part = file.with_name(f".{file.name}.part")
    try:
        descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        with open(descriptor, "wb") as out:  # noqa: PTH123 - by descriptor, so that no link is followed
            out.write(content)
            out.flush()
            os.fsync(descriptor)
        part.replace(file)
    except OSError as error:
        raise storage_error(file, error) from error


def sync_directory(directory: Path) -> None:
    """Make the names in a directory durable. Raises OSError."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def storage_error(file: Path, error: OSError) -> StorageError:
    """Say which file, why, and what helps."""
    if isinstance(error, PermissionError) and (words := words_for_a_stranger(file)):
        return StorageError(words)
    return StorageError(
        f"{file}: {error.strerror or error}; free space on, or repair, the file system of the gateway's state directory"
    )


class MetadataFiles:
    """The cache of one repository: `<role>.json` as last verified, and `roots/<version>.root.json`.

    The floor lies elsewhere (`gateway.ota.floor`), so that removing the cache, which is always safe, does not remove
    it.
    """

    def __init__(self, directory: Path, floors_file: Path) -> None:
        """Name the places; nothing is made before `locked`."""
        self.directory = directory
        self._roots = directory / "roots"
        self.floors_file = floors_file
        self._unsettled = False  # a name in `directory` was changed and not synced

    @contextlib.contextmanager
    def locked(self, pause: Callable[[float], object] = time.sleep) -> Iterator[None]:
        """Keep other processes from updating the cache.

        Raises:
            BusyError: another one does so for longer than `LOCK_SECONDS`.
            StorageError: the directory cannot be used.
        """
        make_directory(self._roots)
        make_directory(self.floors_file.parent)
        file = self.floors_file.with_name(f"{self.floors_file.name}.lock")
        try:
            descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise storage_error(file, error) from error
        try:
            for _ in range(int(LOCK_SECONDS / _LOCK_STEP_SECONDS)):
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    pause(_LOCK_STEP_SECONDS)
            else:
                raise BusyError(f"{file}: another process updates the metadata; try again when it is done")
            yield
        finally:
            os.close(descriptor)

    # ---- metadata ----------------------------------------------------------------------------------------

    def read(self, role: Role) -> bytes | None:
        """Return what was kept of a role; None if nothing readable is there, which a refresh brings again."""
        return self._read(self.directory / f"{role}.json", MAX_BYTES[role])

    def read_root(self, version: int) -> bytes | None:
        """Return a root of the chain."""
        return self._read(self._roots / f"{version}.root.json", MAX_BYTES["root"])

    def write(self, role: Role, content: bytes) -> None:
        """Keep verified metadata, durably after `settle`; nothing is written when it is there already.

        Raises:
            StorageError: the disk refuses.
        """
        if self.read(role) != content:
            self._unsettled = True
            replace_whole(self.directory / f"{role}.json", content)

    def settle(self) -> None:
        """Make durable what was written, the names of all roles with one sync. Raises StorageError."""
        if self._unsettled:
            try:
                sync_directory(self.directory)
            except OSError as error:
                raise storage_error(self.directory, error) from error
            self._unsettled = False

    def write_root(self, version: int, content: bytes) -> None:
        """Keep a verified root of the chain. Raises StorageError."""
        if self.read_root(version) != content:
            write_durably(self._roots / f"{version}.root.json", content)

    def _read(self, file: Path, limit: int) -> bytes | None:
        try:
            descriptor = os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
            with open(descriptor, "rb") as source:  # noqa: PTH123 - by descriptor, so that no link is followed
                content = source.read(limit + 1)
        except OSError:
            return None
        return content if len(content) <= limit else None
