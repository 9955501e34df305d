"""Keeping time: schedules that do not drift and waits that end at once when a source is closed."""

import time
from collections.abc import Callable, Iterator
from threading import Event

import numpy as np
from numpy.typing import NDArray

from gateway.errors import SourceLostError
from gateway.sources.base import Drops, WallClock
from gateway.values import SampleBlock

SECOND_NS = 1_000_000_000
USELESS_FOR_SECONDS = 10.0
"""A polled device that answers, but with nothing usable for so long, counts as lost."""


def wait_until(due_ns: int, closing: Event) -> bool:
    """Wait for a point in monotonic time. False, and at once, when the source is being closed."""
    while not closing.is_set():
        left_ns = due_ns - time.monotonic_ns()
        if left_ns <= 0:
            return True
        closing.wait(left_ns / SECOND_NS)
    return False


def ticks(rate_hz: float, closing: Event, drops: Drops) -> Iterator[None]:
    """Yield `rate_hz` times a second on a schedule fixed at the start; ticks that were overslept are counted drops."""
    start_ns = time.monotonic_ns()
    tick = 0
    while wait_until(start_ns + round(tick * SECOND_NS / rate_hz), closing):
        yield
        tick += 1
        on_time = int((time.monotonic_ns() - start_ns) * rate_hz / SECOND_NS)
        if on_time > tick:
            drops.count("missed", on_time - tick, detail="the device answers more slowly than rate_hz asks")
            tick = on_time


def polled_blocks(
    source: str,
    read: Callable[[NDArray[np.float32]], bool],
    *,
    rate_hz: float,
    shape: tuple[int, int],
    closing: Event,
    drops: Drops,
    wall_clock: WallClock,
) -> Iterator[SampleBlock]:
    """Call `read` at a rate and gather what it reads into blocks.

    Args:
        source: the name of the source.
        read: fills in one sample, (channels,); returns False if there is none to be had this time, having counted why.
        rate_hz: polls a second.
        shape: (samples, channels) of a block.
        closing: ends the polling; a started block is given up.
        drops: where missed polls and non-finite samples are counted.
        wall_clock: UTC in nanoseconds.

    Raises:
        SourceLostError: nothing usable for ten seconds or ten polls, whichever is longer.
    """
    patience_ns = round(max(USELESS_FOR_SECONDS, 10 / rate_hz) * SECOND_NS)
    good_ns = time.monotonic_ns()
    block = np.empty(shape, np.float32)
    first_ns, filled = 0, 0
    for _ in ticks(rate_hz, closing, drops):
        asked_ns = wall_clock()
        row = block[filled]
        good = read(row)
        if good and not np.isfinite(row).all():
            drops.count("not_finite")
            good = False
        now_ns = time.monotonic_ns()
        if not good:
            if now_ns - good_ns > patience_ns:
                raise SourceLostError(
                    f"source {source}: the device answers, but with nothing usable for {patience_ns / SECOND_NS:.0f} s "
                    f"(dropped: {drops.by_reason()}); check its wiring and the channels in the configuration"
                )
            continue
        good_ns = now_ns
        first_ns = first_ns if filled else asked_ns
        filled += 1
        if filled == len(block):
            yield SampleBlock(source, first_ns, now_ns, rate_hz, block)
            block, filled = np.empty(shape, np.float32), 0
