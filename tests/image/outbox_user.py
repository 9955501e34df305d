"""Runs in the guest, with the appliance's own Python: uses an outbox as the gateway does.

`outbox_user.py NAME FILE` stores records for ever, and tells each receipt on its standard output once the outbox calls
it durable. With the name `careless` the protection is off: commits are synced only now and then (synchronous=NORMAL).
"""

import hashlib
import sqlite3
import sys
from pathlib import Path
from typing import Any

from gateway.config import Outbox as OutboxSettings
from gateway.outbox import opening
from gateway.outbox.store import Outbox
from gateway.values import Entry
from gateway.wire.messages import Event, ModelRef

SETTINGS = OutboxSettings(ballast_bytes=0)
_BATCH = 4
_ROWS = 500


class CarelessConnection(sqlite3.Connection):
    """What asks for FULL gets NORMAL."""

    def execute(self, sql: str, *parameters: Any) -> sqlite3.Cursor:
        return super().execute(sql.replace("synchronous = FULL", "synchronous = NORMAL"), *parameters)


def be_careless() -> None:
    """Have the outbox open careless connections."""

    def connect(file: Path) -> sqlite3.Connection:
        return sqlite3.connect(
            file, isolation_level=None, check_same_thread=False, timeout=1.0, factory=CarelessConnection
        )

    vars(opening)["_connect"] = connect


def event(number: int) -> Entry:
    """Return a record that no other is like."""
    body = Event(
        phase="new",
        event_id=f"e{number}",
        gateway="rig",
        pipeline="rig",
        source="rig",
        rule="any",
        label="x" * (number % 97),
        score=0.9,
        peak_score=0.9,
        model=ModelRef(name="none", version="1.0.0", digest="0" * 64),
        at="2026-01-01T00:00:00.000Z",
        started_at="2026-01-01T00:00:00.000Z",
        captured_at_ns=number,
    )
    return Entry("event", "event", body, number)


def digest_of(recorded_at_ns: int, body: bytes) -> str:
    return hashlib.sha256(b"%d\0" % recorded_at_ns + body).hexdigest()[:20]


def held(outbox: Outbox) -> dict[int, str]:
    """Return the digest of each record by its number."""
    found: dict[int, str] = {}
    last = 0
    while run := outbox.read("event", last, _ROWS, 1 << 20):
        found |= {row.seq: digest_of(row.recorded_at_ns, row.body) for row in run.rows}
        last = run.rows[-1].seq
    return found


def produce(outbox: Outbox, name: str) -> None:
    """Store records for ever, and tell each that is durable."""
    number = outbox.heads()["event"][1]
    while True:
        entries = [event(number + 1 + each) for each in range(_BATCH)]
        number += _BATCH
        receipts = outbox.put(entries, timeout=60.0)
        found = held_since(outbox, receipts[0].seq)
        parts = " ".join(f"{receipt.seq} {found[receipt.seq]}" for receipt in receipts)
        print(f"@{name} {outbox.epoch} {parts} .", flush=True)


def held_since(outbox: Outbox, first: int) -> dict[int, str]:
    """Return the digests of the records from a number on."""
    run = outbox.read("event", first - 1, _BATCH, 1 << 20)
    assert run is not None
    return {row.seq: digest_of(row.recorded_at_ns, row.body) for row in run.rows}


def main() -> None:
    name, file = sys.argv[1:3]
    if name == "careless":
        be_careless()
    produce(Outbox.open(Path(file), SETTINGS), name)


if __name__ == "__main__":
    main()
