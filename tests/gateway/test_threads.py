"""Blocking work waited for by the event loop."""

import asyncio
import threading
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from gateway.threads import Worker, in_thread


@pytest.fixture
async def crowded() -> AsyncIterator[None]:
    """asyncio's own pool, all of whose threads wait for something that does not come."""
    never = threading.Event()
    loop = asyncio.get_running_loop()
    loop.set_default_executor(ThreadPoolExecutor(1))
    waiting = loop.run_in_executor(None, never.wait, 60)
    yield
    never.set()
    await waiting


async def test_work_runs_on_a_thread_of_its_name() -> None:
    names: list[str] = []
    await in_thread("worker-1", lambda: names.append(threading.current_thread().name))
    assert names == ["worker-1"]


async def test_what_the_work_raises_reaches_the_supervisor() -> None:
    def work() -> None:
        raise ZeroDivisionError("broken")

    with pytest.raises(ZeroDivisionError, match="broken"):
        await in_thread("worker-2", work)


@pytest.mark.usefixtures("crowded")
async def test_neither_waits_behind_what_hangs_in_the_pool_of_all() -> None:
    with Worker("worker-3") as worker:
        async with asyncio.timeout(10):
            assert await worker.do(int, "3") == 3
            assert await in_thread("worker-4", lambda: 4) == 4


@pytest.mark.usefixtures("crowded")
async def test_control_the_pool_of_all_begins_nothing_more() -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.3):
            await asyncio.to_thread(int, "3")


async def test_a_worker_does_one_piece_after_the_other_on_one_thread() -> None:
    names: list[str] = []

    def work(number: int) -> int:
        names.append(threading.current_thread().name)
        return number

    with Worker("worker-5") as worker:
        assert await asyncio.gather(*(worker.do(work, number) for number in range(5))) == [0, 1, 2, 3, 4]
    assert names == ["worker-5"] * 5


async def test_what_a_piece_raises_reaches_its_caller_and_the_next_piece_is_done() -> None:
    with Worker("worker-6") as worker:
        with pytest.raises(ValueError, match="invalid literal"):
            await worker.do(int, "x")
        assert await worker.do(int, "6") == 6


async def test_a_worker_that_was_closed_ends_its_thread_and_begins_another_when_asked() -> None:
    worker = Worker("worker-7")
    first = await worker.do(threading.current_thread)
    worker.close()
    await asyncio.to_thread(first.join, 10)
    assert not first.is_alive()
    assert await worker.do(threading.current_thread) is not first
    worker.close()


async def test_a_piece_that_nobody_waits_for_any_more_is_not_begun() -> None:
    done: list[str] = []
    free = threading.Event()
    with Worker("worker-8") as worker:
        async with asyncio.TaskGroup() as group:
            group.create_task(worker.do(free.wait, 10))
            second = group.create_task(worker.do(done.append, "second"))
            await asyncio.sleep(0)
            second.cancel()
            await asyncio.wait([second])
            free.set()
        await worker.do(done.append, "third")
    assert done == ["third"]
