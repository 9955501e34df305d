"""Reads how the machine is: clock, disk, memory, temperature, load. Every path can be set, so tests bring their own."""

import ctypes
import functools
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

EARLIEST_SANE_NS: Final = 1_767_225_600_000_000_000
"""2026-01-01: a clock before this was never set since the program was made."""
LATEST_SANE_NS: Final = 4_102_444_800_000_000_000
"""2100-01-01."""

_STA_UNSYNC: Final = 0x0040  # adjtimex(2)
_TIME_ERROR: Final = 5


@dataclass(frozen=True, slots=True)
class Disk:
    """The file system under a directory."""

    total_bytes: int
    free_bytes: int
    free_inodes_share: float | None  # None: the file system does not count them

    @property
    def free_share(self) -> float:
        """The free part, 0 to 1."""
        return self.free_bytes / self.total_bytes if self.total_bytes else 0.0


@dataclass(frozen=True, slots=True)
class Memory:
    """Main memory, and how long tasks waited for it lately."""

    total_bytes: int
    available_bytes: int
    pressure_percent: float | None  # PSI `some avg60`; None: the kernel does not tell

    @property
    def available_share(self) -> float:
        """The available part, 0 to 1."""
        return self.available_bytes / self.total_bytes if self.total_bytes else 0.0


@dataclass(frozen=True, slots=True)
class Temperature:
    """The warmest thermal zone."""

    zone: str
    celsius: float
    critical_celsius: float | None


@dataclass(frozen=True, slots=True)
class Load:
    """Tasks that ran or waited, averaged over a minute."""

    per_minute: float
    processors: int


ClockState = Literal["synchronised", "free-running", "unknown"]


@dataclass(frozen=True, slots=True)
class Clock:
    """The wall clock."""

    now_ns: int
    state: ClockState

    @property
    def sane(self) -> bool:
        """Whether the year can be right."""
        return EARLIEST_SANE_NS <= self.now_ns < LATEST_SANE_NS


def disk(directory: Path) -> Disk:
    """Measure the file system that holds a directory, or would hold it once it is made.

    Raises:
        OSError: nothing of the path can be reached.
    """
    there = existing_part(directory)
    usage = shutil.disk_usage(there)
    status = os.statvfs(there)
    inodes = status.f_favail / status.f_files if status.f_files else None
    return Disk(usage.total, usage.free, inodes)


def existing_part(path: Path) -> Path:
    """Return the path or its nearest parent that is there."""
    here = path.absolute()
    while not here.exists() and here != here.parent:
        here = here.parent
    return here


def memory(proc: Path = Path("/proc")) -> Memory | None:
    """Read main memory; None where the kernel does not tell."""
    figures: dict[str, int] = {}
    for line in _lines(proc / "meminfo"):
        name, _, rest = line.partition(":")
        words = rest.split()
        if words and words[0].isdecimal():
            figures[name] = int(words[0]) * 1024
    if "MemTotal" not in figures:
        return None
    available = figures.get("MemAvailable", figures.get("MemFree", 0))
    return Memory(figures["MemTotal"], available, _pressure(proc / "pressure" / "memory"))


def _pressure(file: Path) -> float | None:
    for line in _lines(file):
        if line.startswith("some "):
            for word in line.split():
                if word.startswith("avg60="):
                    return _number(word.removeprefix("avg60="))
    return None


def temperature(sys: Path = Path("/sys")) -> Temperature | None:
    """Read the warmest thermal zone; None on a machine without one."""
    zones = []
    for zone in sorted((sys / "class" / "thermal").glob("thermal_zone*")):
        milli = _number(_first(zone / "temp"))
        # Zones that are switched off report nonsense such as -274 degrees.
        if milli is not None and -60_000 < milli < 200_000:
            zones.append(Temperature(_first(zone / "type") or zone.name, milli / 1000, _critical(zone)))
    return max(zones, key=lambda zone: zone.celsius, default=None)


def _critical(zone: Path) -> float | None:
    for kind in zone.glob("trip_point_*_type"):
        if _first(kind) == "critical":
            milli = _number(_first(kind.with_name(kind.name.replace("_type", "_temp"))))
            return milli / 1000 if milli else None
    return None


def load() -> Load | None:
    """Read the load; None where the kernel does not tell."""
    try:
        return Load(os.getloadavg()[0], len(os.sched_getaffinity(0)))
    except OSError:
        return None


class _Timex(ctypes.Structure):
    """The beginning of `struct timex` (adjtimex(2)); the rest is padding, more than any platform needs."""

    _fields_ = (
        ("modes", ctypes.c_uint),
        ("offset", ctypes.c_long),
        ("freq", ctypes.c_long),
        ("maxerror", ctypes.c_long),
        ("esterror", ctypes.c_long),
        ("status", ctypes.c_int),
        ("rest", ctypes.c_byte * 256),
    )


@functools.cache  # each CDLL is classes of its own, and it is asked every second
def _adjtimex() -> Callable[..., int] | None:
    try:
        function: Callable[..., int] = ctypes.CDLL(None, use_errno=True).adjtimex
    except (OSError, AttributeError):
        return None
    return function


def kernel_clock_state() -> ClockState:
    """Ask the kernel whether a time service disciplines its clock; chrony, ntpd and timesyncd all tell it."""
    adjtimex = _adjtimex()
    if adjtimex is None:
        return "unknown"
    timex = _Timex()  # modes 0: read only, needs no privilege
    result = adjtimex(ctypes.byref(timex))
    if result < 0:
        return "unknown"
    return "free-running" if result == _TIME_ERROR or timex.status & _STA_UNSYNC else "synchronised"


def clock(now_ns: Callable[[], int] = time.time_ns, state: Callable[[], ClockState] = kernel_clock_state) -> Clock:
    """Read the wall clock and whether somebody keeps it right."""
    return Clock(now_ns(), state())


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return []


def _first(file: Path) -> str:
    return next(iter(_lines(file)), "").strip()


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
