"""What can still be read of a store that was put aside: its name, and which numbers went with it."""

import re
import sqlite3
from collections.abc import Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from gateway.outbox.schema import TABLES
from gateway.wire.messages import RecordClass

_EPOCH: Final = re.compile(r"[0-9a-f]{16}")
_BUSY_SECONDS: Final = 0.5


@dataclass(frozen=True, slots=True)
class Remains:
    """`missing` holds the first and the last number of each class that were not acknowledged."""

    epoch: str | None = None
    missing: dict[RecordClass, tuple[int, int]] = field(default_factory=dict)


def remains_of(aside: Path, *, log: bool = True) -> Remains:
    """Read a few pages of a damaged store; what cannot be read is left out, and nothing is ever raised for it.

    Without its `log` nothing is read but the file itself.
    """
    with suppress(sqlite3.Error):
        uri = f"{aside.absolute().as_uri()}?mode=ro{'' if log else '&immutable=1'}"
        with closing(sqlite3.connect(uri, uri=True, timeout=_BUSY_SECONDS)) as db:
            epoch = _one(db, "SELECT value FROM meta WHERE name = 'epoch'")
            if not isinstance(epoch, str) or _EPOCH.fullmatch(epoch) is None:
                return Remains()
            found = {name: _ends(db, table) for name, table in TABLES.items()}
            return Remains(epoch, {name: ends for name, ends in found.items() if ends is not None})
    return Remains()


def _ends(db: sqlite3.Connection, table: str) -> tuple[int, int] | None:
    given = _one(db, "SELECT seq FROM sqlite_sequence WHERE name = ?", (table,))
    first = _one(db, f"SELECT seq FROM {table} ORDER BY seq LIMIT 1")  # noqa: S608  # own names only
    last = _one(db, f"SELECT seq FROM {table} ORDER BY seq DESC LIMIT 1")  # noqa: S608
    # Numbers from a damaged page are believed only as far as the counter of the table bears them out.
    if isinstance(first, int) and isinstance(last, int) and isinstance(given, int) and 1 <= first <= last <= given:
        return first, last
    return None


def _one(db: sqlite3.Connection, sql: str, parameters: Sequence[Any] = ()) -> object:
    with suppress(sqlite3.Error, UnicodeDecodeError):
        row = db.execute(sql, parameters).fetchone()
        return None if row is None else row[0]
    return None
