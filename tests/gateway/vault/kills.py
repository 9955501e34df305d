"""Kills a process in front of chosen system calls, one after the other, until it gets through."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

VICTIM = Path(__file__).with_name("vault_victim.py")
DURABLE_CALLS = ("fsync", "rename", "mkdir", "unlink", "unlinkat", "rmdir")
"""Where the state on disk changes, or becomes durable."""


def missing() -> str:
    """Say what is lacking; empty when nothing."""
    return "" if shutil.which("strace") else "strace is not installed: apt-get install strace"


def victim(operation: str, root: Path, tcti: str = "") -> list[str]:
    """Return the command that does one operation on the vault below `root`; without a TPM at level software."""
    return [sys.executable, str(VICTIM), operation, str(root), tcti]


def environment() -> dict[str, str]:
    """Return the environment of a victim: it finds this repository, and writes nothing but what it is there for."""
    return os.environ | {"PYTHONDONTWRITEBYTECODE": "1", "PYTHONPATH": str(Path(__file__).parents[3])}


def run_killed_at(command: Sequence[str], call: str, number: int) -> bool:
    """Run a command and kill it in front of its n-th call of a kind in any thread; False if it got through."""
    inject = ["strace", "-f", "-qqq", "-o", "/dev/null", "-e", f"trace={call}"]
    inject += ["-e", f"inject={call}:signal=SIGKILL:when={number}"]
    run = subprocess.run(
        [*inject, *command], env=environment(), capture_output=True, text=True, check=False, timeout=120
    )
    if run.returncode == 0:
        return False
    assert run.returncode in (-signal.SIGKILL, 128 + signal.SIGKILL), run.stderr
    return True


def kill_points(
    command: Sequence[str],
    calls: Sequence[str] = DURABLE_CALLS,
    limit: int = 100,
    *,
    prepare: Callable[[], object] = lambda: None,
) -> Iterator[str]:
    """Yield the name of each point after the command was killed there; the caller looks at what it left.

    prepare: called before each run, also the one after one that got through.
    """
    for call in calls:
        for number in range(1, limit):
            prepare()
            if not run_killed_at(command, call, number):
                break
            yield f"{call} {number}"
        else:
            raise AssertionError(f"{call}: more than {limit} times")
