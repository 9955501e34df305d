"""Waits that end early, in time, or with their task: never in none of these ways."""

import asyncio
import sys
from collections.abc import Awaitable, Callable

import pytest

from gateway.moments import happens

Wait = Callable[[asyncio.Event], Awaitable[object]]

TURNS = range(8)
"""Turns of the loop between the event and the cancellation: more than a waiting task needs to go on."""


async def test_what_happens_ends_the_wait_and_what_does_not_takes_no_longer_than_said() -> None:
    event = asyncio.Event()
    assert not await happens(event, 0.01)
    event.set()
    assert await happens(event, 60.0)


async def is_stoppable(wait: Wait, turns: int) -> bool:
    """Tell whether a service that waits for an event again and again ends when it is cancelled soon after it."""
    event = asyncio.Event()

    async def service() -> None:
        while True:
            event.clear()
            await wait(event)

    async with asyncio.TaskGroup() as group:
        task = group.create_task(service())
        await asyncio.sleep(0.01)
        event.set()
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait({task}, timeout=0.05)
        stopped = task.done()
        task.cancel()
    return stopped


@pytest.mark.parametrize("turns", TURNS)
async def test_a_service_ends_when_it_is_cancelled_whatever_happens_in_that_turn(turns: int) -> None:
    assert await is_stoppable(lambda event: happens(event, 60.0), turns)


@pytest.mark.skipif(sys.version_info >= (3, 12), reason="from Python 3.12 on, wait_for hears each cancellation")
async def test_control_wait_for_lets_a_service_go_on_that_was_cancelled() -> None:
    stopped = [await is_stoppable(lambda event: asyncio.wait_for(event.wait(), 60.0), turns) for turns in TURNS]
    assert not all(stopped)
