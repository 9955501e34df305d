"""Counts what a run of the rig produced and what arrived, each side from its own database."""

import sqlite3
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Tally:
    """What the two stores say about one outbox file."""

    enqueued: int  # sequence numbers that the outbox gave out
    waiting: int  # rows still in it
    committed: int  # rows of that epoch in the bridge's store
    evicted: int  # sequence numbers that the bridge knows as given up on purpose
    duplicates: int  # keys or event revisions that stand in the bridge's store more than once
    anomalies: int  # events that began, as the bridge has them

    @property
    def lost(self) -> int:
        """What was enqueued and is neither committed nor waiting nor an explicit eviction."""
        return self.enqueued - self.waiting - self.evicted - self.committed


def enqueued(outbox: Path) -> tuple[str, int, int]:
    """Return the epoch of an outbox file, how many sequence numbers it gave out, and how many rows wait."""
    with closing(sqlite3.connect(f"file:{outbox}?mode=ro", uri=True)) as db:
        (epoch,) = db.execute("SELECT value FROM meta WHERE name = 'epoch'").fetchone()
        tables = [name for (name,) in db.execute("SELECT name FROM sqlite_sequence WHERE name LIKE 'records_%'")]
        given = sum(seq for (seq,) in db.execute("SELECT seq FROM sqlite_sequence WHERE name LIKE 'records_%'"))
        waiting = sum(db.execute(f"SELECT count(*) FROM {table}").fetchone()[0] for table in tables)
    return epoch, given, waiting
