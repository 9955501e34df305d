"""The whole way: a backlog drained through mosquitto until it is committed in the bridge's store."""

import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gateway.config import Outbox as OutboxSettings
from gateway.outbox.store import Outbox
from hil.loopback.rig import Rig, eventually
from hil.loopback.tally import tally_of
from tests.bench.echo import echo_pipeline, ticking, write_echo
from tests.bench.figures import percentiles
from tests.bench.outbox import entries
from tests.bench.table import row
from tests.bench.watching import Watch, events_of

BACKLOG = 200_000
ROUNDS = 3
CRITICAL_HZ = 200.0
ENOUGH = 1000
"""A 99th percentile has at least ten values above it only from so many on."""
AT_MOST_ROUNDS = 8
AIM_RATE = 20_000
AIM_CRITICAL_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class _Round:
    rate: float
    first_committed_seconds: float
    critical_seconds: list[float]
    lost: int
    duplicates: int


def drain(backlog: int = BACKLOG) -> dict[str, Any]:
    """Records a second from a backlog on disk to committed in the bridge, through a real broker.

    Meanwhile a pipeline makes critical records; each counts from the instant its sample was due, so a pipeline that
    is held up by the drain counts too. At least `ROUNDS`, more until enough critical records stand behind the p99.
    """
    rounds: list[_Round] = []
    while len(rounds) < ROUNDS or (sum(len(r.critical_seconds) for r in rounds) < ENOUGH < AT_MOST_ROUNDS * ENOUGH):
        if len(rounds) == AT_MOST_ROUNDS:
            break
        with tempfile.TemporaryDirectory() as directory:
            rounds.append(_drain_once(Path(directory), backlog))
    rates = sorted(each.rate for each in rounds)
    rate = statistics.median(rates)
    critical = percentiles([seconds for each in rounds for seconds in each.critical_seconds])
    lost, duplicates = sum(each.lost for each in rounds), sum(each.duplicates for each in rounds)
    count, p99 = critical["count"], critical["p99"]
    return {
        "unit": "records/s",
        "backlog": backlog,
        "rounds": len(rounds),
        "rate": round(rate),
        "rate_min": round(rates[0]),
        "rate_max": round(rates[-1]),
        "first_committed_after_seconds": [round(each.first_committed_seconds, 2) for each in rounds],
        "critical_seconds": critical,
        "lost": lost,
        "duplicates": duplicates,
        "rows": [
            row(
                f"backlog of {backlog:,} records on disk until committed in the bridge's SQLite, through mosquitto",
                f"**{rate:,.0f} records/s** ({rates[0]:,.0f} to {rates[-1]:,.0f} in {len(rounds)} rounds)",
                aim=f"≥ {AIM_RATE:,}/s",
                met=rate >= AIM_RATE,
            ),
            row(
                f"fresh critical records meanwhile, {CRITICAL_HZ:.0f}/s: sample due until committed in the bridge",
                f"p50 {critical['p50']:.3f} s, **p99 {p99:.3f} s**, max {critical['max']:.3f} s of {count:,}",
                aim=f"p99 ≤ {AIM_CRITICAL_SECONDS:g} s",
                met=p99 <= AIM_CRITICAL_SECONDS and count >= ENOUGH,
            ),
            row(
                "lost, and stored twice, in all rounds",
                f"{lost}, {duplicates}",
                aim="0, 0",
                met=lost == duplicates == 0,
            ),
        ],
    }


def _drain_once(folder: Path, backlog: int) -> _Round:
    rig = Rig(
        folder / "rig",
        {"alarm": ticking(folder, CRITICAL_HZ)},
        {"alarm": echo_pipeline("alarm", "critical")},
        gateway={"models": {"directories": [str(write_echo(folder / "models"))]}},
    )
    database = folder / "rig" / "bridge" / "bridge.db"
    with rig, Watch(database, "event") as events, Watch(database, "critical") as critical:
        outbox = Outbox.open(rig.outbox_file, OutboxSettings())
        for first in range(0, backlog, 1000):
            outbox.put(entries(first, 1000))
        outbox.close()
        rig.start_broker()
        rig.start_bridge()
        started_ns = time.time_ns()
        rig.start_gateway()
        eventually(lambda: events.highest >= backlog, "the backlog is in the bridge", 300.0)
        done_ns = _known(events.committed_at(backlog))
        first_ns = _known(events.first_after(started_ns))
        rig.gateway.stop(60.0)
        eventually(lambda: tally_of(rig).lost == 0, "everything arrived")
        counts = tally_of(rig)
        rig.stop()
        made = [(seq, event.captured_at_ns) for seq, event in events_of(database, "critical") if event.phase != "end"]
        fresh = [(_known(critical.committed_at(seq)) - at) / 1e9 for seq, at in made if first_ns <= at <= done_ns]
    return _Round(
        rate=backlog / ((done_ns - first_ns) / 1e9),
        first_committed_seconds=(first_ns - started_ns) / 1e9,
        critical_seconds=fresh,
        lost=counts.lost,
        duplicates=counts.duplicates,
    )


def _known(at_ns: int | None) -> int:
    assert at_ns is not None
    return at_ns
