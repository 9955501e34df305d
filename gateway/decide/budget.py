"""A byte budget that refills with time."""

from dataclasses import dataclass


@dataclass(slots=True)
class ByteBudget:
    """A token bucket: `bytes_per_hour` on average, at most one hour's worth at once."""

    bytes_per_hour: int
    _left: float = -1.0
    _at_ns: int = 0

    def spend(self, size_bytes: int, now_ns: int) -> bool:
        """Take `size_bytes` from the budget if that much is left at this monotonic time."""
        if self._left < 0:
            self._left, self._at_ns = float(self.bytes_per_hour), now_ns
        elapsed_ns = max(0, now_ns - self._at_ns)
        self._left = min(self.bytes_per_hour, self._left + elapsed_ns * self.bytes_per_hour / 3.6e12)
        self._at_ns = now_ns
        if size_bytes > self._left:
            return False
        self._left -= size_bytes
        return True
