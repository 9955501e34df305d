"""Opens the store, whatever state the file is in: used, absent, damaged, or without its WAL.

A store that is damaged never stops the gateway and is never replaced by memory: it is put aside, a new file with a new
epoch begins, and a notice in it says so. Start-up reads a few pages, however long the backlog is.
"""

import fcntl
import os
import resource
import secrets
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Final

import msgspec
import structlog

from gateway.errors import OutboxError
from gateway.outbox.ages import AgeClock, Clocks, SavedAge
from gateway.outbox.ballast import Ballast
from gateway.outbox.damage import (
    SIDES,
    check_contents,
    check_header,
    check_tables,
    side,
    sync_directory,
    wal_is_lost,
)
from gateway.outbox.database import CONNECTION_PRAGMAS, Database, Row
from gateway.outbox.evictions import row_of
from gateway.outbox.faults import (
    DamagedStoreError,
    StoreFaultError,
    StoreFullError,
    lacks_index,
    translated,
    unreadable,
)
from gateway.outbox.logblocks import LogBlocks, is_blank
from gateway.outbox.quarantine import (
    Damage,
    cross_out,
    notice_of,
    quarantine,
    quarantined_name,
    write_down,
    written_down,
)
from gateway.outbox.rescue import put_back
from gateway.outbox.reserve import Reserve
from gateway.outbox.rights import regain
from gateway.outbox.schema import (
    APPLICATION_ID,
    MIGRATIONS,
    PAGE_BYTES,
    READABLE_FROM,
    READABLE_KEY,
    insert_statement,
    migrate,
)
from gateway.outbox.truth import forget
from gateway.wire.messages import CLASSES, Notice
from gateway.wire.times import rfc3339

log = structlog.get_logger()

ALONE: Final = MappingProxyType({"vfs": "unix-excl"})
"""The options of a connection to a store that no other program may open."""

_TOLD: Final = "told"
"""In `meta`: when the store was put aside that lay in the place of this one, and of which there is a notice here."""

LOST_WAL_JUMP: Final = 1 << 24
"""Numbers left out when a WAL was lost: more than any WAL holds rows, so that none of them is given twice."""


@dataclass(frozen=True, slots=True)
class Opened:
    """An open store and what there is to say about its opening."""

    database: Database
    age: AgeClock
    notices: tuple[Notice, ...]  # they are in it already, in class `critical`
    quarantined: Path | None
    unclean: bool  # not closed properly: worth a deep check


def prepare_directory(file: Path) -> None:
    """Make the directory of the store, for its owner alone.

    Raises:
        OutboxError: it cannot be made or written to.
    """
    try:
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise OutboxError(
            f"{file.parent}: cannot be made: {error.strerror}: set outbox.file or "
            "gateway.state_directory to a place the gateway may write to"
        ) from error
    probe = side(file, f".{os.getpid()}.probe")
    try:
        probe.touch(mode=0o600)
        probe.unlink()
    except OSError as error:
        if error.errno == 28:  # ENOSPC: the ballast may still help
            return
        raise OutboxError(
            f"{file.parent}: not writable: {error.strerror}: give the directory to the user the "
            "gateway runs as, or mount its file system for writing"
        ) from error


