"""Blocking work on a thread of its own, waited for by the event loop."""

import asyncio
import threading
from collections.abc import Callable
from functools import partial
from typing import TypeVar

T = TypeVar("T")


async def in_thread(name: str, work: Callable[[], T]) -> T:
    """Run blocking work on a named thread of its own, and return what it returns."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[T] = loop.create_future()

    def succeed(result: T) -> None:
        if not done.done():
            done.set_result(result)

    def fail(error: BaseException) -> None:
        if not done.done():
            done.set_exception(error)

    def body() -> None:
        try:
            settle = partial(succeed, work())
        except Exception as error:  # noqa: BLE001 - handed to the supervisor, which waits for this thread
            settle = partial(fail, error)
        loop.call_soon_threadsafe(settle)

    threading.Thread(target=body, name=name, daemon=True).start()
    return await done
