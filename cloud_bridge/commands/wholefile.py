"""Files that are there whole or not at all, and never in the place of what nobody meant to overwrite."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from cloud_bridge.errors import TransferError
from cloud_bridge.identity.files import sync_directory

_DATABASE: Final = b"SQLite format 3\0"


@contextmanager
def whole_file(target: Path) -> Iterator[Path]:
    """Yield where to write what is to be `target`; it gets that name, durably, when the block ends well.

    What has that name already stays as it is until then, or if the block does not end well. A device or a pipe is
    written to directly.

    Raises:
        TransferError: it cannot be written, or is a database: a store that a slip of the name would have ended.
    """
    try:
        if target.exists() and not target.is_file():
            yield target
            return
        _refuse_database(target)
        part = target.with_name(f".{target.name}.part")
        try:
            yield part
            with part.open("rb") as written:
                os.fsync(written.fileno())
            part.replace(target)
            sync_directory(target.parent)
        except BaseException:
            with suppress(OSError):  # it takes room that there may be none of, and is no export
                part.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise TransferError(f"{target}: {error.strerror or error}") from error


def _refuse_database(target: Path) -> None:
    if not target.exists():
        return
    with target.open("rb") as present:
        if present.read(len(_DATABASE)) == _DATABASE:
            raise TransferError(f"{target} is a database, which an export would replace; give another name")
