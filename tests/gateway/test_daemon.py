"""What goes on in the whole gateway while one thing of it waits."""

import asyncio
import gc
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from gateway import daemon as module
from gateway.config import Config, Gateway, Metrics, Vault
from gateway.config import Outbox as OutboxSettings
from gateway.configload import Reading
from gateway.daemon import Daemon
from gateway.errors import OutboxError
from gateway.notices import Notices
from gateway.outbox.store import Outbox
from gateway.watchdog import Notifier, Progress
from gateway.wire.messages import Notice, decode
from tests.gateway.outbox.outbox_kit import event, rows
from tests.gateway.outbox.test_failure import FailingCommit
from tests.gateway.uplink.waiting import until

NOTICES = 40
"""More than asyncio's own pool has threads on any machine: 32 at most."""


class CarelessNotices(Notices):
    """Each waits for the outbox in asyncio's own pool."""

    def note(self, code: str, severity: object, detail: str) -> None:
        entry = self._noted(code, "info", detail).entry()
        asyncio.get_running_loop().run_in_executor(None, self._submit, [entry], lambda _: None)


async def in_the_pool_of_all(_name: str, work: Callable[[], object]) -> object:
    return await asyncio.to_thread(work)


@asynccontextmanager
async def running(directory: Path) -> AsyncIterator[Daemon]:
    config = Config(
        gateway=Gateway(id="gw", state_directory=directory),
        sources={},
        pipelines={},
        vault=Vault(level="software"),
        metrics=Metrics(enabled=False),
    )
    daemon = Daemon(config, lambda: Reading(config, []))
    async with asyncio.TaskGroup() as group:
        run = group.create_task(daemon.run())
        try:
            yield daemon
        finally:
            daemon._end()
            gc.unfreeze()
        await run


class Disk:
    """Lets one commit fail; until it is back, an outbox cannot be opened again."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.back = threading.Event()
        self.asked = threading.Event()
        FailingCommit(monkeypatch, after_commit=False)
        reopen = Outbox.reopen

        def on_this_disk(outbox: Outbox) -> None:
            self.asked.set()
            self.serve()
            reopen(outbox)

        monkeypatch.setattr(Outbox, "reopen", on_this_disk)

    def serve(self) -> None:
        """Answer whoever opens something."""
        if not self.back.is_set():
            raise OutboxError("the disk is away")


class HangingDisk(Disk):
    """As a card or a network drive: who asks it waits."""

    def serve(self) -> None:
        assert self.back.wait(60)


async def fail_and_note(daemon: Daemon) -> None:
    """Have more to tell while the disk is away than a pool has threads."""
    daemon._recorder.submit([event(1)], lambda _: None)
    await until(lambda: daemon._recorder.failed)
    for number in range(NOTICES):
        daemon._notices.note(f"n{number}", "info", "told while the disk was away")


async def test_a_failed_outbox_is_opened_again_however_much_there_is_to_tell_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = Disk(monkeypatch)
    async with running(tmp_path) as daemon:
        await fail_and_note(daemon)
        disk.back.set()
        await until(lambda: not daemon._recorder.failed)
    outbox = Outbox.open(tmp_path / "outbox.db", OutboxSettings())
    told = [decode(row.body, Notice).code for row in rows(outbox, "critical") if row.kind == "notice"]
    outbox.close()
    assert [code for code in told if code.startswith("n")] == [f"n{number}" for number in range(NOTICES)]


async def test_control_in_the_pool_of_all_the_opening_is_not_even_begun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "Notices", CarelessNotices)
    monkeypatch.setattr(module, "in_thread", in_the_pool_of_all)
    disk = Disk(monkeypatch)
    async with running(tmp_path) as daemon:
        await fail_and_note(daemon)
        disk.back.set()
        with pytest.raises(AssertionError, match="not within"):
            await until(lambda: not daemon._recorder.failed, seconds=5.0)
        opening = threading.Thread(target=daemon._recorder.reopen)
        opening.start()
        await until(lambda: not daemon._recorder.failed)
        opening.join()


async def test_the_watchdog_is_fed_while_a_disk_hangs_under_the_opening(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = HangingDisk(monkeypatch)
    async with running(tmp_path) as daemon:
        daemon._notifier = fed = Fed()
        await fail_and_note(daemon)
        await until(disk.asked.is_set)
        before = fed.times
        await until(lambda: fed.times >= before + 2)
        disk.back.set()
        await until(lambda: not daemon._recorder.failed)


class Fed(Notifier):
    """Counts how often the watchdog would have been fed."""

    times = 0

    def watchdog(self, progress: Progress) -> None:
        self.times += 1


async def test_what_is_there_at_the_start_and_once_the_models_are_loaded_is_taken_for_what_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_SETTLES_AFTER_SECONDS", 0.2)
    assert gc.get_freeze_count() == 0
    async with running(tmp_path) as daemon:
        await until(lambda: gc.get_freeze_count() > 0)
        at_start = gc.get_freeze_count()
        came = [[number] for number in range(50_000)]
        await until(lambda: gc.get_freeze_count() >= at_start + len(came))
        await asyncio.sleep(0)
        assert daemon._components == {}, "a task that has done its work is no failure"
