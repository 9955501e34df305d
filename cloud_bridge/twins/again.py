"""When a device that does not have its desired twin is told it once more. Pure: the time comes in.

Another message may lie on `twin/desired` than the bridge's: an older one that somebody recorded, or what no device can
read. The device refuses it, says so, and the bridge puts its own back. One that is sent others again and again gets no
more than one a minute; one that refuses the bridge's own for good, one an hour in the end.
"""

from dataclasses import dataclass
from typing import Final

PAUSE_NS: Final = 60_000_000_000
"""Between two for the same device, at least."""
MOST_PAUSE_NS: Final = 3_600_000_000_000


@dataclass(slots=True)
class _Turn:
    due_ns: int | None = None  # None: it has its twin, as far as is known
    rests_until_ns: int = 0
    pause_ns: int = PAUSE_NS


class Again:
    """Times are of one monotonic clock, in nanoseconds."""

    def __init__(self) -> None:
        self._turns: dict[str, _Turn] = {}

    def lacks(self, gateway: str, from_ns: int) -> None:
        """Note that a device has said that it does not have its twin; it is told again from then on, or later."""
        turn = self._turns.setdefault(gateway, _Turn())
        if turn.due_ns is None:
            turn.due_ns = max(from_ns, turn.rests_until_ns)

    def has(self, gateway: str, now_ns: int) -> None:
        """Note that a device has its twin."""
        turn = self._turns.get(gateway)
        if turn is None:
            return
        turn.due_ns, turn.pause_ns = None, PAUSE_NS
        if turn.rests_until_ns <= now_ns:
            del self._turns[gateway]

    def is_due(self, gateway: str, now_ns: int) -> bool:
        """Tell whether a device is to be told its twin again by now."""
        turn = self._turns.get(gateway)
        return turn is not None and turn.due_ns is not None and turn.due_ns <= now_ns

    def told(self, gateway: str, now_ns: int) -> bool:
        """Note that a device was told its twin, for whatever reason; return whether it was due for this one."""
        if not self.is_due(gateway, now_ns):
            return False
        turn = self._turns[gateway]
        turn.due_ns, turn.rests_until_ns = None, now_ns + turn.pause_ns
        turn.pause_ns = min(turn.pause_ns * 2, MOST_PAUSE_NS)
        return True
