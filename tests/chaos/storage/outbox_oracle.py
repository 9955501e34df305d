"""What must be in an outbox after a crash, from what its user was told before, and whether it is."""

import hashlib
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from gateway.config import Outbox as OutboxSettings
from gateway.outbox.store import Outbox
from gateway.wire.messages import CLASSES, Notice, RecordClass, decode
from tests.gateway.outbox.outbox_kit import event, evictions, rows


def digest_of(kind: str, recorded_at_ns: int, body: bytes, blob: bytes) -> str:
    """Name the content of a row."""
    whole = b"\0".join((kind.encode(), str(recorded_at_ns).encode(), body, blob))
    return hashlib.sha256(whole).hexdigest()[:20]


@dataclass
class Promises:
    """What was said up to a moment."""

    epoch: str | None = None
    receipts: dict[tuple[RecordClass, int], str] = field(default_factory=dict)
    marks: dict[str, int] = field(default_factory=lambda: dict.fromkeys(CLASSES, 0))
    evicted: set[tuple[str, int]] = field(default_factory=set)
    failures: int = 0
    reopenings: int = 0

    def hear(self, mark: str) -> None:
        """Take note of one mark of the victim."""
        words = mark.split()
        match words[0]:
            case "epoch":
                self.epoch = words[1]
            case "r":
                for name, seq, digest in zip(words[1::3], words[2::3], words[3::3], strict=True):
                    self.receipts[_class(name), int(seq)] = digest
            case "e":
                self.evicted.update((words[1], seq) for seq in range(int(words[2]), int(words[3]) + 1))
            case "a":
                self.marks[words[1]] = max(self.marks[words[1]], int(words[2]))
            case "failed":
                self.failures += 1
            case "fault":
                pass  # of the experiment: the disk fails from here on
            case "reopened":
                self.reopenings += 1
            case _:
                raise ValueError(mark)


def _class(name: str) -> RecordClass:
    (found,) = (each for each in CLASSES if each == name)
    return found


@dataclass(frozen=True)
class Verdict:
    """What an opening after a crash has shown. `faults` are broken promises, in words."""

    faults: tuple[str, ...]
    lost: int
    present: int
    open_seconds: float


def promises_of(marks: Iterable[str]) -> Promises:
    """Add up what was said."""
    found = Promises()
    for mark in marks:
        found.hear(mark)
    return found


def judge(file: Path, settings: OutboxSettings, said: Promises) -> Verdict:
    """Open the store as the gateway does, and compare it with what was promised."""
    began = time.monotonic()
    outbox = Outbox.open(file, settings)
    open_seconds = time.monotonic() - began
    try:
        return _compare(outbox, said, open_seconds)
    finally:
        outbox.close()


TOLD: Final = frozenset({"store_failed"})
"""Notices that are no fault: the disk had failed, and a notice says so."""


def _compare(outbox: Outbox, said: Promises, open_seconds: float) -> Verdict:
    faults: list[str] = []
    if outbox.stats().quarantined:
        faults.append("the store was quarantined")
    elif said.epoch is not None and outbox.epoch != said.epoch:
        faults.append(f"epoch {said.epoch} became {outbox.epoch}")
    evicted = said.evicted | {
        (gone.record_class, seq) for gone in evictions(outbox) for seq in range(gone.first_seq, gone.last_seq + 1)
    }
    held: dict[tuple[RecordClass, int], str] = {}
    for name in CLASSES:
        found = rows(outbox, name)
        lowest, highest = outbox.heads()[name]
        if [row.seq for row in found] != list(range(lowest, highest + 1)):
            faults.append(f"{name} has gaps between {lowest} and {highest}")
        if outbox.stats().classes[name].rows != len(found):
            faults.append(f"{name}: the books count {outbox.stats().classes[name].rows}, there are {len(found)}")
        for row in found:
            held[name, row.seq] = digest_of(row.kind, row.recorded_at_ns, row.body, row.blob)
            if row.kind == "notice" and decode(row.body, Notice).code not in TOLD:
                faults.append(f"a notice about nothing: {row.body!r}")
    lost = 0
    for key, digest in said.receipts.items():
        if key[1] <= said.marks[key[0]] or key in evicted:
            continue
        if held.get(key) != digest:
            lost += 1
            faults.append(f"{key} is {'missing' if key not in held else 'another record'}")
    faults.extend(_reused(outbox, said))
    return Verdict(tuple(faults), lost, len(held), open_seconds)


def _reused(outbox: Outbox, said: Promises) -> list[str]:
    """Store one more record of each class that takes one; its number must be new."""
    faults = []
    for name in CLASSES[1:]:
        highest = max((seq for found, seq in said.receipts if found == name), default=0)
        (receipt,) = outbox.put([event(0, name)], timeout=30)
        if receipt.seq <= max(highest, said.marks[name]):
            faults.append(f"{name}: number {receipt.seq} was given again, after {max(highest, said.marks[name])}")
    return faults
