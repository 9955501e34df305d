"""Files that hold keys and certificates: whole or not at all, and private from the first moment."""

import errno
import os
import secrets
import shutil
import stat
from pathlib import Path
from typing import Final

from cloud_bridge.identity.errors import IdentityError

PRIVATE: Final = 0o600
PUBLIC: Final = 0o644
KEY_BYTES_MAX: Final = 64 * 1024
"""Of a file with one key or certificate: far more than any has."""


def write_file(path: Path, data: bytes, mode: int) -> None:
    """Replace a file; after a power cut it is the old one or the new one.

    Raises:
        IdentityError: it cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        try:
            _write_new(temporary, data, mode)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
        sync_directory(path.parent)
    except OSError as error:
        raise IdentityError(f"{path}: {error.strerror or error}; the bridge must be able to write here") from error


def copy_file(source: Path, path: Path, mode: int) -> None:
    """Replace a file by a copy of another one; after a power cut it is the old one or the new one.

    Raises:
        IdentityError: it cannot be written.
        OSError: the source cannot be read.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with source.open("rb") as original, temporary.open("xb") as copy:
            temporary.chmod(mode)
            shutil.copyfileobj(original, copy, 1 << 20)
            copy.flush()
            os.fsync(copy.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    sync_directory(path.parent)


def create_file(path: Path, data: bytes, mode: int = PRIVATE) -> bool:
    """Make a file unless there is one; return whether it was made. Of two processes one makes it.

    Raises:
        IdentityError: it cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        try:
            _write_new(temporary, data, mode)
            os.link(temporary, path)  # fails when it is there: unlike a rename
        except FileExistsError:
            return False
        finally:
            temporary.unlink(missing_ok=True)
        sync_directory(path.parent)
    except OSError as error:
        raise IdentityError(f"{path}: {error.strerror or error}; the bridge must be able to write here") from error
    return True


def read_plain(path: Path, limit_bytes: int) -> bytes:
    """Read a file that somebody has brought: nothing of one that is too large, or of a pipe, which might never end.

    Raises:
        OSError: it cannot be read, is no plain file, or has more than `limit_bytes`; with words for people.
    """
    # O_NONBLOCK: a pipe that nobody writes to is opened at once, and refused.
    with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
        found = os.fstat(file.fileno())
        if not stat.S_ISREG(found.st_mode):
            raise OSError(errno.EINVAL, "is no plain file")
        if found.st_size > limit_bytes:
            raise OSError(errno.EFBIG, f"has {found.st_size:,} bytes; at most {limit_bytes:,} are taken")
        content = file.read(limit_bytes + 1)
    if len(content) > limit_bytes:
        raise OSError(errno.EFBIG, f"grows while it is read, beyond the {limit_bytes:,} bytes that are taken")
    return content


def read_private(path: Path) -> bytes:
    """Read a file with a key.

    Raises:
        IdentityError: it cannot be read, or others may read it too.
    """
    try:
        mode = path.stat().st_mode & 0o777
        data = read_plain(path, KEY_BYTES_MAX)
    except OSError as error:
        raise IdentityError(f"{path}: {error.strerror or error}") from error
    if mode & 0o077:
        raise IdentityError(f"{path} has mode {mode:04o}: others may read this key; chmod 600 {path}")
    return data


def sync_directory(directory: Path) -> None:
    """Make a rename in a directory durable."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def own_like_directory(path: Path) -> None:
    """Give a file that root has made to the owner of its directory, so that the bridge can use it too."""
    if os.geteuid() == 0:
        directory = path.parent.stat()
        os.chown(path, directory.st_uid, directory.st_gid)


def _write_new(path: Path, data: bytes, mode: int) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, PRIVATE)
    with open(descriptor, "wb") as file:  # noqa: PTH123  # of a descriptor
        file.write(data)
        file.flush()
        os.fchmod(descriptor, mode)
        own_like_directory(path)
        os.fsync(descriptor)
