"""Which high-water marks are worth publishing."""

import threading
from collections import Counter
from collections.abc import Iterable

from cloud_bridge.values import StreamKey


class PublishedMarks:
    """Remembers the marks that were published, so that a slower worker does not take a newer one back.

    Marks themselves come from the database only; this decides whether one is told. An equal mark is told again,
    because it answers a device that has missed it.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._marks: dict[tuple[str, str], tuple[str, int]] = {}
        self._conflicts: Counter[StreamKey] = Counter()

    def admit(self, key: StreamKey, mark: int) -> bool:
        """Tell whether a mark read after a commit may be published, and remember it."""
        where = (key.gateway, key.record_class)
        with self._lock:
            epoch, highest = self._marks.get(where, ("", 0))
            if epoch == key.epoch and mark < highest:
                return False
            self._marks[where] = (key.epoch, mark)
            return True

    def note_conflicts(self, keys: Iterable[StreamKey | None]) -> None:
        """Count records that came under numbers of other records."""
        with self._lock:
            self._conflicts.update(key for key in keys if key is not None)

    def conflicts(self, key: StreamKey) -> int:
        """Return how many came since the start; told with each mark, for the device may have missed some."""
        with self._lock:
            return self._conflicts[key]
