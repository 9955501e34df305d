"""The life of an outbox in a few fixed steps, to be killed at any system call: `outbox_steps FILE LOG`.

It opens, commits, evicts, is damaged and puts the damaged file aside, commits again and closes. LOG gets a line for
everything that was promised, before the next step: `epoch E`, `r CLASS SEQ DIGEST ...`, `damaging`.
"""

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from gateway.outbox.damage import side
from gateway.outbox.evictions import row_of
from gateway.outbox.store import Outbox
from gateway.values import Entry
from tests.chaos.storage.outbox_oracle import digest_of
from tests.chaos.storage.outbox_victim import SETTINGS
from tests.gateway.outbox.outbox_kit import event, picture


class Steps:
    """Tells before it goes on."""

    def __init__(self, file: Path, log: Path) -> None:
        self._file = file
        self._log = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def tell(self, line: str) -> None:
        os.write(self._log, line.encode() + b"\n")

    def live(self, number: int) -> None:
        """Open, store and evict, close."""
        outbox = Outbox.open(self._file, SETTINGS)
        self.tell(f"epoch {outbox.epoch}")
        self._put(outbox, [event(number), event(number + 1, "critical"), event(number + 2, "measure")])
        for at in range(4):
            self._put(outbox, [picture(number + 10 + at, 400_000)])  # the third makes the first go
        outbox.acknowledge("critical", outbox.epoch, 0)
        outbox.close()

    def _put(self, outbox: Outbox, entries: Sequence[Entry]) -> None:
        receipts = outbox.put(entries)
        words = ["r"]
        for entry, receipt in zip(entries, receipts, strict=True):
            _, _, kind, body, blob = row_of(entry.kind, entry.body, entry.recorded_at_ns, entry.blob)
            words += [receipt.record_class, str(receipt.seq), digest_of(kind, entry.recorded_at_ns, body, blob)]
        self.tell(" ".join(words))

    def damage(self) -> None:
        """Spoil the file from outside, as a bad sector does."""
        self.tell("damaging")
        side(self._file, "-wal").unlink(missing_ok=True)
        with self._file.open("r+b") as stream:
            stream.write(b"\xa5" * 4096)


def main() -> None:
    """Live, suffer the damage, live on."""
    steps = Steps(Path(sys.argv[1]), Path(sys.argv[2]))
    steps.live(100)
    steps.damage()
    steps.live(200)


if __name__ == "__main__":
    main()
