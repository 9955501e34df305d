"""Waits of the event loop that can always be cancelled."""

import asyncio


async def happens(event: asyncio.Event, within_seconds: float) -> bool:
    """Wait for an event, not for ever; tell whether it has come.

    In Python 3.11 `asyncio.wait_for` loses a cancellation that comes in the same turn of the loop as the event
    (https://github.com/python/cpython/issues/86296): a service that waits again and again then never ends.
    """
    try:
        async with asyncio.timeout(within_seconds):
            await event.wait()
    except TimeoutError:
        return False
    return True
