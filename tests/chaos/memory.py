"""A group of processes that share a limit of memory, and a neighbour that leaks; cgroup v1 and v2."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pytest

from tests.simulators.waiting import wait_for

V1: Final = Path("/sys/fs/cgroup/memory")
V2: Final = Path("/sys/fs/cgroup")

_LEAK: Final = """
import sys, time
kept = []
while True:
    kept.append(bytearray(b"x") * (1 << 20))
    time.sleep(float(sys.argv[1]))
"""


class MemoryGroup:
    """Knob: `limit`. Made by `memory_group`."""

    def __init__(self, directory: Path, limit_name: str) -> None:
        self._directory = directory
        self._limit_name = limit_name

    @property
    def prefix(self) -> list[str]:
        """What stands before a command that is to run inside."""
        return ["sh", "-c", f'echo $$ > {self._directory / "cgroup.procs"}; exec "$@"', "sh"]

    def limit(self, size_bytes: int) -> None:
        """Let the processes inside have so much memory together, and no swap in its place."""
        (self._directory / self._limit_name).write_text(str(size_bytes))

    def kills(self) -> int:
        """Return how many processes were killed for memory."""
        for name in ("memory.events", "memory.oom_control"):
            file = self._directory / name
            if file.exists():
                fields = dict(line.split() for line in file.read_text().splitlines())
                return int(fields.get("oom_kill", 0))
        return 0


@contextmanager
def memory_group() -> Iterator[MemoryGroup]:
    """Make a group, and remove it when everything in it has ended."""
    name = f"sluice-chaos-{os.getpid()}"
    is_v1 = (V1 / "memory.limit_in_bytes").exists()
    directory = (V1 if is_v1 else V2) / name
    group = MemoryGroup(directory, "memory.limit_in_bytes" if is_v1 else "memory.max")
    try:
        directory.mkdir()
        group.limit(1 << 34)
    except OSError as error:
        if directory.exists():
            directory.rmdir()
        pytest.skip(f"no memory cgroup can be made here: {error}")
    try:
        yield group
    finally:
        wait_for(lambda: not (directory / "cgroup.procs").read_text(), seconds=10, what="the group is empty")
        directory.rmdir()


@contextmanager
def leak(group: MemoryGroup, seconds_a_mib: float = 0.005) -> Iterator[subprocess.Popen[bytes]]:
    """Run a neighbour that takes more and more."""
    command = [*group.prefix, sys.executable, "-c", _LEAK, str(seconds_a_mib)]
    process = subprocess.Popen(["setpriv", "--pdeathsig", "KILL", "--", *command])
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def doom(pid: int) -> None:
    """Let a process be the first that the kernel kills; to spare one would take a right that not every root has."""
    Path(f"/proc/{pid}/oom_score_adj").write_text("1000")
