"""The writer's connection: rows in, rows out, and the books kept in the same transaction.

One connection writes and checkpoints; nothing else in the program may do either. SQLite before 3.51.3 can corrupt
a file whose WAL is reset by one connection while another writes.
"""

import itertools
import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Final

import structlog

from gateway.outbox.damage import side
from gateway.outbox.faults import translated
from gateway.outbox.logblocks import LogBlocks
from gateway.outbox.quota import Amount, Held
from gateway.outbox.readers import connect_read_only
from gateway.outbox.rescue import Identity, identity_of, write_out
from gateway.outbox.reserve import Reserve
from gateway.outbox.schema import COLUMNS, PAGE_BYTES, TABLES, insert_statement
from gateway.wire.messages import CLASSES, RecordClass

log = structlog.get_logger()

Row = tuple[int, int, str, bytes, bytes]
"""disk_bytes, recorded_at_ns, kind, body, blob"""

_CHUNKS: Final = (256, 64, 16, 4, 1)
"""Rows in one INSERT: few sizes, so that their statements stay prepared."""

JOURNAL_LIMIT_BYTES: Final = 8 * 1024 * 1024

CONNECTION_PRAGMAS: Final = (
    "PRAGMA synchronous = FULL",  # NORMAL loses committed rows at a power cut
    "PRAGMA mmap_size = 0",
    "PRAGMA temp_store = MEMORY",
    "PRAGMA cache_size = -4096",
    "PRAGMA secure_delete = OFF",  # Debian's default writes zeros over every row that is let go
    f"PRAGMA journal_size_limit = {JOURNAL_LIMIT_BYTES}",
    "PRAGMA wal_autocheckpoint = 0",  # after the receipts are out, not inside a commit: see Database.checkpoint
    "PRAGMA foreign_keys = OFF",
    "PRAGMA trusted_schema = OFF",
)


