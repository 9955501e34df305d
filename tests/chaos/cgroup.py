"""A limit on what processes may have of the processor, by a control group of version 1 or 2."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

ROOT: Final = Path("/sys/fs/cgroup")
PERIOD_MICROSECONDS: Final = 100_000


def missing() -> str:
    """Say why there can be no limit here; "" if there can."""
    if os.geteuid() != 0:
        return "control groups need root"
    if (ROOT / "cpu" / "cpu.cfs_quota_us").exists() or (ROOT / "cpu" / "cgroup.procs").exists():
        return ""
    if (ROOT / "cgroup.subtree_control").exists() and "cpu" in (ROOT / "cgroup.controllers").read_text().split():
        return ""
    return f"no cpu controller below {ROOT}"


@contextmanager
def cpu_quota(pid: int, percent: float) -> Iterator[None]:
    """Let a process and its threads have this share of one processor.

    Raises:
        OSError: the group cannot be made; `missing` tells beforehand.
    """
    quota = int(PERIOD_MICROSECONDS * percent / 100)
    first = (ROOT / "cpu" / "cgroup.procs").exists()
    top = ROOT / "cpu" if first else ROOT
    if not first:
        (top / "cgroup.subtree_control").write_text("+cpu")
    group = top / f"sluice-{os.getpid()}"
    group.mkdir()
    home = _home_of(pid, "cpu" if first else "")
    try:
        if first:
            (group / "cpu.cfs_period_us").write_text(str(PERIOD_MICROSECONDS))
            (group / "cpu.cfs_quota_us").write_text(str(quota))
        else:
            (group / "cpu.max").write_text(f"{quota} {PERIOD_MICROSECONDS}")
        (group / "cgroup.procs").write_text(str(pid))
        yield
    finally:
        for member in (group / "cgroup.procs").read_text().split():
            (top / home / "cgroup.procs").write_text(member)
        group.rmdir()


def _home_of(pid: int, controller: str) -> str:
    """Return the group a process is in, below the top of its hierarchy."""
    for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines():
        _, names, path = line.split(":", 2)
        if controller in names.split(","):
            return path.lstrip("/")
    return ""
