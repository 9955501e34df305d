"""Ways to hand things from one thread to another: the newest only, or everything in turn."""

import time
from collections import deque
from threading import Condition
from typing import Generic, TypeVar

T = TypeVar("T")


def _deadline(timeout_seconds: float | None) -> float | None:
    return None if timeout_seconds is None else time.monotonic() + timeout_seconds


def _left(deadline: float | None) -> float | None:
    return None if deadline is None else deadline - time.monotonic()


class LatestSlot(Generic[T]):
    """Keeps the newest item and counts those it replaced before anybody took them. `put` never waits."""

    def __init__(self) -> None:
        self._changed = Condition()
        self._items: list[T] = []  # none or one; a list, so that None may be an item
        self._closed = False
        self._dropped = 0

    @property
    def dropped(self) -> int:
        """Items that were replaced, or came after `close`."""
        return self._dropped

    @property
    def closed(self) -> bool:
        """Nothing will come any more: closed, and the last item was taken."""
        with self._changed:
            return self._closed and not self._items

    def put(self, item: T) -> None:
        """Offer an item, in place of the one nobody took."""
        with self._changed:
            if self._closed:
                self._dropped += 1
                return
            if self._items:
                self._dropped += 1
                self._items[0] = item
                return
            self._items.append(item)
            self._changed.notify()

    def take(self, timeout_seconds: float | None = None) -> T | None:
        """Wait for the newest item. None after the time-out, and at once when the slot is closed and empty."""
        deadline = _deadline(timeout_seconds)
        with self._changed:
            while not self._items:
                left = _left(deadline)
                if self._closed or (left is not None and left <= 0):
                    return None
                self._changed.wait(left)
            return self._items.pop()

    def close(self) -> None:
        """Wake everybody who waits; what is in the slot can still be taken."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()


class Handoff(Generic[T]):
    """A bounded queue that drops nothing: the producer waits while it is full."""

    def __init__(self, capacity: int) -> None:
        """`capacity`: items, at least 1."""
        if capacity < 1:
            raise ValueError(f"a hand-off needs room for one item at least, not {capacity}")
        self._capacity = capacity
        self._changed = Condition()
        self._items: deque[T] = deque()
        self._closed = False

    def __len__(self) -> int:
        return len(self._items)

    @property
    def closed(self) -> bool:
        """Nothing will come any more: closed, and the last item was taken."""
        with self._changed:
            return self._closed and not self._items

    def put(self, item: T, timeout_seconds: float | None = None) -> bool:
        """Wait for room and add the item. False if it was not taken in: the time ran out, or the queue is closed."""
        deadline = _deadline(timeout_seconds)
        with self._changed:
            while len(self._items) >= self._capacity and not self._closed:
                left = _left(deadline)
                if left is not None and left <= 0:
                    return False
                self._changed.wait(left)
            if self._closed:
                return False
            self._items.append(item)
            # All, not one: producers and consumers wait on the same condition.
            self._changed.notify_all()
            return True

    def take(self, timeout_seconds: float | None = None) -> T | None:
        """Wait for the oldest item. None after the time-out, and at once when the queue is closed and empty."""
        deadline = _deadline(timeout_seconds)
        with self._changed:
            while not self._items:
                left = _left(deadline)
                if self._closed or (left is not None and left <= 0):
                    return None
                self._changed.wait(left)
            item = self._items.popleft()
            self._changed.notify_all()
            return item

    def close(self) -> None:
        """Refuse new items and wake everybody who waits; what is in the queue can still be taken."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
