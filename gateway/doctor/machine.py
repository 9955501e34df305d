"""Checks of the machine itself: clock, disk, memory, temperature, versions."""

import errno
import os
import sqlite3
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from gateway.config import Config
from gateway.doctor.diagnosis import Diagnosis
from gateway.health import probes
from gateway.outbox.stranger import stranger_at

_MIB: Final = 1024 * 1024
_SQLITE_MAGIC: Final = b"SQLite format 3\0"
_FSYNC_ROUNDS: Final = 16
_NO_ROOM: Final = frozenset({errno.ENOSPC, errno.EDQUOT})
_SLOW_FSYNC_SECONDS: Final = 0.2
"""Measured on SD cards that stall; a commit takes two, and everything critical waits for it."""

WAL_RESET_FIXED: Final = (3, 51, 3)
"""SQLite before this can damage a WAL database that two connections write and checkpoint at once."""


def check_clock(clock: probes.Clock) -> Diagnosis:
    """Judge the wall clock: certificates and events both depend on it."""
    shown = datetime.fromtimestamp(clock.now_ns // 1_000_000_000, UTC).isoformat() if clock.sane else ""
    if not clock.sane:
        seconds = clock.now_ns // 1_000_000_000
        remedy = "set the clock: `timedatectl set-time`, a time server, or a new battery for the clock chip"
        return Diagnosis("clock", "failed", f"{seconds} s since 1970 is no sensible time", remedy)
    if clock.state == "free-running":
        remedy = "switch a time service on: `timedatectl set-ntp true`, or chrony"
        return Diagnosis("clock", "warning", f"{shown}, and nobody keeps it right", remedy)
    known = "kept right by a time service" if clock.state == "synchronised" else "the kernel does not tell who keeps it"
    return Diagnosis("clock", "ok", f"{shown}, {known}")


def check_disk(config: Config) -> Iterator[Diagnosis]:
    """Judge the place of the outbox: room, rights, and how long a sync takes."""
    directory = config.outbox.file.parent if config.outbox.file else config.gateway.state_directory
    try:
        disk = probes.disk(directory)
    except OSError as error:
        yield Diagnosis("disk space", "failed", f"{directory}: {error.strerror}", "mount it, or change the directory")
        return
    yield _space(config, directory, disk)
    yield _writing(directory)


def _space(config: Config, directory: Path, disk: probes.Disk) -> Diagnosis:
    wanted = sum(quota.max_bytes for quota in config.outbox.classes.values()) + config.outbox.ballast_bytes
    found = f"{disk.free_bytes // _MIB} MiB of {disk.total_bytes // _MIB} MiB free at {directory}"
    if disk.free_bytes < 64 * _MIB or (disk.free_inodes_share is not None and disk.free_inodes_share < 0.01):
        return Diagnosis("disk space", "failed", found, "make room: the outbox would be full almost at once")
    if disk.free_bytes < wanted:
        message = f"{found}, the quotas of the outbox add up to {wanted // _MIB} MiB"
        return Diagnosis("disk space", "warning", message, "make room, or lower outbox.classes.*.max_bytes")
    return Diagnosis("disk space", "ok", found)


def _writing(directory: Path) -> Diagnosis:
    remedy = f"make it, and give it to the gateway's user: install -d -o sluice -m 0700 {directory}"
    if not directory.is_dir():
        parent = probes.existing_part(directory)
        if os.access(parent, os.W_OK):
            return Diagnosis("disk writing", "skipped", f"{directory} is not there yet; `gateway run` will make it")
        return Diagnosis("disk writing", "failed", f"{directory} is not there and cannot be made", remedy)
    try:
        median, slowest = fsync_seconds(directory)
    except OSError as error:
        if error.errno in _NO_ROOM:
            remedy = "make room on its file system: `df` and `du -x` show what fills it"
        return Diagnosis("disk writing", "failed", f"{directory}: {error.strerror}", remedy)
    found = f"a sync takes {median * 1000:.1f} ms (median), {slowest * 1000:.1f} ms at most"
    if median > _SLOW_FSYNC_SECONDS:
        return Diagnosis("disk writing", "warning", found, "use a faster medium: each commit waits for two of these")
    return Diagnosis("disk writing", "ok", found)


def fsync_seconds(directory: Path) -> tuple[float, float]:
    """Measure how long it takes to make 4 KiB durable: median and maximum of a few rounds.

    Raises:
        OSError: the directory cannot be written.
    """
    taken = []
    with tempfile.NamedTemporaryFile(dir=directory, prefix=".sluice-doctor-") as file:
        for _ in range(_FSYNC_ROUNDS):
            started = time.monotonic_ns()
            file.write(b"\0" * 4096)
            file.flush()
            os.fdatasync(file.fileno())
            taken.append((time.monotonic_ns() - started) / 1e9)
    return statistics.median(taken), max(taken)


def check_memory(memory: probes.Memory | None) -> Diagnosis:
    """Judge main memory."""
    if memory is None:
        return Diagnosis("memory", "skipped", "the kernel does not tell")
    found = f"{memory.available_bytes // _MIB} MiB of {memory.total_bytes // _MIB} MiB available"
    if memory.pressure_percent is not None:
        found += f", tasks waited for memory {memory.pressure_percent:g} % of the last minute"
    if memory.available_bytes < 96 * _MIB or (memory.pressure_percent or 0) > 20:
        return Diagnosis("memory", "warning", found, "stop what else runs, or run fewer pipelines")
    return Diagnosis("memory", "ok", found)


def check_temperature(temperature: probes.Temperature | None) -> Diagnosis:
    """Judge the warmest thermal zone."""
    if temperature is None:
        return Diagnosis("temperature", "skipped", "this machine has no thermal zone")
    found = f"{temperature.celsius:.0f} °C at {temperature.zone}"
    limit = min(temperature.critical_celsius or 95.0, 95.0)
    if temperature.celsius >= limit - 10:
        return Diagnosis("temperature", "warning", f"{found}, the limit is {limit:.0f} °C", "improve the cooling")
    return Diagnosis("temperature", "ok", found)


def check_load(load: probes.Load | None) -> Diagnosis:
    """Judge how busy the processors are."""
    if load is None:
        return Diagnosis("load", "skipped", "the kernel does not tell")
    found = f"{load.per_minute:.1f} on {load.processors} processors"
    if load.per_minute > 2 * load.processors:
        return Diagnosis("load", "warning", found, "something keeps the machine busy: see `top`")
    return Diagnosis("load", "ok", found)


def check_versions(
    python: tuple[int, int] = sys.version_info[:2], sqlite: tuple[int, ...] = sqlite3.sqlite_version_info
) -> Iterator[Diagnosis]:
    """Judge the versions of Python and SQLite."""
    shown = ".".join(map(str, python))
    if (3, 11) <= python <= (3, 13):
        yield Diagnosis("python", "ok", shown)
    else:
        yield Diagnosis("python", "failed", shown, "use Python 3.11, 3.12 or 3.13")
    shown = ".".join(map(str, sqlite))
    if sqlite >= WAL_RESET_FIXED:
        yield Diagnosis("sqlite", "ok", shown)
    else:
        found = f"{shown}, from before the fix of the WAL-reset bug (3.51.3)"
        remedy = (
            "let no other program write or checkpoint the outbox while the gateway runs; the gateway itself is safe"
        )
        yield Diagnosis("sqlite", "warning", found, remedy)


def check_outbox(config: Config) -> Diagnosis:
    """Look whether the outbox is a database, without opening it: a running gateway must stay its only user."""
    file = config.outbox.file or config.gateway.state_directory / "outbox.db"
    stranger = stranger_at(file)
    if stranger is not None:
        what, remedy = stranger
        return Diagnosis("outbox", "failed", f"{file}: {what}; `gateway run` will refuse it", remedy)
    if not file.exists():
        return Diagnosis("outbox", "skipped", f"{file} is not there yet; `gateway run` will make it")
    try:
        with file.open("rb") as stream:
            begins = stream.read(len(_SQLITE_MAGIC))
        size = file.stat().st_size
    except OSError as error:
        return Diagnosis("outbox", "failed", f"{file}: {error.strerror}", "give it to the gateway's user")
    if size and begins != _SQLITE_MAGIC:
        remedy = "start the gateway: it puts a damaged store aside and begins a new one"
        return Diagnosis("outbox", "failed", f"{file} is not a database", remedy)
    return Diagnosis("outbox", "ok", f"{file}: {size / _MIB:.1f} MiB")
