import threading
import time

import pytest

from gateway.sources.slot import Handoff, LatestSlot
from tests.simulators.waiting import wait_for


def test_a_slot_keeps_the_newest_and_counts_what_it_replaced() -> None:
    slot: LatestSlot[int] = LatestSlot()
    for number in range(5):
        slot.put(number)
    assert slot.take(0) == 4
    assert slot.take(0) is None
    assert slot.dropped == 4


def test_putting_into_a_slot_never_waits() -> None:
    slot: LatestSlot[int] = LatestSlot()
    begin = time.monotonic()
    for number in range(100_000):
        slot.put(number)
    assert (time.monotonic() - begin) / 100_000 < 50e-6


def test_taking_from_a_slot_waits_for_the_next_item() -> None:
    slot: LatestSlot[str] = LatestSlot()
    taken: list[str | None] = []
    thread = threading.Thread(target=lambda: taken.append(slot.take(5)))
    thread.start()
    slot.put("news")
    thread.join(5)
    assert taken == ["news"]


def test_taking_from_an_empty_slot_gives_up_in_time() -> None:
    begin = time.monotonic()
    assert LatestSlot[int]().take(0.05) is None
    assert 0.04 < time.monotonic() - begin < 2


def test_closing_a_slot_wakes_who_waits_and_leaves_the_last_item() -> None:
    slot: LatestSlot[int] = LatestSlot()
    woken: list[int | None] = []
    thread = threading.Thread(target=lambda: woken.append(slot.take()))
    thread.start()
    slot.close()
    thread.join(5)
    assert woken == [None]

    slot = LatestSlot()
    slot.put(1)
    slot.close()
    slot.put(2)
    closed = [slot.closed]
    assert slot.take() == 1
    closed.append(slot.closed)
    assert closed == [False, True]
    assert slot.take() is None
    assert slot.dropped == 1


def test_none_is_an_item_like_any_other() -> None:
    slot: LatestSlot[None] = LatestSlot()
    slot.put(None)
    slot.put(None)
    assert slot.dropped == 1


def test_a_slow_consumer_sees_growing_numbers_and_every_item_is_accounted_for() -> None:
    slot: LatestSlot[int] = LatestSlot()
    seen: list[int] = []

    def consume() -> None:
        while not slot.closed:
            item = slot.take(1)
            if item is not None:
                seen.append(item)

    thread = threading.Thread(target=consume)
    thread.start()
    for number in range(20_000):
        slot.put(number)
    slot.close()
    thread.join(10)
    assert seen == sorted(set(seen))
    assert seen[-1] == 19_999
    assert len(seen) + slot.dropped == 20_000


def test_a_hand_off_drops_nothing_and_keeps_the_order_between_many_threads() -> None:
    queue: Handoff[tuple[int, int]] = Handoff(3)
    seen: list[tuple[int, int]] = []

    def consume() -> None:
        while not queue.closed:
            item = queue.take(1)
            if item is not None:
                seen.append(item)

    def produce(producer: int) -> None:
        for number in range(2000):
            assert queue.put((producer, number))

    consumer = threading.Thread(target=consume)
    producers = [threading.Thread(target=produce, args=(producer,)) for producer in range(3)]
    for thread in (consumer, *producers):
        thread.start()
    for thread in producers:
        thread.join(20)
    queue.close()
    consumer.join(10)
    assert len(seen) == 6000
    for producer in range(3):
        assert [number for who, number in seen if who == producer] == list(range(2000))


def test_a_full_hand_off_makes_the_producer_wait() -> None:
    queue: Handoff[int] = Handoff(1)
    assert queue.put(1)
    assert not queue.put(2, timeout_seconds=0.05)
    done: list[bool] = []
    thread = threading.Thread(target=lambda: done.append(queue.put(3)))
    thread.start()
    thread.join(0.05)
    assert done == []
    assert queue.take() == 1
    thread.join(5)
    assert done == [True]
    assert len(queue) == 1


def test_closing_a_hand_off_frees_a_waiting_producer_and_leaves_the_items() -> None:
    queue: Handoff[int] = Handoff(1)
    queue.put(1)
    answers: list[bool] = []
    thread = threading.Thread(target=lambda: answers.append(queue.put(2)))
    thread.start()
    queue.close()
    thread.join(5)
    wait_for(lambda: answers == [False])
    assert queue.take() == 1
    assert queue.take() is None
    assert queue.closed
    assert not queue.put(3)


def test_a_hand_off_without_room_is_refused() -> None:
    with pytest.raises(ValueError, match="room"):
        Handoff(0)
