"""Start-up does not wait for the backlog, and durability costs little. Each test prints its figures."""

import itertools
import json
import sqlite3
import statistics
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from gateway.outbox.schema import COLUMNS
from gateway.outbox.store import Outbox
from gateway.values import Entry, Receipt
from gateway.wire.messages import encode
from tests.gateway.outbox.outbox_kit import MIB, endless, event, opened

BATCH = 100


@pytest.mark.slow
def test_a_million_rows_open_at_once(file: Path) -> None:
    with opened(file, endless()) as outbox:
        outbox.put([event(1)])
    rows = 1_000_000
    with sqlite3.connect(file) as db:
        db.execute("PRAGMA synchronous = OFF")
        db.execute(
            f"INSERT INTO records_event ({', '.join(COLUMNS[1:])}) "
            "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ?) "
            "SELECT 190, 0, i, 'event', zeroblob(120), x'' FROM n",
            (rows,),
        )
        db.execute("UPDATE totals SET rows = rows + ?, bytes = bytes + ? WHERE class = 'event'", (rows, rows * 190))
        # As after a crash, so that the background check runs too.
        db.execute("UPDATE meta SET value = '1' WHERE name = 'in_use'")
        db.commit()
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    began = time.perf_counter()
    outbox = Outbox.open(file, endless())
    opened_after = time.perf_counter() - began
    (receipt,) = outbox.put([event(2)])
    stored_after = time.perf_counter() - began
    run = outbox.read("event", 0, 500, MIB)
    read_after = time.perf_counter() - began
    outbox.close()
    figures = {"rows": rows, "open_s": opened_after, "first_put_s": stored_after, "first_read_s": read_after}
    print(json.dumps(figures))
    assert receipt.seq > rows
    assert run is not None
    assert len(run.rows) == 500
    assert opened_after < 0.5
    assert stored_after < 1.0


def raw_rate(file: Path, batches: Sequence[Sequence[Entry]]) -> float:
    """Rows a second of sqlite3 alone, with the same pragmas: encode, executemany, commit."""
    db = sqlite3.connect(file, isolation_level=None)
    db.execute("PRAGMA journal_mode = WAL")
    db.execute("PRAGMA synchronous = FULL")
    db.execute("PRAGMA secure_delete = OFF")
    db.execute(
        "CREATE TABLE IF NOT EXISTS t (seq INTEGER PRIMARY KEY AUTOINCREMENT, recorded_at_ns INTEGER, kind TEXT, "
        "body BLOB, blob BLOB)"
    )
    began = time.perf_counter()
    for batch in batches:
        db.execute("BEGIN IMMEDIATE")
        db.executemany(
            "INSERT INTO t (recorded_at_ns, kind, body, blob) VALUES (?, ?, ?, ?)",
            [(entry.recorded_at_ns, entry.kind, encode(entry.body), entry.blob) for entry in batch],
        )
        db.execute("COMMIT")
    took = time.perf_counter() - began
    db.close()
    return sum(map(len, batches)) / took


def outbox_rate(outbox: Outbox, batches: Sequence[Sequence[Entry]]) -> float:
    """Records a second from `submit` to the last receipt."""
    total = sum(map(len, batches))
    count = itertools.count(1)
    finished = threading.Event()

    def done(receipts: Sequence[Receipt]) -> None:
        for _ in receipts:
            if next(count) == total:
                finished.set()

    began = time.perf_counter()
    for batch in batches:
        outbox.submit(batch, done)
    assert finished.wait(60)
    return total / (time.perf_counter() - began)


@pytest.mark.slow
def test_submitting_is_as_fast_as_sqlite_alone(file: Path, tmp_path: Path) -> None:
    batches = [[event(at * BATCH + n) for n in range(BATCH)] for at in range(200)]
    ours: list[float] = []
    theirs: list[float] = []
    with opened(file, endless()) as outbox:
        for _ in range(5):  # interleaved, because this machine is not ours alone
            theirs.append(raw_rate(tmp_path / "raw.db", batches))
            ours.append(outbox_rate(outbox, batches))
    ratio = statistics.median(a / b for a, b in zip(ours, theirs, strict=True))
    print(
        json.dumps(
            {"batch": BATCH, "records_per_s": statistics.median(ours), "raw": statistics.median(theirs), "ratio": ratio}
        )
    )
    assert ratio >= 0.8
    assert max(ours) >= 20_000


@pytest.mark.slow
def test_a_single_put_is_durable_after_about_one_sync(file: Path, tmp_path: Path) -> None:
    raw = sqlite3.connect(tmp_path / "raw.db", isolation_level=None)
    raw.execute("PRAGMA journal_mode = WAL")
    raw.execute("PRAGMA synchronous = FULL")
    raw.execute("CREATE TABLE t (seq INTEGER PRIMARY KEY AUTOINCREMENT, body BLOB)")
    ours: list[float] = []
    theirs: list[float] = []
    with opened(file, endless()) as outbox:
        for n in range(500):
            entry = event(n)
            began = time.perf_counter()
            outbox.put([entry])
            middle = time.perf_counter()
            raw.execute("INSERT INTO t (body) VALUES (?)", (encode(entry.body),))
            ours.append(middle - began)
            theirs.append(time.perf_counter() - middle)
    raw.close()

    def at(values: list[float], quantile: float) -> float:
        return sorted(values)[int(len(values) * quantile)] * 1e3

    figures = {
        name: {"p50_ms": at(values, 0.5), "p99_ms": at(values, 0.99)}
        for name, values in (("put", ours), ("raw", theirs))
    }
    print(json.dumps(figures))
    assert figures["put"]["p50_ms"] < 4 * figures["raw"]["p50_ms"] + 2
