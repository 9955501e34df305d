"""The bridge's SQLite store in a process of its own, on a recorded disk: `bridge_victim FILE CONTROL SEED INTAKES END`.

It marks after every commit what it would acknowledge now: `i GATEWAY CLASS FIRST LAST MARK ...`. A store that fails is
tried again, as the bridge's worker does; then it marks `failed`. Checkpoints are made smaller, so that there are some.

Knobs: with `--careless` the store syncs only at checkpoints (synchronous=NORMAL); with `--believing` a store that is
opened again after an error believes what is in memory.
"""

import argparse
import contextlib
import os
import random
import signal
import sqlite3
import sys
import time
from pathlib import Path
from typing import Any

from cloud_bridge.errors import StoreError
from cloud_bridge.store import sqlite as sqlite_store
from cloud_bridge.store.sqlite import SqliteStore
from cloud_bridge.values import Arrival, Intake, Outcome, Row, StreamKey
from tests.chaos.storage.fusedisk import Teller

EPOCH = "00000000000000aa"
CHECKPOINT_PAGES = 200


class CarelessConnection(sqlite3.Connection):
    """The protection taken away: what asks for FULL gets NORMAL."""

    def execute(self, sql: str, *parameters: Any) -> sqlite3.Cursor:
        return super().execute(sql.replace("synchronous = FULL", "synchronous = NORMAL"), *parameters)


class CarelessSqlite:
    """Stands for the module `sqlite3` in the store, and opens careless connections."""

    def __getattr__(self, name: str) -> Any:
        return getattr(sqlite3, name)

    @staticmethod
    def connect(*parameters: Any, **options: Any) -> sqlite3.Connection:
        return sqlite3.connect(*parameters, **options, factory=CarelessConnection)


def body_of(key: StreamKey, seq: int) -> bytes:
    """What a record holds; it follows from its key, so that it can be compared byte for byte."""
    return b'"%s"' % (f"{key.gateway}/{key.record_class}/{seq}/".encode() * (1 + seq % 40))


def arrival(key: StreamKey, first: int, last: int) -> Arrival:
    """Records of one stream as they come from a device."""
    return Arrival(key, 1, tuple(Row(seq, "notice", None, seq, body_of(key, seq)) for seq in range(first, last + 1)))


def ingest(store: SqliteStore, tell: Teller, intake: Intake) -> Outcome:
    """The worker's part: try again for as long as the store fails."""
    while True:
        try:
            return store.ingest(intake)
        except StoreError as error:
            tell.mark("failed")
            print(error, file=sys.stderr)
            time.sleep(0.02)


def work(store: SqliteStore, tell: Teller, seed: int, intakes: int) -> None:
    """Ingest at random: several streams at once, runs that leave a hole for a while, runs that come again."""
    chance = random.Random(seed)
    keys = [StreamKey(gateway, EPOCH, name) for gateway in ("dock", "gate") for name in ("critical", "event", "bulk")]
    upcoming = {stream.key: stream.last + 1 for stream in store.streams()}
    for _ in range(intakes):
        arrivals = []
        for key in chance.sample(keys, chance.choice([1, 1, 2, 4])):
            first = upcoming.get(key, 1)
            last = first + chance.choice([0, 4, 30])
            if chance.random() < 0.15:
                first, last = first + 7, last + 7  # a batch before it was lost; it comes again later
            elif chance.random() < 0.3:
                first = max(1, first - 20)
            arrivals.append(arrival(key, first, last))
            upcoming[key] = max(upcoming.get(key, 1), last + 1)
        outcome = ingest(store, tell, Intake(1, tuple(arrivals)))
        words = [
            f"{a.key.gateway} {a.key.record_class} {a.rows[0].seq} {a.rows[-1].seq} {outcome.marks[a.key]}"
            for a in arrivals
        ]
        tell.mark("i " + " ".join(words))
        if chance.random() < 0.02:
            with contextlib.suppress(StoreError):
                store.tidy()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("file", type=Path)
    parser.add_argument("control", type=Path)
    parser.add_argument("seed", type=int)
    parser.add_argument("intakes", type=int)
    parser.add_argument("end", choices=("kill", "close"))
    parser.add_argument("--careless", action="store_true")
    parser.add_argument("--believing", action="store_true")
    arguments = parser.parse_args()
    vars(sqlite_store)["_CHECKPOINT_PAGES"] = CHECKPOINT_PAGES
    if arguments.believing:
        vars(sqlite_store)["forget"] = lambda _: None
    if arguments.careless:
        vars(sqlite_store)["sqlite3"] = CarelessSqlite()
    store = SqliteStore(arguments.file)
    store.open()
    work(store, Teller(arguments.control), arguments.seed, arguments.intakes)
    if arguments.end == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    store.close()
