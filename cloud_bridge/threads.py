"""A blocking component in a thread of its own, awaited by a task."""

import asyncio
import threading
from collections.abc import Callable


async def run_in_thread(name: str, work: Callable[[], None], stop: Callable[[], None]) -> None:
    """Run blocking work in a named thread until it returns; raises what it raises.

    When the task is cancelled, `stop` is called and the thread is waited for: it must not outlive its owner.
    """
    loop = asyncio.get_running_loop()
    done: asyncio.Future[None] = loop.create_future()

    def finish(error: BaseException | None) -> None:
        if done.cancelled():
            return
        if error is None:
            done.set_result(None)
        else:
            done.set_exception(error)

    def body() -> None:
        error: BaseException | None = None
        try:
            work()
        except Exception as failure:  # noqa: BLE001  # handed over to the supervisor of the task
            error = failure
        loop.call_soon_threadsafe(finish, error)

    thread = threading.Thread(target=body, name=name, daemon=True)
    thread.start()
    try:
        await asyncio.shield(done)
    except asyncio.CancelledError:
        stop()
        await done
        raise
