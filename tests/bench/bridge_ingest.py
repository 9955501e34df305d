"""The bridge's ingest: records a second through mosquitto into each store, with two workers, over a bare insert."""

import asyncio
import sqlite3
import tempfile
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np

from cloud_bridge.store.postgres import PostgresStore
from cloud_bridge.store.sqlite import SqliteReader
from gateway.wire.batch import unpack
from tests.bench.table import row
from tests.simulators.bridge_process import BridgeProcess
from tests.simulators.fleet import Fleet, Load
from tests.simulators.mosquitto import Mosquitto
from tests.simulators.postgres import PostgresServer, binaries

AIM = 30_000
WORKERS = 2
ROUNDS = 3
LOAD = Load(gateways=20, records=10_000, batch_records=200, window=8)


def ingest(load: Load = LOAD, rounds: int = ROUNDS) -> dict[str, Any]:
    """Records a second from the first publish until every gateway has its last mark: decoded, committed, acknowledged.

    `bare` is what the same rows cost with sqlite3's `executemany` alone: decoded before, one table, one index.
    """
    total = load.gateways * load.records
    rates: dict[str, list[float]] = {"sqlite": [], "bare": [], "postgresql": []}
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        rows = _rows(load)
        for turn in range(rounds):
            rates["bare"].append(total / _bare(directory / f"bare-{turn}.db", rows))
            place = directory / f"sqlite-{turn}"
            rates["sqlite"].append(total / _through_the_bridge(place, load, ""))
            _all_there(SqliteReader(place / "bridge.db").counts().records, total)
        found = binaries()
        if found is not None:
            with PostgresServer(found) as server:
                for turn in range(rounds):
                    url = server.make(f"ingest{turn}")
                    rates["postgresql"].append(total / _through_the_bridge(directory / f"pg-{turn}", load, url))
                    with closing(PostgresStore(url)) as store:
                        _all_there(store.counts().records, total)
    medians = {key: round(float(np.median(values))) for key, values in rates.items() if values}
    ratio = round(float(np.median([a / b for a, b in zip(rates["sqlite"], rates["bare"], strict=True)])), 3)
    beside = f"PostgreSQL {medians['postgresql']:,}/s" if "postgresql" in medians else "PostgreSQL is not installed"
    told = f"{medians['sqlite']:,} records/s, {ratio:.0%} of bare `executemany`; {beside}; 0 lost, 0 duplicates"
    return {
        "rows": [
            row(
                f"bridge ingest into SQLite with {WORKERS} workers, through mosquitto",
                told,
                aim="≥ 30,000/s",
                met=medians["sqlite"] >= AIM,
            )
        ],
        "unit": "records/s",
        "workers": WORKERS,
        "records": total,
        "gateways": load.gateways,
        "rate": medians["sqlite"],
        "postgresql": medians.get("postgresql", "not installed"),
        "bare": medians["bare"],
        "ratio": ratio,
        "rates": {key: [round(value) for value in values] for key, values in rates.items()},
        "rounds": rounds,
        "lost": 0,
        "duplicates": 0,
    }


def _all_there(stored: int, total: int) -> None:
    if stored != total:
        raise AssertionError(f"{stored} of {total} records are in the store")


def _through_the_bridge(directory: Path, load: Load, store: str) -> float:
    directory.mkdir()
    with Mosquitto(directory) as broker:
        bridge = BridgeProcess(directory, broker.url, store=store, workers=WORKERS)
        try:
            bridge.start()
            seconds = asyncio.run(Fleet(broker.port, load).drain(300.0))
            bridge.stop()
        finally:
            bridge.kill()
    return seconds


def _rows(load: Load) -> list[list[tuple[Any, ...]]]:
    """Return the rows of each batch."""
    return [
        [
            (number, record.seq, record.kind, "camera", record.recorded_at_ns, 1, bytes(record.body), None)
            for record in unpack(payload).batch.records
        ]
        for number, gateway in enumerate(Fleet(0, load).gateways)
        for _, payload in gateway.batches
    ]


def _bare(file: Path, batches: Sequence[list[tuple[Any, ...]]]) -> float:
    with closing(sqlite3.connect(file, isolation_level=None)) as db:
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = FULL")
        db.execute(
            "CREATE TABLE records (id INTEGER PRIMARY KEY, stream INTEGER, seq INTEGER, kind TEXT, pipeline TEXT,"
            " recorded_at_ns INTEGER, received_at_ns INTEGER, body BLOB, blob BLOB, UNIQUE (stream, seq))"
        )
        started = time.perf_counter()
        for first in range(0, len(batches), 20):
            db.execute("BEGIN IMMEDIATE")
            for batch in batches[first : first + 20]:
                db.executemany(
                    "INSERT INTO records (stream, seq, kind, pipeline, recorded_at_ns, received_at_ns, body, blob)"
                    " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                    batch,
                )
            db.execute("COMMIT")
        return time.perf_counter() - started
