"""Directories that the bridge can use, whoever made them: as root, they are given to the owner of the one above."""

from pathlib import Path

from cloud_bridge.identity.files import own_like_directory
from cloud_bridge.registry.errors import RegistryError

PRIVATE = 0o700
PUBLIC = 0o755


def make_directory(directory: Path, mode: int) -> None:
    """Make a directory and those above it that are missing.

    Raises:
        RegistryError: it cannot be made.
    """
    missing = [each for each in (directory, *directory.parents) if not each.exists()]
    for each in reversed(missing):
        try:
            each.mkdir(mode=mode, exist_ok=True)
            own_like_directory(each)
        except OSError as error:
            raise RegistryError(f"{each}: {error.strerror or error}; the bridge must be able to write here") from error
