"""Which messages of a leaf sensor a pipeline still needs, and when it has dealt with each."""

import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

from gateway.values import Held, SampleBlock, Window


@dataclass(slots=True)
class _Batch:
    """What is dealt with once a window is."""

    held: list[Held]
    is_over: bool = False


class Holding:
    """Follows blocks into windows. A block is done when the last window that it is part of is.

    So after a kill the broker sends again, from its first sample on, the oldest window that was not dealt with, and the
    windows that follow are those that would have been cut without the kill. Of longer windows only the newest
    `at_most` blocks are held: the broker stops sending when too many messages are unacknowledged.
    """

    def __init__(self, at_most: int) -> None:
        """`at_most`: blocks that only fill a window so far."""
        self._at_most = at_most
        self._lock = threading.Lock()
        self._filling: deque[tuple[int, Held]] = deque()  # each with the number of samples up to its end
        self._pushed = 0
        self._last: _Batch | None = None

    def follow(self, block: SampleBlock, windows: Sequence[Window], needed: int) -> list[Window]:
        """Take note of a block and the windows that it completed; returns them, the last with its `done`.

        `needed` is how many of the newest samples will be part of further windows.
        """
        self._pushed += len(block.samples)
        if block.held is not None:
            self._filling.append((self._pushed, block.held))
        released: list[Held] = []
        while self._filling and (
            self._filling[0][0] <= self._pushed - needed or len(self._filling) > max(self._at_most, 0)
        ):
            released.append(self._filling.popleft()[1])
        if not released:
            return list(windows)
        if windows:
            self._last = _Batch(released)
            return [*windows[:-1], replace(windows[-1], done=partial(self._over, self._last))]
        with self._lock:
            if self._last is not None and not self._last.is_over:
                self._last.held += released
                return []
        for held in released:
            held.done()
        return []

    def _over(self, batch: _Batch) -> None:
        with self._lock:
            batch.is_over = True
        for held in batch.held:
            held.done()
