"""What the tests of the outbox share: entries, settings, and a way to wait for a fact."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from gateway.config import ClassQuota
from gateway.config import Outbox as OutboxSettings
from gateway.outbox.store import Outbox
from gateway.values import Entry, Stored
from gateway.wire.messages import CLASSES, Event, Eviction, Evidence, ModelRef, RecordClass, decode

MIB = 1024 * 1024
ROOMY: dict[RecordClass, ClassQuota] = {
    "critical": ClassQuota(max_bytes=16 * MIB, on_full="refuse"),
    "event": ClassQuota(max_bytes=16 * MIB),
    "measure": ClassQuota(max_bytes=16 * MIB),
    "bulk": ClassQuota(max_bytes=16 * MIB),
}


def settings(*, ballast_bytes: int = 0, queue_entries: int = 10_000, **classes: ClassQuota) -> OutboxSettings:
    """Roomy quotas, but for the classes named."""
    quotas = {name: classes.get(name, ROOMY[name]) for name in CLASSES}
    return OutboxSettings(ballast_bytes=ballast_bytes, queue_entries=queue_entries, classes=quotas)


def endless() -> OutboxSettings:
    """Quotas that no test reaches."""
    quota = ClassQuota(max_bytes=4096 * MIB, max_rows=10**9)
    quotas: dict[RecordClass, ClassQuota] = {name: quota for name in CLASSES}  # noqa: C420  # keeps the key type
    return OutboxSettings(ballast_bytes=0, classes=quotas)


def event(number: int, record_class: RecordClass = "event", label: str = "person") -> Entry:
    body = Event(
        phase="new",
        event_id=f"e{number}",
        gateway="gw-1",
        pipeline="dock",
        source="dock",
        rule="person",
        label=label,
        score=0.9,
        peak_score=0.95,
        model=ModelRef(name="ssd", version="1.0.0", digest="ab" * 32),
        at="2026-09-21T14:13:20.000Z",
        started_at="2026-09-21T14:13:20.000Z",
        captured_at_ns=1_790_000_000_000_000_000 + number,
    )
    return Entry(record_class, "event", body, 1_790_000_000_000_000_000 + number)


def picture(number: int, size: int, record_class: RecordClass = "bulk") -> Entry:
    body = Evidence(
        evidence_id=f"p{number}",
        event_id=f"e{number}",
        pipeline="dock",
        content_type="image/jpeg",
        captured_at_ns=1_790_000_000_000_000_000 + number,
    )
    return Entry(record_class, "evidence", body, 1_790_000_000_000_000_000 + number, bytes([number % 251]) * size)


def rows(outbox: Outbox, record_class: RecordClass) -> list[Stored]:
    """Everything in a class."""
    found: list[Stored] = []
    while run := outbox.read(record_class, found[-1].seq if found else 0, 500, MIB):
        found.extend(run.rows)
    return found


def numbers(outbox: Outbox, record_class: RecordClass) -> list[int]:
    return [row.seq for row in rows(outbox, record_class)]


def evictions(outbox: Outbox) -> list[Eviction]:
    return [decode(row.body, Eviction) for row in rows(outbox, "critical") if row.kind == "eviction"]


def until(fact: Callable[[], object], seconds: float = 20.0) -> None:
    """Wait until something is true; fail when it does not become true."""
    deadline = time.monotonic() + seconds
    while not fact():
        if time.monotonic() > deadline:
            raise AssertionError(f"not true within {seconds} s")
        time.sleep(0.005)


@contextmanager
def opened(file: Path, wished: OutboxSettings | None = None) -> Iterator[Outbox]:
    outbox = Outbox.open(file, wished or settings())
    try:
        yield outbox
    finally:
        outbox.close()
