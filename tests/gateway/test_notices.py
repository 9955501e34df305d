import asyncio
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
        return Notices(self._loop, self.submit, wall_ns=lambda: AT_NS)


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
    await asyncio.to_thread(notices.note_from_thread, "a", "info", "b")
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
    threading.Thread(target=notices.note_from_thread, args=("model_proven", "info", "kept")).start()
    notices.note("vault_refused", "warning", "another boot state")
    async with asyncio.timeout(10):
        while len(kept.entries) < 2:
            await notices.settled(5.0)


async def test_a_full_disk_does_not_hold_up_a_stop_for_longer_than_allowed() -> None:
    kept = Kept()
    free = threading.Event()

    def submit(entries: Sequence[Entry], done: Callable[[Sequence[Receipt]], None]) -> None:
        free.wait(10)
        kept.submit(entries, done)

    notices = Notices(asyncio.get_running_loop(), submit, wall_ns=lambda: AT_NS)
    notices.note("vault_refused", "warning", "another boot state")
    await notices.settled(0.05)
    assert kept.entries == []
    free.set()
    await notices.settled(10.0)
    assert len(kept.entries) == 1
