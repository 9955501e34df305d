"""SIGHUP: a request to read the configuration again, unless it means that the terminal is gone.

Its default action ends the process, and systemd takes that for a clean end, after which nothing starts again. So one
that comes before the handler is there, or between two lives of the process, is kept until it is.
"""

import asyncio
import signal
import sys
from collections.abc import Callable


def hold() -> None:
    """Keep what comes from now on, across `exec` too, for `listen`. Belongs to the main thread."""
    if _is_request():
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})


def listen(loop: asyncio.AbstractEventLoop, asked: Callable[[], None]) -> None:
    """Call on each request, those that were held included; where it is no request, leave it as it is."""
    if _is_request():
        loop.add_signal_handler(signal.SIGHUP, asked)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGHUP})


def _is_request() -> bool:
    in_terminal = sys.stdin is not None and sys.stdin.isatty()
    return not in_terminal and signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN  # `nohup`
