"""Does a sensor still measure? Pure: the time is that of the blocks."""

import numpy as np
from numpy.typing import NDArray

from gateway.config import IioSource, ModbusSource, MqttSource, SerialSource
from gateway.values import SampleBlock

_WATCHED = (IioSource, ModbusSource, SerialSource, MqttSource)


class StillnessWatch:
    """Finds channels whose value has not changed by a single bit for too long.

    A broken wire, a hung driver or a gateway in between that repeats its last answer look like this; a sensor that
    works has noise in its last digit. Where a value may honestly stand still (a door contact, a set point, a coarse
    temperature) the watch is off: it is for a person to say that it may not.
    """

    def __init__(self, frozen_after_seconds: float) -> None:
        """`frozen_after_seconds`: the same value for so long is a fault."""
        self._limit_ns = round(frozen_after_seconds * 1e9)
        self._last: NDArray[np.uint32] | None = None
        self._changed_ns: NDArray[np.int64] = np.zeros(0, np.int64)

    def frozen_channels(self, block: SampleBlock) -> tuple[int, ...]:
        """Look at the next block; return the channels that stand still, counted from 0."""
        # Bits, so that a channel that says NaN again and again counts as still.
        bits = np.ascontiguousarray(block.samples, np.float32).view(np.uint32)
        if not len(bits):
            return ()
        now_ns = block.received_ns
        if self._last is None or self._last.shape != bits[-1].shape:
            self._changed_ns = np.full(bits.shape[1], now_ns, np.int64)
        else:
            moved = (bits != self._last).any(axis=0)
            self._changed_ns[moved] = now_ns
        self._changed_ns[(bits != bits[-1]).any(axis=0)] = now_ns
        self._last = bits[-1].copy()
        return tuple(int(at) for at in np.flatnonzero(now_ns - self._changed_ns >= self._limit_ns))


def watch_for(settings: object) -> StillnessWatch | None:
    """Return the watch a sensor is configured to have."""
    if isinstance(settings, _WATCHED) and settings.frozen_after_seconds is not None:
        return StillnessWatch(settings.frozen_after_seconds)
    return None
