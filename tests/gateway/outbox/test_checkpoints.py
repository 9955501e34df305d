"""The WAL stays small, so that no record waits long for a checkpoint."""

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from gateway.outbox.ballast import Ballast
from gateway.outbox.damage import side
from gateway.outbox.faults import StoreFullError
from gateway.outbox.logblocks import LogBlocks
from gateway.outbox.quota import quotas_of
from gateway.outbox.space import CHECKPOINT_PAGES, LEAST_CHECKPOINT_PAGES, Space
from gateway.outbox.stats import Tally
from gateway.outbox.store import Outbox
from tests.gateway.outbox.outbox_kit import endless, event, settings, until

ROWS = 60_000


class SlowDatabase:
    """A store whose checkpoints take as long as one likes."""

    def __init__(self) -> None:
        self.dirty_pages = 0
        self.takes_seconds = 0.0
        self.sizes: list[int] = []
        self.log_blocks: LogBlocks | None = None

    def checkpoint(self, mode: str = "PASSIVE") -> bool:
        time.sleep(self.takes_seconds)
        self.sizes.append(self.dirty_pages)
        self.dirty_pages = 0
        return True


def test_a_mass_acknowledgement_is_checkpointed_as_it_goes(file: Path) -> None:
    outbox = Outbox.open(file, endless())
    try:
        for first in range(0, ROWS, 1000):
            outbox.put([event(number) for number in range(first, first + 1000)])
        held_bytes = outbox.stats().classes["event"].disk_bytes
        largest = 0
        outbox.acknowledge("event", outbox.epoch, ROWS)
        while outbox.stats().classes["event"].rows:
            largest = max(largest, side(file, "-wal").stat().st_size)
            time.sleep(0.002)
    finally:
        outbox.close()
    # Without checkpoints in between, everything that is deleted stands in the WAL once more.
    assert held_bytes > 24 * 1024 * 1024
    assert largest < 3 * CHECKPOINT_PAGES * 4096


def test_where_checkpoints_are_slow_they_become_smaller_and_grow_again_where_they_are_not(tmp_path: Path) -> None:
    database = SlowDatabase()
    space = Space(
        database,  # type: ignore[arg-type]  # all that is asked of it here
        quotas_of(settings()),
        Ballast(tmp_path / "outbox.db", 0),
        Tally.starting(0),
        CHECKPOINT_PAGES,
    )

    def write(pages: int) -> None:
        for _ in range(pages // 50):
            database.dirty_pages += 50
            space.checkpoint_if_due()

    database.takes_seconds = 0.03
    write(4000)
    assert database.sizes[:3] == [1000, 500, 250]
    assert min(database.sizes) >= LEAST_CHECKPOINT_PAGES
    database.takes_seconds = 0.0
    write(6000)
    assert max(database.sizes[-2:]) == CHECKPOINT_PAGES


def test_a_background_check_that_keeps_the_log_is_ended_where_the_disk_is_full(tmp_path: Path) -> None:
    class PinnedDatabase(SlowDatabase):
        pinned = True

        def checkpoint(self, mode: str = "PASSIVE") -> bool:
            return super().checkpoint(mode) and not self.pinned

        def at_page_limit(self) -> bool:
            return False

        def freeze(self) -> None:
            pass

    database = PinnedDatabase()
    database.log_blocks = LogBlocks(tmp_path / "outbox.db", Ballast(tmp_path / "outbox.db", 0))

    def unpin() -> bool:
        database.pinned = False
        return True

    def meets(unpin: Callable[[], bool]) -> bool:
        database.pinned = True
        ballast = Ballast(tmp_path / "outbox.db", 0)
        space = Space(
            database,  # type: ignore[arg-type]  # all that is asked of it here
            quotas_of(settings()),
            ballast,
            Tally.starting(0),
            CHECKPOINT_PAGES,
            unpin=unpin,
        )
        return space.meet_full_disk(StoreFullError("full"))

    assert meets(unpin)
    assert not meets(lambda: False)


@pytest.mark.slow
def test_a_critical_record_does_not_wait_for_a_mass_acknowledgement(file: Path) -> None:
    outbox = Outbox.open(file, endless())
    try:
        for first in range(0, 2 * ROWS, 1000):
            outbox.put([event(number) for number in range(first, first + 1000)])
        outbox.acknowledge("event", outbox.epoch, 2 * ROWS)
        waits: list[float] = []
        while outbox.stats().classes["event"].rows:
            began = time.monotonic()
            outbox.put([event(len(waits), "critical")])
            waits.append(time.monotonic() - began)
        until(lambda: not outbox.stats().queued_entries)
    finally:
        outbox.close()
    # A limit for a busy machine; `python -m tests.bench.critical_insert` measures.
    assert sorted(waits)[len(waits) * 95 // 100] < 0.25
