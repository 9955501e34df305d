"""What updates of the system need of the program around them."""

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from gateway.osupdate.figures import OsMetrics
from gateway.osupdate.plan import Health
from gateway.osupdate.release import SystemRelease

Severity = Literal["info", "warning", "error"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Around:
    """What updates of the system need of the program around them. Everything may be called from any thread."""

    boot_id: str
    release: SystemRelease | None
    health: Callable[[], Health | None]
    flushed: Callable[[], bool]  # whether the cloud has everything
    window_open: Callable[[], bool]
    counter: Callable[[], int | None]  # of the vault
    approval: Callable[[str, str], str]  # of a slot and its PCR 11: why the vault would not open there, "" if it would
    connects: Callable[[], int]  # how often the way to the bridge has been made
    note: Callable[[str, Severity, str], None]  # code, severity, words, for the cloud
    metrics: OsMetrics
    outgrown: Callable[[str], str] = lambda _slot: ""  # why the image in a slot cannot open the vault any more
    wall_ns: Callable[[], int] = time.time_ns
    monotonic: Callable[[], float] = time.monotonic
    draw: Callable[[], float] = random.random
