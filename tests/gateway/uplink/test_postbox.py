import asyncio
import threading
from functools import partial

from gateway.uplink.postbox import Postbox


async def test_calls_of_a_thread_are_made_on_the_loop_in_their_order() -> None:
    made: list[tuple[int, int]] = []
    postbox = Postbox(asyncio.get_running_loop())

    def note(number: int) -> None:
        made.append((number, threading.get_ident()))

    def fill() -> None:
        for number in range(1000):
            assert postbox.post(partial(note, number))

    await asyncio.to_thread(fill)
    async with asyncio.timeout(10):
        while len(made) < 1000:
            await asyncio.sleep(0)
    assert made == [(number, threading.get_ident()) for number in range(1000)]
    assert len(postbox) == 0


async def test_one_wake_up_serves_all_that_wait() -> None:
    loop = asyncio.get_running_loop()
    postbox = Postbox(loop)
    for _ in range(100):
        postbox.post(lambda: None)
    assert len(postbox) == 100
    await asyncio.sleep(0)
    assert len(postbox) == 0


def test_a_closed_loop_is_told_and_breaks_nothing() -> None:
    loop = asyncio.new_event_loop()
    postbox = Postbox(loop)
    loop.close()
    assert not postbox.post(lambda: None)