def lock_store(file: Path) -> int:
    """Keep other processes from opening the same store; the lock lives as long as the descriptor.

    Raises:
        OutboxError: another outbox has it, or the lock file cannot be made.
    """
    name = side(file, ".lock")
    try:
        descriptor = os.open(name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise OutboxError(f"{name}: {error.strerror}: make {file.parent} writable for the gateway's user") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        raise OutboxError(
            f"{file}: in use by another gateway: stop that one first, or give this one its own file"
        ) from error
    return descriptor


def open_store(file: Path, page_limit: int, clocks: Clocks, ballast: Ballast) -> Opened:
    """Open the store, making or replacing it where needed.

    Raises:
        OutboxError: neither the old store nor a new one can be opened.
    """
    put_back(file, clocks.wall_ns)
    regain(file)
    if not file.exists():
        untold = written_down(file)
        return (
            _create(file, page_limit, clocks, ballast)
            if untold is None
            else _begin_anew(file, untold, page_limit, clocks, ballast)
        )
    try:
        opened = _open_with_ballast(file, page_limit, clocks, ballast)
    except DamagedStoreError as error:
        reason = str(error)
    else:
        untold = written_down(file)
        if untold is not None and untold.usurper:
            return _tell_of_usurper(opened, untold, clocks)
        cross_out(file)
        return opened
    return replace_store(file, reason, page_limit, clocks, ballast)


def replace_store(file: Path, reason: str, page_limit: int, clocks: Clocks, ballast: Ballast) -> Opened:
    """Put a damaged store aside and begin a new one, with a notice of that in it.

    Raises:
        OutboxError: the old one cannot be renamed, or no new one be made; the next opening goes on from there.
    """
    before = written_down(file)
    if before is not None and before.usurper:  # its notice would have come into this very store
        reason = f"{before.reason}, which is kept too; then {reason}"
    damage = Damage(reason=reason, at=rfc3339(clocks.wall_ns()))
    write_down(file, damage)
    return _begin_anew(file, damage, page_limit, clocks, ballast)


def begin_anew(file: Path, page_limit: int, clocks: Clocks, ballast: Ballast) -> Opened:
    """Put an empty store aside and begin a new one, of which nothing need be told.

    Raises:
        OutboxError: the old one cannot be renamed, or no new one be made; the next opening makes one.
    """
    quarantine(file)
    return _create(file, page_limit, clocks, ballast)


def _begin_anew(file: Path, damage: Damage, page_limit: int, clocks: Clocks, ballast: Ballast) -> Opened:
    begins = file.exists()  # else it goes on, perhaps again and again for want of room
    aside = quarantine(file)
    if begins:
        log.error("store_quarantined", file=str(file), aside=str(aside), reason=damage.reason)
    opened = _create(file, page_limit, clocks, ballast, notice_of(damage, aside))
    cross_out(file)
    return replace(opened, quarantined=aside)


def _tell_of_usurper(opened: Opened, damage: Damage, clocks: Clocks) -> Opened:
    """Leave the notice that a store was put aside which lay in the place of this one.

    Where there is no room for it now, the next opening leaves it; killed in between, it is not left twice.
    """
    database = opened.database
    if database.recall(_TOLD) != damage.at:
        notice = notice_of(damage, quarantined_name(database.file))
        try:
            with database.transaction():
                row = row_of("notice", notice, clocks.wall_ns())
                database.insert("critical", [row], opened.age.now_ms())
                database.remember(_TOLD, damage.at)
        except StoreFullError as error:
            log.warning("quarantine_not_told_yet", file=str(database.file), error=str(error))
            return opened
        except OutboxError:
            database.let_go()
            raise
        opened = replace(opened, notices=(*opened.notices, notice), quarantined=quarantined_name(database.file))
    cross_out(database.file)
    return opened


def _open_with_ballast(file: Path, page_limit: int, clocks: Clocks, ballast: Ballast) -> Opened:
    """Open an existing store; on a full disk the ballast is given up for the few pages this takes.

    What SQLite cannot be given is an index of the log that others may read: it cuts that file short at every first
    opening. Where there is no room for it the index is in memory, and the store is this process's alone meanwhile.
    """
    connect = _connect
    while True:
        try:
            return _open(file, page_limit, clocks, ballast, connect)
        except (StoreFullError, StoreFaultError) as error:
            if unreadable(error):
                raise DamagedStoreError(str(error)) from error
            if not ballast.give():
                if connect is _connect_alone or not lacks_index(error):
                    raise
                connect = _connect_alone
                log.warning("store_opened_alone", file=str(file), reason=str(error))


def _open(
    file: Path, page_limit: int, clocks: Clocks, ballast: Ballast, connect: Callable[[Path], sqlite3.Connection]
) -> Opened:
    check_header(file)
    lost_wal = wal_is_lost(file)
    wal = side(file, "-wal")
    in_log = wal.exists() and not is_blank(wal)
    forget(file)
    log_blocks = LogBlocks(file, ballast)
    log_blocks.claim()
    reserve = Reserve(file)
    try:
        db = connect(file)
    except OutboxError:
        reserve.close()
        raise
    try:
        with translated(file):
            for pragma in CONNECTION_PRAGMAS:
                db.execute(pragma)
        check_contents(db, file)
        with translated(file):
            migrate(db)
            (version,) = db.execute("PRAGMA user_version").fetchone()
            (mode,) = db.execute("PRAGMA journal_mode = WAL").fetchone()
            if mode != "wal":
                raise OutboxError(f"{file}: its file system does not allow a write-ahead log: move it to a local disk")
            db.execute(f"PRAGMA max_page_count = {page_limit}")
            meta: dict[str, str] = dict(db.execute("SELECT name, value FROM meta"))
        check_tables(db, file)
        database = Database(
            db,
            reserve,
            log_blocks,
            file,
            epoch=meta["epoch"],
            page_limit=page_limit,
            options=ALONE if connect is _connect_alone else {},
        )
        if version > len(MIGRATIONS):
            log.warning("store_is_newer", file=str(file), version=version, known=len(MIGRATIONS))
        age = AgeClock(_saved_age(meta), clocks)
        in_use = meta.get("in_use") == "1"
        rolled_back = lost_wal and in_use
        try:
            notices = _mark_in_use(database, age, clocks, rolled_back=rolled_back)
        except StoreFullError:
            database.checkpoint("RESTART")  # then the log is written from its beginning, in the blocks it has
            notices = _mark_in_use(database, age, clocks, rolled_back=rolled_back)
    except (OutboxError, sqlite3.Error):
        db.close()
        reserve.close()
        raise
    return Opened(database, age, notices, None, unclean=in_use or in_log)


def _mark_in_use(database: Database, age: AgeClock, clocks: Clocks, *, rolled_back: bool) -> tuple[Notice, ...]:
    """Write into the file itself, past the WAL, that a WAL belongs to it from now on."""
    notices: tuple[Notice, ...] = ()
    with database.transaction():
        if rolled_back:
            for name in CLASSES:
                database.advance(name, database.held[name].highest + LOST_WAL_JUMP)
            notices = (
                Notice(
                    code="store_rolled_back",
                    severity="error",
                    detail=f"the write-ahead log was lost; {LOST_WAL_JUMP} numbers of every class are left out",
                    at=rfc3339(clocks.wall_ns()),
                ),
            )
            database.insert("critical", [row_of("notice", each, clocks.wall_ns()) for each in notices], age.now_ms())
        database.remember("in_use", "1")
        if database.recall(READABLE_KEY) is None:  # made before stores said it
            database.remember(READABLE_KEY, str(READABLE_FROM))
        remember_age(database, age)
    if rolled_back:
        log.error("store_rolled_back", file=str(database.file), skipped=LOST_WAL_JUMP)
    database.checkpoint()
    return notices


def remember_age(database: Database, age: AgeClock) -> None:
    """Write the store's clock down, inside a transaction."""
    database.remember("age", msgspec.json.encode(age.save()).decode())


def close_store(database: Database, age: AgeClock) -> None:
    """Write everything into the file and leave nothing in the WAL."""
    with database.transaction():
        database.remember("in_use", "0")
        remember_age(database, age)
    database.close()


def _create(file: Path, page_limit: int, clocks: Clocks, ballast: Ballast, notice: Notice | None = None) -> Opened:
    """Make a new store under another name and rename it, so that a half-made one is never taken for damage.

    A notice is its first record: there is no moment at which the store is there and the notice is not.
    """
    row = None if notice is None else row_of("notice", notice, clocks.wall_ns())
    while True:
        try:
            _make(file, row)
            break
        except (StoreFullError, StoreFaultError):
            if not ballast.give():
                raise
    opened = _open_with_ballast(file, page_limit, clocks, ballast)
    log.info("store_created", file=str(file), epoch=opened.database.epoch)
    return replace(opened, unclean=False, notices=() if notice is None else (notice,))


def _make(file: Path, first: Row | None) -> None:
    fresh = side(file, ".new")
    try:
        for name in (fresh, *(side(fresh, end) for end in SIDES), *(side(file, end) for end in SIDES)):
            name.unlink(missing_ok=True)
        os.close(os.open(fresh, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        with translated(fresh):
            db = _connect_alone(fresh)
            try:
                db.execute(f"PRAGMA page_size = {PAGE_BYTES}")
                db.execute("PRAGMA journal_mode = WAL")
                db.execute("PRAGMA synchronous = FULL")
                db.execute(f"PRAGMA application_id = {APPLICATION_ID}")
                migrate(db)
                db.execute("INSERT INTO meta VALUES ('epoch', ?)", (secrets.token_hex(8),))
                if first is not None:
                    db.execute(insert_statement("critical", 1), (1, first[0], 0, *first[1:]))
                    db.execute("UPDATE totals SET rows = 1, bytes = ? WHERE class = 'critical'", (first[0],))
                db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            finally:
                db.close()
        fresh.rename(file)
        sync_directory(file.parent)
    except OSError as error:
        raise OutboxError(f"{file}: cannot be made: {error.strerror}: make {file.parent} writable") from error


def _connect(file: Path) -> sqlite3.Connection:
    with translated(file):
        db = sqlite3.connect(file, isolation_level=None, check_same_thread=False, timeout=1.0, cached_statements=256)
    db.row_factory = None
    return db


def _connect_alone(file: Path) -> sqlite3.Connection:
    """Connect with the index of the log in memory, and no other program beside; see https://www.sqlite.org/vfs.html."""
    with translated(file):
        words = "&".join(f"{key}={value}" for key, value in ALONE.items())
        db = sqlite3.connect(
            f"{file.absolute().as_uri()}?{words}",
            uri=True,
            isolation_level=None,
            check_same_thread=False,
            timeout=1.0,
            cached_statements=256,
        )
    db.row_factory = None
    return db


def _saved_age(meta: dict[str, str]) -> SavedAge | None:
    try:
        return msgspec.json.decode(meta["age"], type=SavedAge)
    except (KeyError, msgspec.DecodeError):
        return None


def process_page_limit() -> int:
    """Return how many pages RLIMIT_FSIZE allows: beyond it SQLite sees an I/O error, not a full disk."""
    soft, _ = resource.getrlimit(resource.RLIMIT_FSIZE)
    return 0x7FFFFFFE if soft == resource.RLIM_INFINITY else max(16, soft // PAGE_BYTES - 1)
