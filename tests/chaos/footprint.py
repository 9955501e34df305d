"""What a process takes: memory, file descriptors, threads, as the kernel tells it."""

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from hil.loopback.children import RigError

SPARE: Final = 2
"""File descriptors and threads that may come and go."""
POOL_THREADS: Final = min(32, (os.cpu_count() or 1) + 4)
"""The threads of asyncio's own pool, which are made one by one as they are needed, and stay."""


@dataclass(frozen=True, slots=True)
class Footprint:
    """One look at a process."""

    rss_bytes: int
    fds: int
    threads: int

    @classmethod
    def of(cls, pid: int) -> "Footprint":
        """Look now.

        Raises:
            OSError: there is no such process.
        """
        process = Path("/proc") / str(pid)
        status = dict(line.split(":", 1) for line in (process / "status").read_text().splitlines())
        rss_kib = int(status["VmRSS"].split()[0])
        return cls(rss_kib * 1024, sum(1 for _ in (process / "fd").iterdir()), int(status["Threads"]))


def returns_to(
    pid: int,
    baseline: Footprint,
    *,
    growth_bytes: int,
    thread_spare: int = SPARE,
    fd_spare: int = SPARE,
    timeout_seconds: float = 10.0,
) -> Footprint:
    """Wait until a process takes what it took before.

    Raises:
        RigError: it still takes more when the time is over: more descriptors or threads than a few, or more memory.
    """
    deadline = time.monotonic() + timeout_seconds
    while True:
        now = Footprint.of(pid)
        over = {
            name: (was, seen)
            for name, was, seen, spare in (
                ("file descriptors", baseline.fds, now.fds, fd_spare),
                ("threads", baseline.threads, now.threads, thread_spare),
                ("bytes of memory", baseline.rss_bytes, now.rss_bytes, growth_bytes),
            )
            if seen > was + spare
        }
        if not over:
            return now
        if time.monotonic() > deadline:
            raise RigError(
                f"process {pid} did not come back to what it took before (before, now): {over}; open: {_open(pid)}"
            )
        time.sleep(0.1)


def _open(pid: int) -> list[str]:
    folder = Path("/proc") / str(pid) / "fd"
    return sorted(str(link.readlink()) for link in folder.iterdir() if link.is_symlink())
