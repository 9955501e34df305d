"""Tells what never was an outbox from an outbox that was damaged.

A damaged store is put aside and a new one begins in its place. For a device node, a certificate or the database of
another program, to which a slip in the configuration leads, that would be the damage.
"""

import os
import stat
import struct
from pathlib import Path
from typing import Final

from gateway.errors import ConfigError
from gateway.outbox.damage import HEADER, side
from gateway.outbox.schema import APPLICATION_ID

OWN_SIDES: Final = (".lock", ".ballast", ".untold", ".rescued")
"""What only an outbox has beside it; the first is there after any start. Every SQLite database may have a `-wal`."""

_HEAD_BYTES: Final = 100
_APPLICATION_ID_AT: Final = 68  # https://www.sqlite.org/fileformat2.html#application_id


def refuse_stranger(file: Path) -> None:
    """Look at what is there before anything is made, renamed or locked. Waits for nothing, a pipe's writer included.

    Raises:
        ConfigError: it never was an outbox.
    """
    found = stranger_at(file)
    if found is not None:
        what, remedy = found
        raise ConfigError(f"outbox.file {file}: {what}: {remedy}")


def stranger_at(file: Path) -> tuple[str, str] | None:
    """Return what is there that never was an outbox, and what to do about it; None: nothing, an outbox, or in doubt.

    What an outbox has left traces beside is an outbox, however little is left of it. So is a file that is empty or
    begins with zeros, as a power cut leaves them: there is nothing in it that could be somebody's.
    """
    try:
        mode = file.lstat().st_mode
    except OSError:
        return None
    if stat.S_ISLNK(mode):
        return "a symbolic link, beside which a store has no log", f"write where it leads to, {os.path.realpath(file)}"
    if stat.S_ISREG(mode):
        what = _strange_content(file)
    elif stat.S_ISDIR(mode):
        what = None if _has(file, OWN_SIDES) else "a directory"
    else:
        what = f"a {_KINDS.get(stat.S_IFMT(mode), 'special file')}"
    return None if what is None else (what, "name a file that is the outbox's alone, or is not there yet")


_KINDS: Final = {
    stat.S_IFCHR: "character device",
    stat.S_IFBLK: "block device",
    stat.S_IFIFO: "named pipe",
    stat.S_IFSOCK: "socket",
}


def _strange_content(file: Path) -> str | None:
    if _has(file, OWN_SIDES):
        return None
    try:
        with file.open("rb") as stream:
            head = stream.read(_HEAD_BYTES)
    except PermissionError:
        return "a file that this user may not read, and no outbox has left a lock beside it"
    except OSError:  # sectors that cannot be read
        return None
    if not head.strip(b"\0"):
        return None
    if not head.startswith(HEADER):
        return None if _has(file, ("-wal",)) else "a file with other contents, which never was an outbox"
    if len(head) < _HEAD_BYTES:
        return None
    (application,) = struct.unpack_from(">I", head, _APPLICATION_ID_AT)
    if application == APPLICATION_ID:
        return None
    return f"a database of another program (application id {application:#x})"


def _has(file: Path, ends: tuple[str, ...]) -> bool:
    return any(os.path.lexists(side(file, end)) for end in ends)
