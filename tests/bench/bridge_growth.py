"""The bridge's store as it grows: what a record costs with 10^5 rows in it, and with 10^7."""

import tempfile
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np

from cloud_bridge.store.base import RecordFilter, Store
from cloud_bridge.store.postgres import PostgresStore
from cloud_bridge.store.sqlite import SqliteStore
from cloud_bridge.values import Arrival, Intake, Row, StreamKey
from gateway.wire.messages import CLASSES
from tests.bench.figures import percentiles
from tests.bench.table import Row as TableRow
from tests.bench.table import row
from tests.simulators.postgres import PostgresServer, binaries

GATEWAYS = 200
BATCH = 50  # records in a message
MESSAGES = 40  # in a transaction
MARKS = (100_000, 1_000_000, 10_000_000)
MOST_GROWTH = 1.2
WINDOW = 300_000  # records measured at each mark
BODY = b'{"started_at":"2026-01-31T12:00:00.000Z","inferences":60,"labels":{"person":3},"note":"' + b"x" * 110 + b'"}'


def growth(last: int = MARKS[-1]) -> dict[str, Any]:
    """Microseconds a record, over the three hundred thousand records after each mark; 200 gateways, four classes each.

    The time is that of `Store.ingest`, checkpoints and the search for known numbers included; decoding is not.
    `page_ms` is a page of 50 records of one pipeline, read at that size.
    """
    marks = [mark for mark in MARKS if mark <= last]
    with tempfile.TemporaryDirectory() as directory:
        with closing(SqliteStore(Path(directory) / "bridge.db")) as store:
            sqlite = _grow(store, marks)
        found = binaries()
        postgres: dict[str, Any] = {"skipped": "PostgreSQL is not installed"}
        if found is not None:
            with PostgresServer(found) as server, closing(PostgresStore(server.make("growth"))) as store:
                postgres = _grow(store, marks)
    rows = [_told("SQLite", sqlite)]
    if "rows" in postgres:
        rows.append(_told("PostgreSQL", postgres))
    return {
        "unit": "microseconds a record",
        "gateways": GATEWAYS,
        "sqlite": sqlite,
        "postgresql": postgres,
        "rows": rows,
    }


def _told(name: str, grown: dict[str, Any]) -> TableRow:
    costs = ", ".join(f"{size} rows: {one['mean']} us" for size, one in grown["rows"].items())
    growth = grown["largest_over_smallest"]
    what = f"cost of a record as the store grows, {name}"
    return row(what, f"{costs}; {growth:.2f} x", aim="≤ 1.20 x", met=growth <= MOST_GROWTH)


def _grow(store: Store, marks: list[int]) -> dict[str, Any]:
    intakes = _intakes()
    done = 0
    sizes: dict[str, Any] = {}
    means = []
    for mark in marks:
        while done < mark:
            store.ingest(next(intakes))
            done += BATCH * MESSAGES
        costs = []
        for _ in range(WINDOW // (BATCH * MESSAGES)):
            intake = next(intakes)
            started = time.perf_counter()
            store.ingest(intake)
            costs.append((time.perf_counter() - started) * 1e6 / (BATCH * MESSAGES))
            done += BATCH * MESSAGES
        means.append(float(np.mean(costs)))
        sizes[f"{mark:.0e}"] = {
            "mean": round(means[-1], 2),
            **percentiles(costs, 2),
            "page_ms": _page_ms(store),
            "store_mb": round(store.size_bytes() / 1e6),
        }
    return {"rows": sizes, "largest_over_smallest": round(means[-1] / means[0], 3)}


def _page_ms(store: Store) -> float:
    wanted = RecordFilter(pipeline="camera-3")
    times = []
    for _ in range(5):
        started = time.perf_counter()
        store.records(wanted, limit=50)
        times.append((time.perf_counter() - started) * 1000)
    return round(float(np.median(times)), 2)


def _intakes() -> Iterator[Intake]:
    """Make transactions of records from gateways in turn."""
    keys = [StreamKey(f"gw-{number:03}", f"{number:016x}", name) for number in range(GATEWAYS) for name in CLASSES]
    reached = dict.fromkeys(keys, 0)
    now_ns = time.time_ns()
    at = 0
    while True:
        arrivals = []
        for _ in range(MESSAGES):
            key = keys[at % len(keys)]
            at += 7  # no divisor of the number of streams: neighbours in a transaction are not neighbours in the table
            first = reached[key] + 1
            reached[key] += BATCH
            pipeline = f"camera-{at % 5}"
            rows = tuple(Row(seq, "measure", pipeline, now_ns, BODY) for seq in range(first, first + BATCH))
            arrivals.append(Arrival(key, 1, rows))
        now_ns += 1_000_000
        yield Intake(now_ns, tuple(arrivals))
