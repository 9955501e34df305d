"""Files that are whole or not there, also after a power cut."""

import contextlib
import fcntl
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from gateway.owner import words_for_a_stranger
from gateway.vault.errors import VaultError


def write_durably(path: Path, content: bytes, mode: int = 0o600) -> None:
    """Replace a file: write beside it, sync, rename, sync the directory. Whoever reads sees the old or the new one.

    Raises:
        VaultError: the disk refuses; the old file is as it was.
    """
    part = path.with_name(f".{path.name}.part")
    try:
        fd = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, mode)
        with open(fd, "wb") as file:  # noqa: PTH123 - by descriptor, so that the mode is right from the first byte
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
        sync_directory(path.parent)
    except OSError as error:
        raise VaultError(f"{path} cannot be written: {error.strerror or error}") from error


def sync_directory(directory: Path) -> None:
    """Make the names in a directory durable."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def put_in_place(partial: Path, directory: Path) -> None:
    """Give a finished directory its name, durably; its files must have been synced."""
    sync_directory(partial)
    partial.rename(directory)
    sync_directory(directory.parent)


def remove_directory(directory: Path) -> None:
    """Remove a directory that nothing refers to any more; what cannot be removed now goes the next time."""
    shutil.rmtree(directory, ignore_errors=True)


@contextlib.contextmanager
def locked(file: Path, *, exclusive: bool) -> Iterator[None]:
    """Keep other programs from changing the vault, or, exclusive, from reading it either.

    Raises:
        VaultError: the directory cannot be used.
    """
    try:
        file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        fd = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        if isinstance(error, PermissionError) and (words := words_for_a_stranger(file)):
            raise VaultError(words) from error
        raise VaultError(
            f"{file.parent} cannot be used: {error.strerror or error}; the gateway's user must be able to write there"
        ) from error
    try:
        fcntl.flock(fd, fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH)
        yield
    finally:
        os.close(fd)
