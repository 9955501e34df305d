"""Waiting for a condition, with a deadline and no luck."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any


async def until(condition: Callable[[], object], seconds: float = 15.0, what: str = "") -> None:
    """Return as soon as the condition holds; fail after the deadline."""
    end = asyncio.get_running_loop().time() + seconds
    while not condition():
        if asyncio.get_running_loop().time() > end:
            raise AssertionError(f"not within {seconds:g} s: {what or 'the condition'}")
        await asyncio.sleep(0.01)


@asynccontextmanager
async def running(*components: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """Run components beside a test, and stop them as the daemon does: by cancelling."""
    tasks = [asyncio.get_running_loop().create_task(component) for component in components]
    try:
        yield
        for task in tasks:
            if task.done():
                task.result()
    finally:
        for task in tasks:
            task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        for result in results:
            if isinstance(result, Exception):
                raise result
