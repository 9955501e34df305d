import asyncio
import itertools
import threading
from collections.abc import Callable, Sequence

from structlog.testing import capture_logs

from gateway.errors import OutboxError
from gateway.notices import Notices
from gateway.values import Entry, Receipt
from gateway.wire.messages import Notice

AT_NS = 1_790_000_000_000_000_000


class Kept:
    """An outbox that remembers, on whichever thread, or is closed."""

    def __init__(self, *, closed: bool = False) -> None:
        self.closed = closed
        self.came = asyncio.Event()
        self.entries: list[Entry] = []
        self.threads: list[int] = []
        self._loop = asyncio.get_running_loop()

    def submit(self, entries: Sequence[Entry], done: Callable[[Sequence[Receipt]], None]) -> None:
        self.threads.append(threading.get_ident())
        self._loop.call_soon_threadsafe(self.came.set)
        if self.closed:
            raise OutboxError("the outbox is closed")
        self.entries += entries
        done([])

    def notices(self) -> Notices:
        return Notices(self.submit, wall_ns=lambda: AT_NS)


async def came(kept: Kept) -> None:
    async with asyncio.timeout(10):
        await kept.came.wait()
    await asyncio.sleep(0.01)


async def test_a_notice_is_a_critical_record_made_off_the_event_loop() -> None:
    kept = Kept()
    kept.notices().note("vault_refused", "warning", "another boot state")
    await came(kept)
    (entry,) = kept.entries
    assert isinstance(entry.body, Notice)
    assert (entry.record_class, entry.kind, entry.recorded_at_ns) == ("critical", "notice", AT_NS)
    assert (entry.body.code, entry.body.severity, entry.body.detail) == (
        "vault_refused",
        "warning",
        "another boot state",
    )
    assert kept.threads != [threading.get_ident()]


async def test_another_thread_may_note_too() -> None:
    kept = Kept()
    notices = kept.notices()
    await asyncio.to_thread(notices.note, "a", "info", "b")
    await came(kept)
    assert len(kept.entries) == 1


async def test_a_conflict_is_told_once_a_run() -> None:
    kept = Kept()
    notices = kept.notices()
    notices.in_conflict("event", 3)
    notices.in_conflict("measure", 9)
    await came(kept)
    (entry,) = kept.entries
    assert isinstance(entry.body, Notice)
    assert entry.body.code == "identity_in_conflict"
    assert "3 records of class event" in entry.body.detail


async def test_an_outbox_that_is_closed_loses_the_notice_and_says_so() -> None:
    kept = Kept(closed=True)
    with capture_logs() as logs:
        kept.notices().note("late", "info", "the gateway stops")
        await came(kept)
    assert [line["event"] for line in logs] == ["notice_not_recorded"]


async def test_a_stop_waits_until_what_was_noted_is_handed_over() -> None:
    kept = Kept()
    notices = kept.notices()
    other = threading.Thread(target=notices.note, args=("model_proven", "info", "kept"))
    other.start()
    notices.note("vault_refused", "warning", "another boot state")
    other.join()
    await notices.settled(5.0)
    assert len(kept.entries) == 2


async def test_a_full_disk_does_not_hold_up_a_stop_for_longer_than_allowed() -> None:
    kept = Kept()
    free = threading.Event()

    def submit(entries: Sequence[Entry], done: Callable[[Sequence[Receipt]], None]) -> None:
        free.wait(10)
        kept.submit(entries, done)

    notices = Notices(submit, wall_ns=lambda: AT_NS)
    notices.note("vault_refused", "warning", "another boot state")
    await notices.settled(0.05)
    assert kept.entries == []
    free.set()
    await notices.settled(10.0)
    assert len(kept.entries) == 1


class Stuck(Kept):
    """An outbox that takes nothing until it is let."""

    def __init__(self) -> None:
        super().__init__()
        self.free = threading.Event()

    def submit(self, entries: Sequence[Entry], done: Callable[[Sequence[Receipt]], None]) -> None:
        self.free.wait(30)
        super().submit(entries, done)

    def codes(self) -> list[str]:
        return [entry.body.code for entry in self.entries if isinstance(entry.body, Notice)]


async def test_notices_that_wait_for_the_disk_are_kept_in_order_with_the_time_at_which_they_were_noted() -> None:
    stuck = Stuck()
    moments = itertools.count(AT_NS)
    notices = Notices(stuck.submit, wall_ns=lambda: next(moments))
    for number in range(40):
        notices.note(f"n{number}", "info", "")
    stuck.free.set()
    await notices.settled(10.0)
    assert stuck.codes() == [f"n{number}" for number in range(40)]
    assert [entry.recorded_at_ns for entry in stuck.entries] == [AT_NS + number for number in range(40)]
    assert len(set(stuck.threads)) == 1


async def test_notices_beyond_the_bound_are_counted_and_named_by_one_when_the_disk_is_back() -> None:
    stuck = Stuck()
    notices = Notices(stuck.submit, wall_ns=lambda: AT_NS, max_waiting=3)
    notices.note("first", "info", "")
    await until(lambda: notices.waiting == 0)  # it is in the hands of the thread
    with capture_logs() as logs:
        for code in ("a", "b", "c", "d", "e", "d"):
            notices.note(code, "info", "")
    assert [line["event"] for line in logs] == ["notices_left_out"]
    stuck.free.set()
    await notices.settled(10.0)
    assert stuck.codes() == ["first", "a", "b", "c", "notices_left_out"]
    told = stuck.entries[-1].body
    assert isinstance(told, Notice)
    assert "d 2 times, e 1 times" in told.detail


async def test_a_notice_that_cannot_be_a_record_does_not_keep_the_next_ones() -> None:
    kept = Kept()

    def submit(entries: Sequence[Entry], done: Callable[[Sequence[Receipt]], None]) -> None:
        if isinstance(entries[0].body, Notice) and entries[0].body.code == "odd":
            raise UnicodeEncodeError("utf-8", "\udc80", 0, 1, "surrogates not allowed")
        kept.submit(entries, done)

    notices = Notices(submit, wall_ns=lambda: AT_NS)
    with capture_logs() as logs:
        notices.note("odd", "info", "")
        notices.note("next", "info", "")
        await notices.settled(10.0)
    assert [line["event"] for line in logs] == ["notice_not_recorded"]
    assert len(kept.entries) == 1


async def until(fact: Callable[[], object]) -> None:
    async with asyncio.timeout(10):
        while not fact():
            await asyncio.sleep(0.005)
