"""Blocking work on a thread of its own, waited for by the event loop."""

import asyncio
import threading
from collections.abc import Callable
from functools import partial
from typing import TypeVar

T = TypeVar("T")


class Leave:
    """Ends the wait for a thread that hangs, from any thread; the thread itself stays where it is."""

    def __init__(self) -> None:
        self._fail: Callable[[BaseException], None] | None = None

    def attach(self, fail: Callable[[BaseException], None]) -> None:
        """Take what ends the present wait."""
        self._fail = fail

    def __call__(self, error: BaseException) -> None:
        """Have whoever waits get this error."""
        if self._fail is not None:
            self._fail(error)


async def in_thread(name: str, work: Callable[[], T], leave: Leave | None = None) -> T:
    """Run blocking work on a named thread of its own, and return what it returns.

    `leave` ends the wait early.
    """
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

    def give_up(error: BaseException) -> None:
        loop.call_soon_threadsafe(fail, error)

    if leave is not None:
        leave.attach(give_up)
    threading.Thread(target=body, name=name, daemon=True).start()
    return await done
