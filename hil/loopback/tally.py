"""Counts what a run of the rig produced and what arrived, each side from its own database."""

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from hil.loopback.rig import GATEWAY_ID, Rig


@dataclass(frozen=True, slots=True)
class Tally:
    """What the two stores say about one outbox file."""

    enqueued: int = 0  # sequence numbers that the outbox gave out
    waiting: int = 0  # rows still in it
    committed: int = 0  # rows of that epoch in the bridge's store
    evicted: int = 0  # sequence numbers that the bridge knows as given up on purpose
    duplicates: int = 0  # keys, or revisions of an event, that stand in the bridge's store more than once
    anomalies: int = 0  # events of a rule that began, as the bridge has them

    @property
    def lost(self) -> int:
        """What was given a number and is neither in the bridge, nor named by it as evicted."""
        return self.enqueued - self.evicted - self.committed


def tally_of(rig: Rig) -> Tally:
    """Count both sides now; while they run, the two counts are not of the same instant."""
    epoch, enqueued, waiting = outbox_counts(rig.outbox_file)
    if not epoch:
        return Tally()
    bridge = rig.directory / "bridge" / "bridge.db"
    if not bridge.exists():
        return Tally(enqueued, waiting)
    with _reading(bridge) as db:
        try:
            return _with_bridge(db, epoch, enqueued, waiting)
        except sqlite3.OperationalError:  # the bridge is still making its tables
            return Tally(enqueued, waiting)


def _with_bridge(db: sqlite3.Connection, epoch: str, enqueued: int, waiting: int) -> Tally:
    mine = (GATEWAY_ID, epoch)
    (committed,) = db.execute("SELECT count(*) FROM records WHERE gateway = ? AND epoch = ?", mine).fetchone()
    (keys,) = db.execute(
        "SELECT count(*) FROM (SELECT DISTINCT class, seq FROM records WHERE gateway = ? AND epoch = ?)", mine
    ).fetchone()
    (evicted,) = db.execute(
        "SELECT coalesce(sum(last - first + 1), 0) FROM gaps WHERE gateway = ? AND epoch = ? AND source = 'eviction'",
        mine,
    ).fetchone()
    events, revisions, anomalies = db.execute(
        """SELECT count(*), count(DISTINCT json_extract(j, '$.event_id') || json_extract(j, '$.revision')),
                  coalesce(sum(json_extract(j, '$.type') = 'new' AND json_extract(j, '$.reason') IS NOT
                               'low-confidence'), 0)
           FROM (SELECT CAST(body AS TEXT) AS j FROM records WHERE gateway = ? AND epoch = ? AND kind = 'event')""",
        mine,
    ).fetchone()
    return Tally(enqueued, waiting, committed, evicted, committed - keys + events - revisions, anomalies)


def outbox_counts(file: Path) -> tuple[str, int, int]:
    """Return the epoch of an outbox file, how many numbers it gave out, and how many rows wait; "" if there is none."""
    if not file.exists():
        return "", 0, 0
    with _reading(file) as db:
        try:
            (epoch,) = db.execute("SELECT value FROM meta WHERE name = 'epoch'").fetchone()
            given = dict(db.execute("SELECT name, seq FROM sqlite_sequence WHERE name LIKE 'records_%'"))
            waiting = sum(db.execute(f"SELECT count(*) FROM {table}").fetchone()[0] for table in given)
        except sqlite3.OperationalError:  # not made yet
            return "", 0, 0
    return str(epoch), sum(given.values()), waiting


@contextmanager
def _reading(file: Path) -> Iterator[sqlite3.Connection]:
    """Open a database of a running program without ever writing to it."""
    with closing(sqlite3.connect(f"file:{file}?mode=ro", uri=True, timeout=5.0)) as db:
        db.execute("PRAGMA query_only = ON")
        yield db
