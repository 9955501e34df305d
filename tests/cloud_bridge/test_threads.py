import asyncio
import threading

import pytest

from cloud_bridge.errors import BrokerError
from cloud_bridge.threads import run_in_thread


def fail() -> None:
    raise BrokerError("lost")


async def test_work_runs_in_a_thread_of_that_name() -> None:
    names: list[str] = []
    await run_in_thread("ingest-1", lambda: names.append(threading.current_thread().name), lambda: None)
    assert names == ["ingest-1"]


async def test_what_the_work_raises_is_raised_here() -> None:
    with pytest.raises(BrokerError, match="lost"):
        await run_in_thread("it", fail, lambda: None)


async def test_a_cancelled_task_stops_its_thread_and_waits_for_it() -> None:
    stopping, ended = threading.Event(), threading.Event()

    def work() -> None:
        stopping.wait(10)
        ended.set()

    task = asyncio.get_running_loop().create_task(run_in_thread("it", work, stopping.set))
    await asyncio.sleep(0.05)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ended.is_set()
