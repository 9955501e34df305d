"""Where the files of a repository come from. A way is never trusted: who reads from it verifies what it yields."""

import errno
import os
import re
import stat
from collections.abc import Generator
from contextlib import suppress
from pathlib import Path
from typing import Final, Protocol

from gateway.ota.errors import NotThereError, UnreachableError

CHUNK_BYTES: Final = 64 * 1024

_PART: Final = re.compile(r"[A-Za-z0-9_%][A-Za-z0-9_.%+@-]{0,254}")
_MAX_PARTS: Final = 16
_NAME_ANOTHER: Final = "name a directory with `metadata` and `targets` in it"


class Way(Protocol):
    """One source. Its methods block, and belong to one thread at a time."""

    @property
    def counted_elsewhere(self) -> bool:
        """Whether somebody else tells the meter what passes, as the MQTT client does."""
        ...

    def read(self, path: str, offset: int, limit: int) -> Generator[bytes, None, None]:
        """Yield a file of the repository from a byte on, at most about `limit` bytes; less only where it ends.

        No piece is waited for without end: a source that falls silent is `UnreachableError`.

        Raises:
            NotThereError: the source does not have it.
            UnreachableError: it does not answer, or not as it should.
            RangeIgnoredError: it can only give the file from its beginning.
        """
        ...

    def close(self) -> None:
        """Give up what is open; the next `read` begins anew."""
        ...


def parts_of(path: str) -> list[str]:
    """Split the path of a file in a repository.

    Raises:
        NotThereError: it has parts that no file of a repository has, such as `..`.
    """
    parts = path.split("/")
    if len(parts) > _MAX_PARTS or not all(_PART.fullmatch(part) for part in parts):
        raise NotThereError(f"{path[:200]!r} is no path of a repository")
    return parts


class DirectoryWay:
    """A repository in a directory, such as a USB stick: `metadata/` and `targets/` as the bridge publishes them.

    No link is followed on any level, and nothing but a plain file is read: a stick may be made by anybody.
    """

    counted_elsewhere = True  # a directory is no link; nothing is counted

    def __init__(self, directory: Path) -> None:
        """Take the directory that has `metadata` in it. It is opened by every `read`, for a stick may be pulled."""
        self.directory = directory

    def read(self, path: str, offset: int, limit: int) -> Generator[bytes, None, None]:
        """See `Way.read`."""
        descriptor = self._open(path)
        try:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise NotThereError(f"{self.directory}: {path} is no plain file")
            while limit > 0:
                chunk = os.pread(descriptor, min(CHUNK_BYTES, limit), offset)
                if not chunk:
                    return
                offset += len(chunk)
                limit -= len(chunk)
                yield chunk
        except OSError as error:
            raise UnreachableError(f"{self.directory}: {path}: {error.strerror or error}") from error
        finally:
            os.close(descriptor)

    def close(self) -> None:
        """See `Way.close`."""

    def _open(self, path: str) -> int:
        *directories, name = parts_of(path)
        # O_NONBLOCK: opening a pipe that somebody has put there must not wait for its writer.
        kind = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
        try:
            at = os.open(self.directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise UnreachableError(f"{self.directory}: {error.strerror or error}; {_NAME_ANOTHER}") from error
        try:
            for directory in directories:
                following = os.open(directory, kind | os.O_DIRECTORY, dir_fd=at)
                os.close(at)
                at = following
            return os.open(name, kind, dir_fd=at)
        except OSError as error:
            # ELOOP and ENOTDIR: a link, or a file where a directory should be.
            if error.errno in (errno.ENOENT, errno.ELOOP, errno.ENOTDIR, errno.ENXIO):
                remedy = "" if (self.directory / "metadata").is_dir() else f"; {_NAME_ANOTHER}"
                raise NotThereError(f"{self.directory}: {path}: {error.strerror}{remedy}") from error
            raise UnreachableError(f"{self.directory}: {path}: {error.strerror or error}") from error
        finally:
            with suppress(OSError):
                os.close(at)