class Database:
    """Owns the only writing connection. Not thread-safe: the writer thread alone calls it, once it runs.

    All methods raise the errors of `gateway.outbox.faults`.
    """

    def __init__(
        self,
        db: sqlite3.Connection,
        reserve: Reserve,
        log_blocks: LogBlocks,
        file: Path,
        *,
        epoch: str,
        page_limit: int,
        options: Mapping[str, str],
    ) -> None:
        """`options` are those of the connection, for others to the same file."""
        self.file = file
        self.epoch = epoch
        self.log_blocks = log_blocks
        self.options = options
        self._db = db
        self._reserve = reserve
        self._page_limit = page_limit
        self._held = _load_books(db)
        self._committed: Mapping[RecordClass, Held] = MappingProxyType(dict(self._held))
        self._changed: set[RecordClass] = set()
        self.dirty_pages = 0  # estimate of what the next checkpoint has to move
        self._identities = self._present()

    def _present(self) -> tuple[Identity | None, Identity | None]:
        return identity_of(self.file), identity_of(side(self.file, "-wal"))

    def still_in_place(self) -> bool:
        """Tell whether the names still lead to the files that are open here."""
        now = self._present()
        if self._identities[1] is None:  # SQLite makes the log with the first change
            self._identities = (self._identities[0], now[1])
        return now == self._identities

    def write_out(self) -> None:
        """Save everything from a file that has lost its name; see `gateway.outbox.rescue`."""
        write_out(self._db, self.file)

    @property
    def committed(self) -> Mapping[RecordClass, Held]:
        """The books as of the last commit; safe to read from any thread."""
        return self._committed

    @property
    def held(self) -> Mapping[RecordClass, Held]:
        """The books inside the running transaction."""
        return self._held

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Commit durably at the end, or leave rows and books as they were."""
        with translated(self.file):
            self._changed.clear()
            try:
                self._db.execute("BEGIN IMMEDIATE")
                yield
                self._db.executemany(
                    "UPDATE totals SET rows = ?, bytes = ? WHERE class = ?",
                    [(self._held[name].rows, self._held[name].disk_bytes, name) for name in self._changed],
                )
                (pages,) = self._db.execute("PRAGMA page_count").fetchone()
                self._reserve.grow_to(pages)
                self._db.execute("COMMIT")
            except BaseException:
                self._held = dict(self._committed)
                self._roll_back()
                raise
            self.dirty_pages += 2 + len(self._changed)
            self._committed = MappingProxyType(dict(self._held))

    @contextmanager
    def lazily(self) -> Iterator[None]:
        """A transaction that may be lost in a power cut: for deletions, which the next acknowledgement repeats.

        The order of the WAL is kept, so what is committed durably later makes this durable too.
        """
        with translated(self.file):
            self._db.execute("PRAGMA synchronous = NORMAL")
        try:
            with self.transaction():
                yield
        finally:
            with translated(self.file):
                self._db.execute("PRAGMA synchronous = FULL")

    def _roll_back(self) -> None:
        try:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
        except sqlite3.Error:
            # The error that led here is on its way up and says more; SQLite rolls back when the file is opened again.
            return

    def insert(self, record_class: RecordClass, rows: Sequence[Row], stored_ms: int) -> int:
        """Append rows to a class; return the number of the first, the others follow without gaps."""
        held = self._held[record_class]
        first = held.highest + 1
        numbered = [(first + at, row[0], stored_ms, *row[1:]) for at, row in enumerate(rows)]
        at = 0
        for size in _CHUNKS:
            while len(rows) - at >= size:
                chunk = numbered[at : at + size]
                self._db.execute(insert_statement(record_class, size), [*itertools.chain.from_iterable(chunk)])
                at += size
        added = sum(row[0] for row in rows)
        self._set(
            record_class,
            replace(
                held,
                rows=held.rows + len(rows),
                disk_bytes=held.disk_bytes + added,
                highest=first + len(rows) - 1,
                lowest=held.lowest if held.rows else first,
                oldest_ms=held.oldest_ms if held.rows else stored_ms,
            ),
        )
        self.dirty_pages += added // PAGE_BYTES
        return first

    def rewrite(self, record_class: RecordClass, seq: int, row: Row) -> bool:
        """Replace a row under its number; False when it is gone."""
        table = TABLES[record_class]
        found = self._db.execute(f"SELECT disk_bytes FROM {table} WHERE seq = ?", (seq,)).fetchone()  # noqa: S608
        if found is None:
            return False
        self._db.execute(
            f"UPDATE {table} SET disk_bytes = ?, recorded_at_ns = ?, kind = ?, body = ?, blob = ? WHERE seq = ?",  # noqa: S608
            (*row, seq),
        )
        held = self._held[record_class]
        self._set(record_class, replace(held, disk_bytes=held.disk_bytes + row[0] - found[0]))
        return True

    def oldest(self, record_class: RecordClass, enough: Callable[[Amount], bool], limit: int) -> tuple[int, Amount]:
        """Walk from the oldest row until `enough` or `limit` rows; return the last number and how much that is."""
        total = Amount()
        last = 0
        table = TABLES[record_class]
        cursor = self._db.execute(f"SELECT seq, disk_bytes FROM {table} ORDER BY seq LIMIT ?", (limit,))  # noqa: S608
        for seq, disk_bytes in cursor:
            last = seq
            total = Amount(total.rows + 1, total.disk_bytes + disk_bytes)
            if enough(total):
                break
        cursor.close()
        return last, total

    def newest_before(self, record_class: RecordClass, stored_before_ms: int) -> int:
        """Return the highest number of the rows stored before a moment of the store's clock; 0 when there is none.

        `stored_ms` rises with the number, so a binary search needs no index.
        """
        held = self._held[record_class]
        if not held.rows or held.oldest_ms is None or held.oldest_ms >= stored_before_ms:
            return 0
        query = f"SELECT seq, stored_ms FROM {TABLES[record_class]} WHERE seq <= ? ORDER BY seq DESC LIMIT 1"  # noqa: S608
        low, high = held.lowest, held.highest
        while low < high:
            middle = (low + high + 1) // 2
            seq, stored_ms = self._db.execute(query, (middle,)).fetchone()
            if stored_ms < stored_before_ms:
                low = middle
            else:
                high = max(seq - 1, held.lowest)
        return low

    def amount_up_to(self, record_class: RecordClass, last: int) -> Amount:
        """Return how much a removal up to this number would take away."""
        query = f"SELECT count(*), coalesce(sum(disk_bytes), 0) FROM {TABLES[record_class]} WHERE seq <= ?"  # noqa: S608
        return Amount(*self._db.execute(query, (last,)).fetchone())

    def bodies_up_to(self, record_class: RecordClass, last: int, kind: str) -> list[bytes]:
        """Return the bodies of the rows of one kind up to a number, in order."""
        query = f"SELECT body FROM {TABLES[record_class]} WHERE seq <= ? AND kind = ? ORDER BY seq"  # noqa: S608
        return [body for (body,) in self._db.execute(query, (last, kind))]

    def remove(self, record_class: RecordClass, last: int, amount: Amount) -> None:
        """Delete all rows up to a number; `amount` is what `oldest` or `amount_up_to` said about it."""
        table = TABLES[record_class]
        self._db.execute(f"DELETE FROM {table} WHERE seq <= ?", (last,))  # noqa: S608
        found = self._db.execute(f"SELECT seq, stored_ms FROM {table} ORDER BY seq LIMIT 1").fetchone()  # noqa: S608
        held = self._held[record_class]
        lowest, oldest_ms = found or (held.highest + 1, None)
        self._set(
            record_class,
            replace(
                held,
                rows=held.rows - amount.rows,
                disk_bytes=held.disk_bytes - amount.disk_bytes,
                lowest=lowest,
                oldest_ms=oldest_ms,
            ),
        )
        # Every leaf that is emptied goes through the WAL once more. Counted as nothing, a mass acknowledgement gathered
        # 60 MB there, and the checkpoint that followed held up the next critical record for 120 ms on a fast disk.
        self.dirty_pages += 2 + min(amount.disk_bytes // PAGE_BYTES, amount.rows)

    def advance(self, record_class: RecordClass, highest: int) -> None:
        """Never give the numbers up to `highest` again."""
        held = self._held[record_class]
        if highest <= held.highest:
            return
        changed = self._db.execute(
            "UPDATE sqlite_sequence SET seq = ? WHERE name = ?", (highest, TABLES[record_class])
        ).rowcount
        if not changed:
            self._db.execute("INSERT INTO sqlite_sequence (name, seq) VALUES (?, ?)", (TABLES[record_class], highest))
        self._set(record_class, replace(held, highest=highest, lowest=held.lowest if held.rows else highest + 1))

    def renumber(self, record_class: RecordClass, first: int, last: int, above: int) -> int:
        """Give the rows `first`..`last` new numbers above `above`, in order; return how many there were."""
        self.advance(record_class, above)
        held = self._held[record_class]
        table = TABLES[record_class]
        rest = ", ".join(COLUMNS[1:])
        moved: int = self._db.execute(
            f"INSERT INTO {table} ({rest}) SELECT {rest} FROM {table} WHERE seq BETWEEN ? AND ? ORDER BY seq",  # noqa: S608
            (first, last),
        ).rowcount
        self._db.execute(f"DELETE FROM {table} WHERE seq BETWEEN ? AND ?", (first, last))  # noqa: S608
        self._set(record_class, replace(held, highest=held.highest + moved))
        return moved

    def holds(self, record_class: RecordClass, first: int, rows: Sequence[Row]) -> bool:
        """Tell whether exactly these rows are there, under the numbers from `first` on.

        The numbers alone say nothing: they may have been given to other rows since.
        """
        columns = ", ".join(COLUMNS)
        with translated(self.file):
            found = self._db.execute(
                f"SELECT {columns} FROM {TABLES[record_class]} WHERE seq BETWEEN ? AND ? ORDER BY seq",  # noqa: S608
                (first, first + len(rows) - 1),
            )
            there = ((seq, (disk_bytes, *rest)) for seq, disk_bytes, _stored_ms, *rest in found)
            return [*there] == [*enumerate(rows, start=first)]

    def remember(self, name: str, value: str) -> None:
        """Write an entry of the meta table, inside a transaction."""
        self._db.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (name, value))

    def recall(self, name: str) -> str | None:
        """Read an entry of the meta table."""
        with translated(self.file):
            found = self._db.execute("SELECT value FROM meta WHERE name = ?", (name,)).fetchone()
        return found[0] if found is not None else None

    def freeze(self) -> None:
        """Let the file not grow: from now on new rows use the pages of removed ones."""
        with translated(self.file):
            self._db.execute("PRAGMA max_page_count = 1")  # SQLite takes this as: what there is now

    def thaw(self) -> None:
        """Let the file grow to its page quota again."""
        with translated(self.file):
            self._db.execute(f"PRAGMA max_page_count = {self._page_limit}")

    def at_page_limit(self) -> bool:
        """Tell whether the file has all the pages it may have, whatever room the disk has."""
        with translated(self.file):
            (pages,) = self._db.execute("PRAGMA page_count").fetchone()
            (free,) = self._db.execute("PRAGMA freelist_count").fetchone()
        return bool(pages >= self._page_limit and free < 8)

    def checkpoint(self, mode: str = "PASSIVE") -> bool:
        """Move the WAL into the file; True when all of it is there, so that the WAL begins anew."""
        with translated(self.file):
            busy, in_wal, moved = self._db.execute(f"PRAGMA wal_checkpoint({mode})").fetchone()
        self._reserve.was_cut()
        complete = not busy and in_wal == moved
        if complete:
            self.dirty_pages = 0
        return complete

    def close(self) -> None:
        """Move the WAL into the file and close the connection; nothing is left in the WAL, which keeps its blocks."""
        complete = self.checkpoint("RESTART")
        if complete and self.log_blocks.kept:
            self.let_go()
            self.log_blocks.retire()
            return
        with translated(self.file):
            self._db.close()  # as the last one it deletes the WAL; beside another program's, it stays as it is
        self._reserve.close()

    def let_go(self) -> None:
        """Close the connection and write nothing any more: the WAL stays as it is for the next opening."""
        witness: sqlite3.Connection | None = None
        try:
            witness = connect_read_only(self.file, self.options)  # while it is open, the other is not the last one
            witness.execute("SELECT count(*) FROM meta").fetchone()
        except sqlite3.Error as error:
            log.debug("store_let_go_alone", reason=str(error))
        for db in (self._db, witness):
            try:
                if db is not None:
                    db.close()
            except sqlite3.Error as error:
                log.debug("store_closed_badly", reason=str(error))
        self._reserve.close()

    def _set(self, record_class: RecordClass, held: Held) -> None:
        self._held[record_class] = held
        self._changed.add(record_class)


def _load_books(db: sqlite3.Connection) -> dict[RecordClass, Held]:
    """Read the books; the cost does not depend on the number of rows."""
    totals = {name: (rows, size) for name, rows, size in db.execute("SELECT class, rows, bytes FROM totals")}
    sequences = dict(db.execute("SELECT name, seq FROM sqlite_sequence").fetchall())
    books: dict[RecordClass, Held] = {}
    for name in CLASSES:
        table = TABLES[name]
        highest = sequences.get(table, 0)
        found = db.execute(f"SELECT seq, stored_ms FROM {table} ORDER BY seq LIMIT 1").fetchone()  # noqa: S608
        lowest, oldest_ms = found or (highest + 1, None)
        rows, size = totals[name]
        books[name] = Held(rows, size, lowest, highest, oldest_ms)
    return books
