"""A stop waits for the outbox to empty: not for ever, and not for what a budget or a window holds back."""

import asyncio
import time
from collections.abc import Iterator
from datetime import UTC
from pathlib import Path

import pytest

from gateway.config import Budget, FeatureMetering, Metering
from gateway.draining import drain
from gateway.metering.ledger import Ledger
from gateway.metering.meter import Meter
from gateway.outbox.store import Outbox
from gateway.recorder import Recorder
from tests.gateway.outbox.outbox_kit import event, settings

SPENT = Metering(features={"records": FeatureMetering(budget=Budget(bytes=1, per="day"))})
LONG_SECONDS = 60.0
AT_ONCE_SECONDS = 10.0  # far below that, and far above what a busy machine takes


@pytest.fixture
def outbox(tmp_path: Path) -> Iterator[Outbox]:
    opened = Outbox.open(tmp_path / "outbox.db", settings())
    yield opened
    opened.close()


def meter(folder: Path, limits: Metering) -> Meter:
    """Make a meter whose budget, if there is one, is used up."""
    made = Meter(limits, UTC, Ledger(folder / "link-usage.json"))
    made.allow("records", 1)
    made.spent("records", "out", 1)
    return made


async def test_an_empty_outbox_is_not_waited_for(outbox: Outbox, tmp_path: Path) -> None:
    began = time.monotonic()
    assert await drain(Recorder(outbox), meter(tmp_path, Metering()), LONG_SECONDS)
    assert time.monotonic() - began < AT_ONCE_SECONDS


async def test_what_the_cloud_takes_meanwhile_ends_the_wait(outbox: Outbox, tmp_path: Path) -> None:
    receipts = outbox.put([event(number) for number in range(3)])
    async with asyncio.timeout(AT_ONCE_SECONDS), asyncio.TaskGroup() as group:
        waiting = group.create_task(drain(Recorder(outbox), meter(tmp_path, Metering()), LONG_SECONDS))
        await asyncio.sleep(0)
        assert not waiting.done()
        outbox.acknowledge("event", outbox.epoch, receipts[-1].seq)
    assert waiting.result()


async def test_what_nobody_takes_is_waited_for_no_longer_than_was_said(outbox: Outbox, tmp_path: Path) -> None:
    outbox.put([event(1)])
    now, looks = [1000.0], [0]

    def clock() -> float:
        looks[0] += 1
        now[0] += 1.0
        return now[0]

    assert not await drain(Recorder(outbox), meter(tmp_path, Metering()), 5.0, clock)
    assert looks[0] == 6, "once for the end of the time, and then until it has come"


async def test_what_a_used_up_budget_holds_back_is_not_waited_for(outbox: Outbox, tmp_path: Path) -> None:
    outbox.put([event(1)])
    began = time.monotonic()
    assert not await drain(Recorder(outbox), meter(tmp_path, SPENT), LONG_SECONDS)
    assert time.monotonic() - began < AT_ONCE_SECONDS


async def test_what_a_budget_lets_through_is_waited_for_beside_what_it_holds_back(
    outbox: Outbox, tmp_path: Path
) -> None:
    """The control of the one above: `critical` records override the budget, so they may still be taken."""
    receipts = outbox.put([event(1), event(2, "critical")])
    async with asyncio.timeout(AT_ONCE_SECONDS), asyncio.TaskGroup() as group:
        waiting = group.create_task(drain(Recorder(outbox), meter(tmp_path, SPENT), LONG_SECONDS))
        await asyncio.sleep(0.2)
        assert not waiting.done()
        outbox.acknowledge("critical", outbox.epoch, receipts[-1].seq)
    assert not waiting.result(), "the other one is still there"
