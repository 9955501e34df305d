"""What the bridge says while something it said before is being looked into."""

import asyncio
import threading
from collections.abc import Callable

from gateway.threads import Worker
from gateway.uplink.custody import Custody
from gateway.uplink.delivery import Delivery, Limits
from gateway.uplink.exchange import Incoming
from gateway.uplink.marks import Marks, StoreWatch
from gateway.uplink.withholding import Withholding
from gateway.values import StoredRun
from gateway.wire.messages import Ack, RecordClass, encode
from tests.gateway.uplink.waiting import until
from tests.simulators.record_store import MemoryStore

EPOCH = "0123456789abcdef"


class SlowStore(MemoryStore):
    """Its reads begin, and end when they may."""

    def __init__(self) -> None:
        super().__init__(EPOCH)
        self.asked = threading.Event()
        self.answer = threading.Event()

    def read(self, record_class: RecordClass, after_seq: int, max_records: int, max_bytes: int) -> StoredRun | None:
        self.asked.set()
        assert self.answer.wait(10)
        return super().read(record_class, after_seq, max_records, max_bytes)


def marks_of(store: MemoryStore) -> Marks:
    """Return the marks of an uplink that has sent nothing of what the store holds."""
    delivery = Delivery(Limits())
    marks = Marks(
        "sluice",
        store,
        delivery,
        Withholding(store, "gw"),
        Custody(8),
        worker=Worker("uplink-store"),
        watch=StoreWatch(),
        woken=lambda: None,
        monotonic_ns=lambda: 0,
        on_conflict=None,
    )
    marks.began(EPOCH, store.heads())
    delivery.link_up(100, 0)
    return marks


def word(name: RecordClass, mark: int, digest: str = "") -> Incoming:
    ack = Ack(epoch=EPOCH, mark=mark, at="", digest=digest)
    return Incoming(f"sluice/v1/gw/ack/{name}", encode(ack), retained=True)


async def while_one_is_looked_into(store: SlowStore, marks: Marks, then: Callable[[], None]) -> None:
    async with asyncio.TaskGroup() as group:
        group.create_task(marks.prove())
        await until(store.asked.is_set)
        then()
        store.answer.set()


async def test_marks_that_are_asked_for_anew_on_a_new_connection_are_left_alone() -> None:
    store = SlowStore()
    store.put("event", 10)
    store.put("measure", 10)
    marks = marks_of(store)
    marks.take(word("event", 5))
    marks.take(word("measure", 5))
    assert set(marks.unproven) == {"event", "measure"}
    await while_one_is_looked_into(store, marks, marks.link_up)
    assert not set(marks.unproven)
    assert store.reads == 2, "the digest and the first row of one class, and nothing of the other"


async def test_rows_are_not_numbered_anew_for_a_mark_that_has_been_replaced() -> None:
    store = SlowStore()
    store.follows = True
    store.put("event", 10)
    marks = marks_of(store)
    marks.take(word("event", 5, "of-other-rows"))
    await while_one_is_looked_into(store, marks, lambda: marks.take(word("event", 6)))
    assert store.ahead == []
    assert set(marks.unproven) == {"event"}, "the newer one is still to be looked into"
    await marks.prove()
    assert store.ahead == []
    assert not set(marks.unproven)


async def test_the_control_rows_are_numbered_anew_for_a_mark_of_other_rows() -> None:
    store = SlowStore()
    store.follows = True
    store.put("event", 10)
    marks = marks_of(store)
    marks.take(word("event", 5, "of-other-rows"))
    await while_one_is_looked_into(store, marks, lambda: None)
    assert store.ahead == [("event", EPOCH, 5)]
