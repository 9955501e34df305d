"""Gives the outbox time to empty before the gateway stops."""

import asyncio
import time
from collections.abc import Callable
from typing import Final

from gateway.metering.meter import Meter
from gateway.recorder import Recorder

_LOOK_EVERY_SECONDS: Final = 0.05


async def drain(
    recorder: Recorder, meter: Meter, at_most_seconds: float, monotonic: Callable[[], float] = time.monotonic
) -> bool:
    """Wait until the cloud has everything; False when it has not in time, or what is left waits on purpose."""
    deadline = monotonic() + at_most_seconds
    while monotonic() < deadline:
        if recorder.empty:
            return True
        if _only_held_left(recorder, meter):
            return False
        await asyncio.sleep(_LOOK_EVERY_SECONDS)
    return False


def _only_held_left(recorder: Recorder, meter: Meter) -> bool:
    """Tell whether all that is left waits for a budget or a window, which this stop will not outlast."""
    held, stats = meter.held(), recorder.stats()
    return (
        bool(held)
        and not stats.queued_entries
        and not any(figures.rows for name, figures in stats.classes.items() if name not in held)
    )
