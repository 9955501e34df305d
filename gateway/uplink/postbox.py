"""Carries calls from a thread to the event loop."""

import asyncio
import threading
from collections import deque
from collections.abc import Callable

Call = Callable[[], None]


class Postbox:
    """Calls come out on the loop in the order in which they were put in; one wake-up serves all that wait by then."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._calls: deque[Call] = deque()
        self._lock = threading.Lock()
        self._woken = False

    def __len__(self) -> int:
        return len(self._calls)

    def post(self, call: Call) -> bool:
        """Queue a call, from any thread. False: the loop is closed, and nobody is interested any more."""
        with self._lock:
            self._calls.append(call)
            if self._woken:
                return True
            self._woken = True
        try:
            self._loop.call_soon_threadsafe(self._deliver)
        except RuntimeError:
            return False
        return True

    def _deliver(self) -> None:
        with self._lock:
            calls, self._calls = self._calls, deque()
            self._woken = False
        for call in calls:
            call()
