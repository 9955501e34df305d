"""Blocking work waited for by the event loop."""

import threading

import pytest

from gateway.threads import in_thread


async def test_work_runs_on_a_thread_of_its_name() -> None:
    names: list[str] = []
    await in_thread("worker-1", lambda: names.append(threading.current_thread().name))
    assert names == ["worker-1"]


async def test_what_the_work_raises_reaches_the_supervisor() -> None:
    def work() -> None:
        raise ZeroDivisionError("broken")

    with pytest.raises(ZeroDivisionError, match="broken"):
        await in_thread("worker-2", work)
