"""Watches a bridge's SQLite store from outside: when which record was committed."""

import sqlite3
import threading
import time
from bisect import bisect_left
from contextlib import closing
from pathlib import Path
from types import TracebackType
from typing import Self

import msgspec

from gateway.wire.messages import Event, RecordClass, decode
from hil.loopback.rig import GATEWAY_ID

EVERY_SECONDS = 0.01


class Watch:
    """Asks again and again how far a class is, in a thread; a figure is late by `EVERY_SECONDS` at most, never early.

    A number counts as committed when a reader of another process sees it, which is after the commit.
    """

    def __init__(self, database: Path, record_class: RecordClass) -> None:
        self._database = database
        self._class = record_class
        self._seen: list[tuple[int, int]] = []  # (sequence number, UTC in ns when it was first seen), both rising
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._look, name="bench-watch", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()

    @property
    def highest(self) -> int:
        """The highest number committed so far."""
        return self._seen[-1][0] if self._seen else 0

    def first_after(self, utc_ns: int) -> int | None:
        """Return when something was committed for the first time after an instant."""
        return next((at for _, at in self._seen if at > utc_ns), None)

    def committed_at(self, seq: int) -> int | None:
        """Return when a number was committed, UTC in nanoseconds; None if it was not."""
        at = bisect_left(self._seen, (seq, 0))
        return self._seen[at][1] if at < len(self._seen) else None

    def _look(self) -> None:
        while not self._stop.is_set() and not self._database.exists():
            self._stop.wait(EVERY_SECONDS)
        with closing(_reading(self._database)) as db:
            stream: int | None = None
            while not self._stop.wait(EVERY_SECONDS):
                try:
                    stream = stream or self._stream(db)
                    highest = _highest(db, stream) if stream is not None else 0
                except sqlite3.OperationalError:  # the bridge is still making its tables
                    continue
                if highest > self.highest:
                    self._seen.append((highest, time.time_ns()))

    def _stream(self, db: sqlite3.Connection) -> int | None:
        found = db.execute(
            "SELECT id FROM streams WHERE gateway = ? AND class = ?", (GATEWAY_ID, self._class)
        ).fetchone()
        return int(found[0]) if found else None


def _highest(db: sqlite3.Connection, stream: int) -> int:
    (highest,) = db.execute("SELECT max(last) FROM stream_runs WHERE stream = ?", (stream,)).fetchone()
    return int(highest or 0)


def events_of(database: Path, record_class: RecordClass) -> list[tuple[int, Event]]:
    """Return the events of a class, with their sequence numbers, in order."""
    with closing(_reading(database)) as db:
        rows = db.execute(
            "SELECT seq, body FROM records WHERE class = ? AND kind = 'event' ORDER BY seq", (record_class,)
        ).fetchall()
    return [(seq, decode(bytes(body), Event)) for seq, body in rows]


class _Reading(msgspec.Struct):
    phase: str = msgspec.field(name="type")
    raw_score: float | None = None


_reading_decoder = msgspec.json.Decoder(_Reading)


def readings_after(database: Path, row: int) -> tuple[int, list[int]]:
    """Return the highest row id, and what the echo model answered in each event record after a row id, in order."""
    row, found = records_after(database, row)
    return row, [number for number, _ in found]


def records_after(database: Path, row: int) -> tuple[int, list[tuple[int, int]]]:
    """As `readings_after`, each answer with the time at which the gateway made the record, UTC in nanoseconds."""
    with closing(_reading(database)) as db:
        try:
            rows = db.execute(
                "SELECT id, recorded_at_ns, body FROM stream_records WHERE id > ? AND kind = 'event' ORDER BY id",
                (row,),
            ).fetchall()
        except sqlite3.OperationalError:
            return row, []
    found = []
    for _, recorded_at_ns, body in rows:
        said = _reading_decoder.decode(bytes(body))
        if said.phase != "end" and said.raw_score is not None:
            found.append((round(said.raw_score), recorded_at_ns))
    return (rows[-1][0] if rows else row), found


def stored_twice(database: Path) -> int:
    """Return how many records stand in the store beyond the first of their gateway, epoch, class and number."""
    with closing(_reading(database)) as db:
        (count,) = db.execute(
            "SELECT coalesce(sum(times - 1), 0) FROM"
            " (SELECT count(*) AS times FROM records GROUP BY gateway, epoch, class, seq)"
        ).fetchone()
    return int(count)


def given_up(database: Path, record_class: RecordClass) -> int:
    """Return how many records of a class the gateway has evicted, as it says itself."""
    with closing(_reading(database)) as db:
        (count,) = db.execute(
            "SELECT coalesce(sum(last - first + 1), 0) FROM gaps WHERE source = 'eviction' AND class = ?",
            (record_class,),
        ).fetchone()
    return int(count)


def _reading(database: Path) -> sqlite3.Connection:
    db = sqlite3.connect(f"file:{database}?mode=ro", uri=True, timeout=5.0, check_same_thread=False)
    db.execute("PRAGMA query_only = ON")
    return db
