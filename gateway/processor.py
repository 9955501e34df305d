"""What the machine's processors have no time for."""

from pathlib import Path
from typing import Final

_SCHEDSTAT: Final = Path("/proc/thread-self/schedstat")


def waited_ns() -> int:
    """Return how long the calling thread has waited for a processor so far, in nanoseconds.

    0 where the kernel does not count it. See proc_pid_schedstat(5).
    """
    try:
        return int(_SCHEDSTAT.read_bytes().split()[1])
    except (OSError, ValueError, IndexError):
        return 0
