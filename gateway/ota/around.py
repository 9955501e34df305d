"""What updates of models need: of the program around them, of the repository, and of each other."""

import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, Protocol

from gateway.config import Ota
from gateway.ota.bay import Bay
from gateway.ota.figures import OtaMetrics
from gateway.ota.floor import Floor
from gateway.ota.install import Installer, Source
from gateway.ota.journal import Journal
from gateway.wire.messages import Twin

Severity = Literal["info", "warning", "error"]


class Repository(Source, Protocol):
    """What this needs of `gateway.ota.fetch.Repository`."""

    def stop(self) -> None: ...
    def resume(self) -> None: ...
    def establish(self, fencing_token: int) -> None: ...
    @property
    def stale_since_ns(self) -> int | None: ...


class System(Protocol):
    """Updates of the system itself (`gateway.osupdate`), which come and are told in the same twins."""

    def wish(self, twin: Twin) -> None:
        """Take what a desired twin, whose fence was looked at, says of the system; durable. Raises OtaError."""
        ...

    def report(self, twin: Twin) -> Twin:
        """Add what is to be said of the system to a reported twin."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Around:
    """What updates need of the program around them. Everything may be called from any thread."""

    there: Callable[[], list[tuple[str, str]]]  # name and version of all releases here, ascending by version
    report: Callable[[bytes], None]  # publishes `twin/reported`, retained
    connects: Callable[[], int]  # how often the way to the bridge has been made
    renew: Callable[[], None]  # asks for content keys, and the certificate, now
    note: Callable[[str, Severity, str], None]  # code, severity, words, for the cloud
    metrics: OtaMetrics
    attested: Callable[[], int | None] = lambda: (
        None
    )  # how often the bridge has attested this device; None: it does not
    system: System | None = None  # None: what is assigned of kind `os` is refused as a pipeline that is not here
    boot_id: str = ""  # of the machine's boot; another one means that all of it was down
    wall_ns: Callable[[], int] = time.time_ns
    known_ns: Callable[[], int] = time.time_ns  # the time as far as the bridge has told it, UTC
    monotonic: Callable[[], float] = time.monotonic
    draw: Callable[[], float] = random.random


@dataclass(frozen=True, slots=True)
class Means:
    """What the parts of the agent work with."""

    settings: Ota
    journal: Journal
    repository: Repository
    installer: Installer
    around: Around
    floor: Floor
    bays: dict[str, Bay] = field(default_factory=dict)  # by pipeline; filled before anything runs
