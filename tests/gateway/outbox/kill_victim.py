"""A gateway's outbox in a process of its own, to be killed: `kill_victim.py FILE LOG committed|early SEED`.

The log is written past all buffers: `r class seq text` for every receipt, `a class mark` before every acknowledgement.
With `early` it breaks the promise on purpose: it logs a receipt before the commit.
"""

import os
import random
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

from gateway.outbox.store import Outbox
from gateway.values import Entry, Receipt
from gateway.wire.messages import CLASSES, Event, RecordClass
from tests.gateway.outbox.outbox_kit import MIB, endless, event, picture


def main(file: Path, log: Path, mode: str, seed: int) -> None:
    chance = random.Random(seed)
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    outbox = Outbox.open(file, endless())
    upcoming = {name: head[1] for name, head in outbox.heads().items()}

    def label(entry: Entry) -> str:
        return entry.body.event_id if isinstance(entry.body, Event) else "-"

    def tell(receipts: Sequence[Receipt], labels: Sequence[str]) -> None:
        lines = [
            f"r {receipt.record_class} {receipt.seq} {text}\n" for receipt, text in zip(receipts, labels, strict=True)
        ]
        os.write(descriptor, "".join(lines).encode())

    def acknowledge() -> None:
        while True:
            for name in CLASSES:
                run = outbox.read(name, 0, 40, MIB)
                if run is not None:
                    os.write(descriptor, f"a {name} {run.rows[-1].seq}\n".encode())
                    outbox.acknowledge(name, run.epoch, run.rows[-1].seq)

    threading.Thread(target=acknowledge, daemon=True).start()
    number = chance.randrange(10**9)
    while True:
        entries: list[Entry] = []
        for _ in range(chance.choice([1, 1, 5, 60])):
            number += 1
            name: RecordClass = chance.choice(["event", "event", "critical"])
            entries.append(event(number, name) if chance.random() < 0.9 else picture(number, chance.randrange(20_000)))
        labels = [label(entry) for entry in entries]
        if mode == "early":
            receipts = []
            for entry in entries:
                upcoming[entry.record_class] += 1
                receipts.append(Receipt(entry.record_class, outbox.epoch, upcoming[entry.record_class]))
            tell(receipts, labels)
            outbox.submit(entries)
        else:
            outbox.submit(entries, lambda found, labels=labels: tell(found, labels))  # type: ignore[misc]


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], int(sys.argv[4]))
