import threading
import time
from itertools import islice

import numpy as np
import pytest
from numpy.typing import NDArray

from gateway.errors import SourceLostError
from gateway.sources import pacing
from gateway.sources.base import Drops
from gateway.sources.pacing import polled_blocks, ticks, wait_until


def test_a_wait_ends_when_it_is_due_and_at_once_when_closing() -> None:
    closing = threading.Event()
    due_ns = time.monotonic_ns() + 50_000_000
    assert wait_until(due_ns, closing)
    assert time.monotonic_ns() >= due_ns
    threading.Timer(0.05, closing.set).start()
    begin = time.monotonic()
    assert not wait_until(time.monotonic_ns() + 60_000_000_000, closing)
    assert time.monotonic() - begin < 2
    assert not wait_until(0, closing)


def test_ticks_do_not_drift_with_the_time_the_work_takes() -> None:
    begin = time.monotonic()
    for _ in islice(ticks(100, threading.Event(), Drops("x")), 51):
        threading.Event().wait(0.008)
    assert 0.49 < time.monotonic() - begin < 0.85  # 0.9 s with drift


def test_ticks_that_were_overslept_are_counted_and_not_made_up_for() -> None:
    drops = Drops("x")
    schedule = ticks(100, threading.Event(), drops)
    next(schedule)
    threading.Event().wait(0.105)
    begin = time.monotonic()
    for _ in range(5):
        next(schedule)
    assert time.monotonic() - begin > 0.03
    assert 8 <= drops.by_reason()["missed"] <= 40


def test_polls_become_blocks_stamped_with_their_first_sample() -> None:
    now_ns = 0

    def read(row: NDArray[np.float32]) -> bool:
        nonlocal now_ns
        now_ns += 1
        row[:] = now_ns
        return now_ns != 2  # the second poll gives nothing

    blocks = list(
        islice(
            polled_blocks(
                "x",
                read,
                rate_hz=1000,
                shape=(3, 2),
                closing=threading.Event(),
                drops=Drops("x"),
                wall_clock=lambda: 100 + now_ns,
            ),
            2,
        )
    )
    assert blocks[0].samples.tolist() == [[1, 1], [3, 3], [4, 4]]
    assert blocks[0].captured_at_ns == 100
    assert blocks[1].samples.tolist() == [[5, 5], [6, 6], [7, 7]]
    assert blocks[1].captured_at_ns == 104
    assert blocks[0].samples is not blocks[1].samples


def test_a_device_that_never_gives_anything_usable_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pacing, "USELESS_FOR_SECONDS", 0.2)

    def read(row: NDArray[np.float32]) -> bool:
        row[:] = np.nan
        return True

    drops = Drops("x")
    blocks = polled_blocks(
        "x", read, rate_hz=100, shape=(1, 1), closing=threading.Event(), drops=drops, wall_clock=time.time_ns
    )
    with pytest.raises(SourceLostError, match=r"nothing usable.*not_finite.*check its wiring"):
        next(blocks)
    assert drops.by_reason()["not_finite"] > 5
