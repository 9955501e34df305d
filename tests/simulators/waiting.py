"""Waiting for something to become true, with a deadline."""

import time
from collections.abc import Callable


def wait_for(condition: Callable[[], object], *, seconds: float = 30.0, what: str = "what was waited for") -> None:
    """Wait until a condition holds; fail when it does not in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"{what}: not within {seconds} s"
        time.sleep(0.005)
