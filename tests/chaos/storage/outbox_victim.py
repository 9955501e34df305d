"""A gateway's outbox in a process of its own, on a recorded disk: `outbox_victim FILE CONTROL SEED ENTRIES END`.

It marks in the log of the disk what it was told, and only then goes on:

    epoch E                         the store is open
    r CLASS SEQ DIGEST ...          receipts, one commit
    e CLASS FIRST LAST              the bridge has heard of an eviction
    a CLASS MARK                    the bridge acknowledges

END is `kill`, `close`, or `stay`: until the disk fails for good, or somebody kills it. A failed outbox is opened
again as the daemon does, as often as it takes; then it marks `failed` and `reopened`.

Knobs: with `--careless` every connection syncs only at checkpoints (synchronous=NORMAL); with `--believing` an outbox
that is opened again after an error believes what is in memory.
"""

import argparse
import os
import random
import signal
import sqlite3
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gateway.config import ClassQuota
from gateway.config import Outbox as OutboxSettings
from gateway.errors import OutboxError
from gateway.outbox import opening
from gateway.outbox.evictions import row_of
from gateway.outbox.store import Outbox
from gateway.recorder import Recorder
from gateway.values import Entry, Receipt
from gateway.wire.messages import CLASSES, Eviction, RecordClass, decode
from tests.chaos.storage.fusedisk import Teller
from tests.chaos.storage.outbox_oracle import digest_of
from tests.gateway.outbox.outbox_kit import MIB, event, picture

KIB = 1024

# Small, so that classes are full all the time: eviction, carried eviction records, back-pressure, page quota.
QUOTAS: dict[RecordClass, ClassQuota] = {
    "critical": ClassQuota(max_bytes=512 * KIB, on_full="refuse"),
    "event": ClassQuota(max_bytes=256 * KIB, max_rows=300),
    "measure": ClassQuota(max_bytes=128 * KIB),
    "bulk": ClassQuota(max_bytes=MIB),
}
SETTINGS = OutboxSettings(ballast_bytes=2 * MIB, queue_entries=200, classes=QUOTAS)


class CarelessConnection(sqlite3.Connection):
    """The protection taken away: what asks for FULL gets NORMAL."""

    def execute(self, sql: str, *parameters: Any) -> sqlite3.Cursor:
        return super().execute(sql.replace("synchronous = FULL", "synchronous = NORMAL"), *parameters)


def be_careless() -> None:
    """Have the outbox open careless connections."""

    def connect(file: Path) -> sqlite3.Connection:
        return sqlite3.connect(
            file, isolation_level=None, check_same_thread=False, timeout=1.0, factory=CarelessConnection
        )

    vars(opening)["_connect"] = connect


class Victim:
    """Produces and acknowledges at random until it has handed over so many entries."""

    def __init__(self, file: Path, control: Path, seed: int) -> None:
        self._chance = random.Random(seed)
        self._tell = Teller(control)
        self._outbox = Recorder(Outbox.open(file, SETTINGS, on_failed=self._failed))
        self._tell.mark(f"epoch {self._outbox.epoch}")
        self._number = seed * 1_000_000
        self._stopped = threading.Event()

    def run(self, entries: int | None) -> None:
        """Hand over so many entries; None: for ever."""
        seed = self._chance.randrange(1 << 30)
        threading.Thread(target=self._acknowledge, args=(seed,), daemon=True).start()
        threading.Thread(target=self._keep, daemon=True).start()
        handed_over = 0
        while entries is None or handed_over < entries:
            batch = [self._entry() for _ in range(self._chance.choice([1, 1, 1, 3, 12]))]
            handed_over += len(batch)
            digests = [self._digest(entry) for entry in batch]
            durable = threading.Event()

            def stored(
                receipts: Sequence[Receipt], digests: Sequence[str] = digests, durable: threading.Event = durable
            ) -> None:
                self._stored(receipts, digests)
                durable.set()

            self._outbox.submit(batch, stored)
            if self._chance.random() < 0.5:  # else the next commit takes several submissions
                durable.wait()
        self._stopped.set()

    def close(self) -> None:
        self._outbox.close()

    def _entry(self) -> Entry:
        self._number += 1
        name = self._chance.choices(CLASSES, weights=[2, 5, 3, 1])[0]
        if name == "bulk":
            return picture(self._number, self._chance.randrange(60 * KIB))
        return event(self._number, name, label="x" * self._chance.choice([3, 40, 3000]))

    def _digest(self, entry: Entry) -> str:
        _, _, kind, body, blob = row_of(entry.kind, entry.body, entry.recorded_at_ns, entry.blob)
        return digest_of(kind, entry.recorded_at_ns, body, blob)

    def _stored(self, receipts: Sequence[Receipt], digests: Sequence[str]) -> None:
        parts = [f"{r.record_class} {r.seq} {digest}" for r, digest in zip(receipts, digests, strict=True)]
        self._tell.mark("r " + " ".join(parts))

    def _failed(self, error: OutboxError) -> None:
        self._tell.mark("failed")
        print(f"failed: {error}", file=sys.stderr)

    def _keep(self) -> None:
        """The daemon's part: open a failed outbox again."""
        while not self._stopped.is_set():
            if self._outbox.failed:
                try:
                    self._outbox.reopen()
                    self._tell.mark("reopened")
                except OutboxError as error:
                    print(f"not reopened: {error}", file=sys.stderr)
            time.sleep(0.02)

    def _acknowledge(self, seed: int) -> None:
        """The bridge: takes some rows of a class, has committed them, says so. It is slower than the producers."""
        chance = random.Random(seed)
        while not self._stopped.is_set():
            name = chance.choice(CLASSES)
            try:
                run = self._outbox.read(name, 0, chance.choice([1, 10, 60]), MIB)
            except OutboxError:
                run = None  # failed just now
            if run is None:
                time.sleep(0.001)
                continue
            for row in run.rows:
                if row.kind == "eviction":
                    gone = decode(row.body, Eviction)
                    self._tell.mark(f"e {gone.record_class} {gone.first_seq} {gone.last_seq}")
            self._tell.mark(f"a {name} {run.rows[-1].seq}")
            self._outbox.acknowledge(name, run.epoch, run.rows[-1].seq)
            # Critical is never evicted: without the bridge its producers would wait for ever.
            time.sleep(0.002 if name == "critical" else chance.uniform(0, 0.03))


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("file", type=Path)
    parser.add_argument("control", type=Path)
    parser.add_argument("seed", type=int)
    parser.add_argument("entries", type=int)
    parser.add_argument("end", choices=("kill", "close", "stay"))
    parser.add_argument("--careless", action="store_true")
    parser.add_argument("--believing", action="store_true")
    arguments = parser.parse_args()
    if arguments.careless:
        be_careless()
    if arguments.believing:
        vars(opening)["forget"] = lambda _: None
    sys.setswitchinterval(0.0005)
    victim = Victim(arguments.file, arguments.control, arguments.seed)
    victim.run(None if arguments.end == "stay" else arguments.entries)
    if arguments.end == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    victim.close()
