"""The machine's own health as a sensor: there is one on every board, and it is always live."""

import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import structlog
from numpy.typing import NDArray

from gateway.config import HealthChannel, HealthSource
from gateway.errors import SourceLostError
from gateway.sources.base import ClosableSource, WallClock, block_size
from gateway.sources.pacing import polled_blocks
from gateway.values import SampleBlock

log = structlog.get_logger()

Reading = Callable[[], float]


class MachineHealth(ClosableSource):
    """Load, memory, pressure, temperature and disk of this machine.

    Units: `load` is the one-minute load average for each core; `memory_used`, `disk_used` and the pressures are
    fractions 0..1 (pressure: the share of the last ten seconds in which some task waited); `temperature` is that of
    the hottest thermal zone in °C. A machine without thermal zones has no channel `temperature`: the blocks have one
    column less, and the log says so. Without pressure information in the kernel a pressure is 0, and the log says so.
    """

    def __init__(
        self,
        name: str,
        settings: HealthSource,
        *,
        proc: Path = Path("/proc"),
        thermal: Path = Path("/sys/class/thermal"),
        disk: Path = Path("/"),
        wall_clock: WallClock = time.time_ns,
    ) -> None:
        """`proc`, `thermal`: where the kernel tells; `disk`: a path on the file system to watch."""
        super().__init__(name)
        self._settings = settings
        self._proc = proc
        self._thermal = thermal
        self._disk = disk
        self._wall_clock = wall_clock

    def captures(self) -> Iterator[SampleBlock]:
        """Yield blocks (n, channels), in the order of the configuration."""
        readings = [reading for channel in self._settings.channels if (reading := self._reading(channel))]
        if not readings:
            raise SourceLostError(
                f"source {self.name}: this machine has none of the channels {', '.join(self._settings.channels)}; "
                "choose others, e.g. load and memory_used"
            )

        def read(row: NDArray[np.float32]) -> bool:
            try:
                row[:] = [reading() for reading in readings]
            except (OSError, ValueError, IndexError, KeyError) as error:
                raise SourceLostError(
                    f"source {self.name}: the kernel does not tell its state any more: {error}; "
                    f"check that {self._proc} and {self._thermal} are mounted"
                ) from error
            return True

        rate_hz = self._settings.rate_hz
        yield from polled_blocks(
            self.name,
            read,
            rate_hz=rate_hz,
            shape=(block_size(rate_hz, None), len(readings)),
            closing=self._closing,
            drops=self._drops,
            wall_clock=self._wall_clock,
        )

    def _reading(self, channel: HealthChannel) -> Reading | None:
        match channel:
            case "load":
                return self._load
            case "memory_used":
                return self._memory_used
            case "memory_pressure":
                return self._pressure("memory")
            case "cpu_pressure":
                return self._pressure("cpu")
            case "temperature":
                return self._temperature()
            case "disk_used":
                return self._disk_used

    def _load(self) -> float:
        return float((self._proc / "loadavg").read_text().split()[0]) / (os.cpu_count() or 1)

    def _memory_used(self) -> float:
        fields = dict(line.split(":", 1) for line in (self._proc / "meminfo").read_text().splitlines() if ":" in line)
        total, available = (float(fields[key].split()[0]) for key in ("MemTotal", "MemAvailable"))
        return 1 - available / total

    def _pressure(self, resource: str) -> Reading:
        file = self._proc / "pressure" / resource
        if not _readable(file):
            log.warning("pressure_unknown", source=self.name, resource=resource, remedy="boot with psi=1; 0 until then")
            return lambda: 0.0
        # "some avg10=0.12 avg60=…": percent
        return lambda: float(file.read_text().split("avg10=", 1)[1].split()[0]) / 100

    def _temperature(self) -> Reading | None:
        zones = [zone / "temp" for zone in sorted(self._thermal.glob("thermal_zone*"))]
        zones = [zone for zone in zones if _readable(zone)]
        if not zones:
            log.warning("temperature_unknown", source=self.name, remedy="take `temperature` out of `channels`")
            return None

        def hottest() -> float:
            # One zone may be asleep (a powered-down radio) while the others tell.
            told = [zone.read_text() for zone in zones if _readable(zone)]
            if not told:
                raise OSError("no thermal zone answers")
            return max(float(text) for text in told) / 1000

        return hottest

    def _disk_used(self) -> float:
        usage = shutil.disk_usage(self._disk)
        return usage.used / usage.total


def _readable(file: Path) -> bool:
    try:
        file.read_text()
    except OSError:
        return False
    return True
