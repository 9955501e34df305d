"""Where the repository lies: a directory, or whatever fsspec knows by its URL, such as `s3://bucket/prefix`.

A file is there whole or not at all. In a directory that takes a rename and syncs; object stores promise it themselves.
"""

import errno
from pathlib import Path
from typing import Any

from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem

from cloud_bridge.errors import ConfigError
from cloud_bridge.identity.errors import IdentityError
from cloud_bridge.identity.files import PUBLIC, copy_file, write_file
from cloud_bridge.registry import directories, objectstores
from cloud_bridge.registry.directories import make_directory
from cloud_bridge.registry.errors import NotFoundError, RegistryError, StorageError


class Storage:
    """Files under one URL, by paths with `/` that do not begin with one. Safe to use from any thread."""

    def __init__(self, url: str) -> None:
        """Take the place; nothing is read or made yet.

        Raises:
            ConfigError: fsspec does not know this kind of place, or a package for it is not installed.
        """
        self.url = url
        try:
            fs, root = url_to_fs(url, **objectstores.options_for(url)) if "://" in url else (LocalFileSystem(), url)
            self._errors = objectstores.errors_of(url)
        except ImportError as error:
            raise ConfigError(f"registry.url {url!r}: {error}: {objectstores.package_for(url)}") from error
        except ValueError as error:
            raise ConfigError(f"registry.url {url!r}: {error}") from error
        self._write_errors: tuple[type[Exception], ...] = (*self._errors, IdentityError, RegistryError)
        self._fs: Any = fs
        self._root = root.rstrip("/")
        self._is_local = isinstance(fs, LocalFileSystem)

    def read(self, path: str, offset: int = 0, length: int | None = None) -> bytes:
        """Return a part of a file; shorter at its end.

        Raises:
            NotFoundError: there is no such file.
            StorageError: it cannot be read now.
        """
        end = None if length is None else offset + length
        if length == 0:
            self.size(path)
            return b""
        try:
            content = self._fs.cat_file(self._at(path), start=offset or None, end=end)
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
            raise NotFoundError(f"{path}: not in the repository") from error
        except self._errors as error:
            if not self._is_local and getattr(error, "errno", None) == errno.EINVAL and offset >= self.size(path):
                return b""  # an object store calls a range beyond the end an error (RFC 9110 §15.5.17)
            raise self._failed(path, "read", error) from error
        return bytes(content)

    def size(self, path: str) -> int:
        """Return how many bytes a file has.

        Raises:
            NotFoundError: there is no such file.
            StorageError: it cannot be asked now.
        """
        try:
            found = self._fs.info(self._at(path))
        except (FileNotFoundError, NotADirectoryError) as error:
            raise NotFoundError(f"{path}: not in the repository") from error
        except self._errors as error:
            raise self._failed(path, "read", error) from error
        if found["type"] != "file":
            raise NotFoundError(f"{path}: not in the repository")
        return int(found["size"])

    def write(self, path: str, content: bytes) -> None:
        """Replace a file; whoever reads sees the old one or the new one, and so does a power cut.

        Raises:
            StorageError: it cannot be written now.
        """
        place = self._at(path)
        try:
            if self._is_local:
                make_directory(Path(place).parent, directories.PUBLIC)
                write_file(Path(place), content, PUBLIC)
            else:
                self._fs.pipe_file(place, content)
        except self._write_errors as error:
            raise self._failed(path, "written", error) from error

    def write_from(self, path: str, file: Path) -> None:
        """Replace a file by a copy of one on this host, which need not fit into memory; as `write`.

        Raises:
            StorageError: it cannot be written now, or the file cannot be read.
        """
        place = self._at(path)
        try:
            if self._is_local:
                make_directory(Path(place).parent, directories.PUBLIC)
                copy_file(file, Path(place), PUBLIC)
            else:
                self._fs.put_file(str(file), place)
        except self._write_errors as error:
            raise self._failed(path, "written", error) from error

    def files(self, directory: str) -> list[str]:
        """Return the paths of the files in a directory, by name; none if it is not there.

        Raises:
            StorageError: it cannot be listed now.
        """
        try:
            found = self._fs.ls(self._at(directory), detail=True)
        except (FileNotFoundError, NotADirectoryError):
            return []
        except self._errors as error:
            raise self._failed(directory, "listed", error) from error
        names = [str(one["name"]).rpartition("/")[2] for one in found if one["type"] == "file"]
        return [f"{directory}/{name}" for name in sorted(names)]

    def remove(self, path: str) -> None:
        """Remove a file, if it is there.

        Raises:
            StorageError: it cannot be removed now.
        """
        try:
            self._fs.rm_file(self._at(path))
        except FileNotFoundError:
            return
        except self._errors as error:
            raise self._failed(path, "removed", error) from error

    def _failed(self, path: str, what: str, error: Exception) -> StorageError:
        """Say which file, why, and what helps."""
        return StorageError(f"{self.url}: {path} cannot be {what}: {error}{objectstores.remedy_for(self.url, error)}")

    def _at(self, path: str) -> str:
        return f"{self._root}/{path}"
