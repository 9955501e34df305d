"""Blocking work on a thread of its own, waited for by the event loop."""

import asyncio
import threading
from collections.abc import Callable


async def in_thread(name: str, work: Callable[[], None]) -> None:
    """Run blocking work on a named thread of its own, and wait for it."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[None] = loop.create_future()

    def settle(error: BaseException | None) -> None:
        if done.done():
            return
        if error is None:
            done.set_result(None)
        else:
            done.set_exception(error)

    def body() -> None:
        error: BaseException | None = None
        try:
            work()
        except Exception as caught:  # noqa: BLE001 - handed to the supervisor, which waits for this thread
            error = caught
        loop.call_soon_threadsafe(settle, error)

    threading.Thread(target=body, name=name, daemon=True).start()
    await done
