import asyncio

from gateway.uplink.exchange import Incoming
from gateway.uplink.receipts import Receipt
from gateway.uplink.subscriptions import MAX_STRAYS, Subscriptions


class Held(Receipt):
    """A receipt that remembers whether it was done."""

    def __init__(self) -> None:
        self.count = 0

    def done(self) -> None:
        self.count += 1


def message(topic: str, receipt: Receipt | None = None) -> Incoming:
    return Incoming(topic, b"x", retained=False, receipt=receipt)


async def test_a_message_goes_to_everybody_whose_filter_matches_and_to_nobody_else() -> None:
    heard: list[str] = []
    subscriptions = Subscriptions(lambda _: True)
    assert subscriptions.add("leaf/+", lambda each: heard.append(f"one {each.topic}"))
    assert subscriptions.add("leaf/#", lambda each: heard.append(f"all {each.topic}"))
    assert not subscriptions.add("leaf/+", lambda each: heard.append(f"new {each.topic}"))
    assert subscriptions.filters == ["leaf/+", "leaf/#"]
    for topic in ("leaf/a", "leaf/a/b", "other"):
        subscriptions.dispatch(message(topic))
    await asyncio.sleep(0)
    assert heard == ["new leaf/a", "all leaf/a", "all leaf/a/b"]


async def test_a_receipt_is_done_after_the_handlers() -> None:
    receipt = Held()
    before: list[int] = []
    subscriptions = Subscriptions(lambda _: True)
    subscriptions.add("a", lambda _: before.append(receipt.count))
    subscriptions.dispatch(message("a", receipt))
    await asyncio.sleep(0)
    assert (before, receipt.count) == ([0], 1)


async def test_what_nobody_asked_for_is_taken_back_once_and_acknowledged_each_time() -> None:
    taken: list[str] = []
    subscriptions = Subscriptions(lambda topic: not taken.append(topic))
    receipt = Held()
    for _ in range(3):
        subscriptions.dispatch(message("stray", receipt))
    for number in range(2 * MAX_STRAYS):
        subscriptions.dispatch(message(f"stray/{number}", receipt))
    await asyncio.sleep(0)
    assert taken[:2] == ["stray", "stray/0"]
    assert len(taken) == MAX_STRAYS
    assert receipt.count == 3 + 2 * MAX_STRAYS


async def test_without_a_connection_a_stray_is_taken_back_another_time() -> None:
    subscriptions = Subscriptions(lambda _: False)
    subscriptions.dispatch(message("stray", Held()))
    assert subscriptions.strays == set()
