"""How long a pipeline was without an answer when its model was swapped."""

from collections import deque
from statistics import median

from gateway.wire.messages import ModelRef

_INTERVALS = 32


class SwapGap:
    """Watches the instants of answers. One thread owns it."""

    def __init__(self) -> None:
        self._intervals: deque[int] = deque(maxlen=_INTERVALS)
        self._last: tuple[ModelRef, int] | None = None

    def answered(self, model: ModelRef, at_ns: int) -> float | None:
        """Note an answer at a monotonic instant.

        Returns:
            At the first answer of another model: by how many seconds it came later than answers usually follow each
            other here, at least 0. None at all others.
        """
        before, self._last = self._last, (model, at_ns)
        if before is None:
            return None
        interval = at_ns - before[1]
        if before[0] == model:
            self._intervals.append(interval)
            return None
        usual = median(self._intervals) if self._intervals else 0
        return max(0.0, (interval - usual) / 1e9)
