"""The outbox: durable enqueue over raw sqlite3, and opening with a long backlog."""

import sqlite3
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from gateway.config import Outbox as OutboxSettings
from gateway.outbox.store import Outbox
from gateway.recorder import Recorder
from gateway.values import Entry
from gateway.wire.messages import Event, ModelRef, encode
from tests.bench.figures import alternate, percentiles
from tests.bench.table import row

BATCH = 100
AIM_RATIO = 0.80
AIM_RATE = 20_000
ROWS = 20_000


def an_event(number: int) -> Event:
    """Build an event of the usual size, about 450 bytes of JSON."""
    return Event(
        phase="new",
        event_id=f"{number:022x}",
        gateway="bench",
        pipeline="vibration",
        source="motor",
        rule="anomaly",
        label="anomaly",
        score=0.75,
        peak_score=0.75,
        model=ModelRef(name="vibration-anomaly", version="1.0.0", digest="0" * 64),
        at="2026-01-01T00:00:00.000Z",
        started_at="2026-01-01T00:00:00.000Z",
        captured_at_ns=1_767_225_600_000_000_000 + number,
        raw_score=2.0,
        threshold=1.0,
    )


def entries(first: int, size: int) -> list[Entry]:
    """Build a batch of entries of class `event`."""
    return [Entry("event", "event", an_event(number), number) for number in range(first, first + size)]


def enqueue() -> dict[str, Any]:
    """Records a second made durable in batches of 100, over raw sqlite3 `executemany` with synchronous=FULL.

    `through_the_queue` is how pipelines do it: batches are handed over, and what waits is committed together.
    `waiting_for_each` hands over a batch only when the one before is durable, so every batch is a commit.
    """
    with tempfile.TemporaryDirectory() as directory:
        folder = Path(directory)
        batches = [entries(first, BATCH) for first in range(0, ROWS, BATCH)]
        turn = iter(range(1000))

        def waiting() -> float:
            outbox = Outbox.open(folder / f"ours-{next(turn)}.db", OutboxSettings())
            started = time.perf_counter()
            for batch in batches:
                outbox.put(batch)
            seconds = time.perf_counter() - started
            outbox.close()
            return ROWS / seconds

        def bare() -> float:
            return ROWS / _raw(folder / f"raw-{next(turn)}.db", batches)

        queued = alternate(lambda: _through_the_queue(folder / f"queue-{next(turn)}.db", batches), bare)
        waited = alternate(waiting, bare)
        latency = _single(folder / "single.db")
    return {
        "unit": "records/s",
        "batch": BATCH,
        "through_the_queue": queued,
        "waiting_for_each": waited,
        "one_record_ms": latency,
        "rows": [
            row(
                f"durable enqueue through the pipelines' queue, batches of {BATCH}, over raw sqlite3 `executemany` "
                "with `synchronous=FULL`",
                f"**{queued['ratio']:.2f}** ({queued['ratio_min']:.2f} to {queued['ratio_max']:.2f})",
                aim=f"≥ {AIM_RATIO:.2f}",
                met=queued["ratio"] >= AIM_RATIO,
            ),
            row(
                "the same, records a second",
                f"**{queued['ours']:,.0f}/s** (raw: {queued['bare']:,.0f}/s)",
                aim=f"≥ {AIM_RATE:,}/s",
                met=queued["ours"] >= AIM_RATE,
            ),
            row(
                "the same when the caller waits for each batch to be durable before it hands over the next",
                f"{waited['ratio']:.2f}, {waited['ours']:,.0f}/s",
            ),
            row("one record, from call to durable", f"p50 {latency['p50']:.1f} ms, p99 {latency['p99']:.1f} ms"),
        ],
    }


def _raw(file: Path, batches: list[list[Entry]]) -> float:
    db = sqlite3.connect(file, isolation_level=None)
    db.execute("PRAGMA journal_mode=WAL")
    db.execute("PRAGMA synchronous=FULL")
    db.execute(
        "CREATE TABLE records (seq INTEGER PRIMARY KEY AUTOINCREMENT, disk_bytes INTEGER, stored_ms INTEGER,"
        " recorded_at_ns INTEGER, kind TEXT, body BLOB, blob BLOB)"
    )
    started = time.perf_counter()
    for batch in batches:
        rows = [(0, 0, entry.recorded_at_ns, entry.kind, encode(entry.body), b"") for entry in batch]
        db.execute("BEGIN IMMEDIATE")
        db.executemany(
            "INSERT INTO records (disk_bytes, stored_ms, recorded_at_ns, kind, body, blob) VALUES (?,?,?,?,?,?)", rows
        )
        db.execute("COMMIT")
    seconds = time.perf_counter() - started
    db.close()
    return seconds


def _through_the_queue(file: Path, batches: list[list[Entry]]) -> float:
    """Submit without waiting for each commit, as pipelines do; count until the last one is durable."""
    outbox = Outbox.open(file, OutboxSettings())
    recorder = Recorder(outbox)
    last = threading.Event()
    started = time.perf_counter()
    for batch in batches[:-1]:
        recorder.submit(batch, lambda _: None)
    recorder.submit(batches[-1], lambda _: last.set())
    last.wait()
    seconds = time.perf_counter() - started
    outbox.close()
    return ROWS / seconds


def _single(file: Path) -> dict[str, float | int]:
    outbox = Outbox.open(file, OutboxSettings())
    delays = []
    for number in range(2000):
        started = time.perf_counter()
        outbox.put(entries(number, 1))
        delays.append((time.perf_counter() - started) * 1000)
    outbox.close()
    return percentiles(delays)


AIM_OPEN_SECONDS = 0.05


def open_with_backlog(rows: int = 1_000_000) -> dict[str, Any]:
    """Seconds to open a store and commit the first new record, with a million rows waiting and with none."""
    with tempfile.TemporaryDirectory() as directory:
        folder = Path(directory)
        full = folder / "full.db"
        Outbox.open(full, OutboxSettings()).close()
        fill(full, rows)
        figures = {}
        for name, file in (("empty", folder / "empty.db"), ("backlog", full)):
            started = time.perf_counter()
            outbox = Outbox.open(file, OutboxSettings())
            outbox.put(entries(1, 1))
            figures[name] = round(time.perf_counter() - started, 4)
            outbox.close()
    told = f"{figures['backlog'] * 1000:.0f} ms (empty store, made new: {figures['empty'] * 1000:.0f} ms)"
    return {
        "unit": "s",
        "waiting": rows,
        **figures,
        "rows": [
            row(
                f"open a store with {rows:,} rows waiting and commit the first new record",
                told,
                aim=f"at most {AIM_OPEN_SECONDS * 1000:.0f} ms more than with none",
                met=figures["backlog"] <= figures["empty"] + AIM_OPEN_SECONDS,
            )
        ],
    }


def fill(file: Path, rows: int) -> None:
    """Put events into a store that nobody has open, as an outage of weeks leaves them."""
    db = sqlite3.connect(file)
    body = encode(an_event(1))
    db.execute(
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ?)"
        " INSERT INTO records_event (disk_bytes, stored_ms, recorded_at_ns, kind, body, blob)"
        " SELECT 600, 0, i, 'event', ?, x'' FROM n",
        (rows, body),
    )
    db.commit()
    db.close()
