"""The whole way: a backlog drained through mosquitto until it is committed in the bridge's store."""

import tempfile
import time
from pathlib import Path
from typing import Any

from gateway.config import Outbox as OutboxSettings
from gateway.outbox.store import Outbox
from hil.loopback.rig import Rig, eventually
from hil.loopback.tally import tally_of
from tests.bench.outbox import entries

BACKLOG = 100_000


def drain(backlog: int = BACKLOG) -> dict[str, Any]:
    """Records a second from a backlog on disk to committed in the bridge, through a real broker."""
    sources = {"machine": {"type": "health", "rate_hz": 1.0}}
    pipelines = {"machine": {"source": "machine", "model": "process-anomaly"}}
    with tempfile.TemporaryDirectory() as directory, Rig(Path(directory) / "rig", sources, pipelines) as rig:
        outbox = Outbox.open(rig.outbox_file, OutboxSettings())
        for first in range(0, backlog, 1000):
            outbox.put(entries(first, 1000))
        outbox.close()
        rig.start_broker()
        rig.start_bridge()
        started = time.perf_counter()
        rig.start_gateway()
        first_committed: list[float] = []

        def done() -> bool:
            committed = tally_of(rig).committed
            if committed and not first_committed:
                first_committed.append(time.perf_counter() - started)
            return committed >= backlog

        eventually(done, "the backlog is in the bridge", 300.0)
        seconds = time.perf_counter() - started
        counts = tally_of(rig)
        rig.stop()
    moving = seconds - first_committed[0]
    return {
        "unit": "records/s",
        "backlog": backlog,
        "seconds_from_start_of_the_gateway": round(seconds, 2),
        "first_committed_after": round(first_committed[0], 2),
        "rate": round(backlog / moving),
        "lost": counts.lost,
        "duplicates": counts.duplicates,
    }
