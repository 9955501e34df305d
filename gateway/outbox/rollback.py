"""Never gives a number twice to a file that is opened again and has become shorter meanwhile.

Between a failure and the next opening a person may put an older copy of the file back, and a disk that lies about its
flushes may have lost the end of it. Its counters then name numbers that this process has given before: rows with them
may be on their way or with the bridge, which would take new rows for duplicates of those, and its acknowledgement of
the old ones would delete the new.
"""

from collections.abc import Callable, Mapping

import structlog

from gateway.outbox.database import Database
from gateway.outbox.evictions import row_of
from gateway.outbox.quota import Held
from gateway.wire.messages import CLASSES, Notice, RecordClass
from gateway.wire.times import rfc3339

log = structlog.get_logger()


def keep_ahead(
    database: Database, given: Mapping[RecordClass, Held], wall_ns: Callable[[], int], now_ms: int
) -> tuple[Notice, ...]:
    """Leave out what a store of the same epoch has given before; return the notice it gets, if it has lost any rows.

    `given` are the books of that store as of its last commit: everything in them was durable, and told to somebody.

    Raises:
        OutboxError: the disk is full or fails; the store must not be used then.
    """
    held = database.committed
    lost = {
        name: (held[name].highest + 1, given[name].highest)
        for name in CLASSES
        if name in given and held[name].highest < given[name].highest
    }
    if not lost:
        return ()
    ranges = ", ".join(f"{name} {first} to {last}" for name, (first, last) in lost.items())
    notice = Notice(
        code="store_rolled_back",
        severity="error",
        detail=f"the store was opened again and is older than it was: an older copy of it was put back, or its "
        f"disk lost writes; it has not {ranges}, which may have been delivered; these numbers are left out",
        at=rfc3339(wall_ns()),
    )
    with database.transaction():
        for name, (_, last) in lost.items():
            database.advance(name, last)
        database.insert("critical", [row_of("notice", notice, wall_ns())], now_ms)
    log.error("store_rolled_back", file=str(database.file), lost=ranges)
    return (notice,)
