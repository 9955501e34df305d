"""A start with a backlog: what a million rows on disk cost the first inference and the first new event."""

import sqlite3
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any, Final

import numpy as np

from hil.loopback.rig import Rig
from tests.bench.device import loud_sensors
from tests.bench.outbox import fill
from tests.bench.table import row

ROUNDS: Final = 3
AIM_SECONDS: Final = 0.25
"""What a backlog may add: less than two starts of the same gateway differ by."""
PATIENCE_SECONDS: Final = 60.0


def start_with_backlog(rows: int = 1_000_000) -> dict[str, Any]:
    """Seconds from the start of the gateway's process, with rows waiting and with none, in turn.

    Nothing answers at the broker's port, as after weeks offline: all rows are still there at the end.
    """
    seconds: dict[str, list[tuple[float, float]]] = {"none": [], "backlog": []}
    with tempfile.TemporaryDirectory() as directory:
        folder = Path(directory)
        rigs = {name: _rig(folder / name) for name in seconds}
        for name, rig in rigs.items():
            _start(rig)  # the first of all seals the model and makes the store
            rig.stop()
            if name == "backlog":
                fill(rig.outbox_file, rows)
        for _ in range(ROUNDS):
            for name, rig in rigs.items():
                seconds[name].append(_start(rig))
                rig.stop()
        left = _newest(rigs["backlog"].outbox_file)[0]
    figures = {
        name: {
            "first_inference": round(float(np.median([first for first, _ in runs])), 3),
            "first_event": round(float(np.median([event for _, event in runs])), 3),
        }
        for name, runs in seconds.items()
    }
    told = []
    for what, key in (("first inference", "first_inference"), ("first new event on disk", "first_event")):
        with_rows, without = figures["backlog"][key], figures["none"][key]
        told.append(
            row(
                f"start of the gateway's process to its {what}, {rows:,} rows waiting",
                f"**{with_rows:.2f} s** (with none: {without:.2f} s)",
                aim=f"as with none, within {AIM_SECONDS} s",
                met=with_rows <= without + AIM_SECONDS,
            )
        )
    return {"unit": "s", "rounds": ROUNDS, "waiting": rows, "left": left, **figures, "rows": told}


def _rig(directory: Path) -> Rig:
    directory.mkdir()
    sources, pipelines = loud_sensors(directory, 1)
    # Room for all of them: making room at the first new event would be another measurement.
    quota = {"event": {"max_bytes": 4 * 1024**3, "max_rows": 2_000_000}}
    return Rig(directory / "rig", sources, pipelines, gateway={"outbox": {"classes": quota}})


def _start(rig: Rig) -> tuple[float, float]:
    """Start the gateway alone; return the seconds until its first inference, and until its first event is on disk."""
    last = _newest(rig.outbox_file)[1] if rig.outbox_file.exists() else 0
    began = time.monotonic()
    rig.gateway.start()

    def has_inferred() -> bool:
        status = rig.gateway_status()
        return status is not None and any(each["inferences"] for each in status["pipelines"])

    def has_stored() -> bool:
        return rig.outbox_file.exists() and _newest(rig.outbox_file)[1] > last

    at: dict[str, float] = {}
    waited: dict[str, Callable[[], bool]] = {"inference": has_inferred, "event": has_stored}
    while len(at) < len(waited):
        for name, condition in waited.items():
            if name not in at and condition():
                at[name] = time.monotonic() - began
        if time.monotonic() - began > PATIENCE_SECONDS:
            raise RuntimeError(f"the gateway has not begun within {PATIENCE_SECONDS:.0f} s: {rig.gateway.tail(5)}")
        time.sleep(0.005)
    return at["inference"], at["event"]


def _newest(file: Path) -> tuple[int, int]:
    """Return how many events wait, and the highest number of one."""
    try:
        with closing(sqlite3.connect(f"file:{file}?mode=ro", uri=True, timeout=5.0)) as db:
            ends = "SELECT (SELECT min(seq) FROM records_event), (SELECT max(seq) FROM records_event)"
            low, high = db.execute(ends).fetchone()
    except sqlite3.OperationalError:  # it is being made
        return 0, 0
    return (0, 0) if high is None else (high - low + 1, high)
