"""How long a fresh critical record takes to become durable while a mass acknowledgement is carried out.

`python -m tests.bench.critical_insert [--rows 200000] [--rounds 3]` prints one line of JSON a round: percentiles of
`put` in milliseconds, on the idle store and during the deletion, and how long the deletion took.
"""

import argparse
import json
import statistics
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from gateway.config import ClassQuota
from gateway.config import Outbox as OutboxSettings
from gateway.outbox.store import Outbox
from gateway.values import Entry
from gateway.wire.messages import Notice

PAUSE_SECONDS = 0.002
"""Between two critical records: alarms come one by one."""


@dataclass(frozen=True)
class Figures:
    """One situation."""

    records: int
    p50_ms: float
    p95_ms: float
    p99_ms: float
    max_ms: float


@dataclass(frozen=True)
class Round:
    """One mass acknowledgement."""

    rows: int
    idle: Figures
    deleting: Figures
    deletion_seconds: float


def entry(record_class: str, number: int) -> Entry:
    """Make a record of about 300 bytes."""
    body = Notice(code=f"n{number}", severity="info", detail="x" * 200, at="2026-01-01T00:00:00.000Z")
    return Entry(record_class, "notice", body, number)  # type: ignore[arg-type]  # classes by name


def figures(seconds: list[float]) -> Figures:
    """Sum latencies up."""
    cuts = statistics.quantiles(seconds, n=100)
    in_ms = [round(1000 * value, 3) for value in (cuts[49], cuts[94], cuts[98], max(seconds))]
    return Figures(len(seconds), *in_ms)


def one_put(outbox: Outbox, number: int) -> float:
    """Store one critical record; return the seconds it took."""
    began = time.perf_counter()
    outbox.put([entry("critical", number)])
    took = time.perf_counter() - began
    time.sleep(PAUSE_SECONDS)
    return took


def measure(directory: Path, rows: int) -> Round:
    """Fill a store, acknowledge everything at once, and store critical records meanwhile."""
    quota = ClassQuota(max_bytes=1 << 32, max_rows=10**8)
    settings = OutboxSettings(
        ballast_bytes=0, classes={"critical": quota, "event": quota, "measure": quota, "bulk": quota}
    )
    outbox = Outbox.open(directory / "outbox.db", settings)
    try:
        for first in range(0, rows, 1000):
            outbox.put([entry("event", number) for number in range(first, first + 1000)])
        idle = [one_put(outbox, number) for number in range(300)]
        began = time.perf_counter()
        outbox.acknowledge("event", outbox.epoch, rows)
        deleting: list[float] = []
        while outbox.stats().classes["event"].rows:
            deleting.append(one_put(outbox, len(deleting)))
        took = time.perf_counter() - began
        # What the deletion left in the WAL is moved right after it; that is part of its price.
        deleting += [one_put(outbox, len(deleting)) for _ in range(100)]
        return Round(rows, figures(idle), figures(deleting), round(took, 3))
    finally:
        outbox.close()


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--directory", type=Path, help="on the disk to be measured; default: the temporary directory")
    arguments = parser.parse_args()
    for _ in range(arguments.rounds):
        with tempfile.TemporaryDirectory(dir=arguments.directory) as directory:
            print(json.dumps(asdict(measure(Path(directory), arguments.rows))), flush=True)


if __name__ == "__main__":
    main()
