"""No number is given twice, whatever has become of the file between a failure and the next opening."""

import shutil
import threading
from pathlib import Path

import pytest

from gateway.outbox import store
from gateway.outbox.damage import side
from gateway.outbox.database import Database
from gateway.outbox.evictions import row_of
from gateway.outbox.faults import DamagedStoreError
from gateway.outbox.generation import Generation
from gateway.outbox.mailbox import Mailbox
from gateway.outbox.store import Outbox
from gateway.values import Receipt
from gateway.wire.messages import Event, Notice, RecordClass, decode
from tests.gateway.outbox.outbox_kit import event, numbers, opened, rows, settings, until
from tests.gateway.outbox.test_failure import FailingCommit


def rolled_back(
    file: Path, monkeypatch: pytest.MonkeyPatch, record_class: RecordClass = "event"
) -> tuple[Outbox, list[Receipt]]:
    """Store three events, fail, and put the file back as it was after the first of them; return what was promised.

    A receipt for the fourth, whose commit failed, is added when it is given.
    """
    outbox = Outbox.open(file, settings())
    given = outbox.put([event(1, record_class)])
    older = file.parent / "older"
    older.mkdir()
    for end in ("", "-wal"):
        shutil.copyfile(side(file, end), older / side(file, end).name)
    given += outbox.put([event(2, record_class), event(3, record_class)])
    failed = threading.Event()
    outbox._on_failed = lambda _: failed.set()
    FailingCommit(monkeypatch, after_commit=False, record_class=record_class)
    outbox.submit([event(4, record_class)], given.extend)
    assert failed.wait(20)
    side(file, "-shm").unlink(missing_ok=True)
    for end in ("", "-wal"):
        shutil.copyfile(older / side(file, end).name, side(file, end))
    return outbox, given


def test_a_file_that_has_become_shorter_goes_on_above_every_number_it_has_given(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outbox, given = rolled_back(file, monkeypatch)
    outbox.reopen()
    until(lambda: numbers(outbox, "event") == [1, 4])
    assert [receipt.seq for receipt in given] == [1, 2, 3, 4]
    assert outbox.epoch == given[0].epoch
    said = [decode(row.body, Notice) for row in rows(outbox, "critical") if row.kind == "notice"]
    (notice,) = [notice for notice in said if notice.code == "store_rolled_back"]
    assert "event 2 to 3" in notice.detail
    outbox.close()


def test_an_acknowledgement_of_what_is_lost_frees_nothing_that_is_new(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outbox, given = rolled_back(file, monkeypatch)
    outbox.reopen()
    until(lambda: numbers(outbox, "event") == [1, 4])
    outbox.acknowledge("event", outbox.epoch, given[2].seq)
    until(lambda: numbers(outbox, "event") == [4])
    assert outbox.put([event(5)])[0].seq == 5
    outbox.close()


def test_control_a_store_that_believes_the_file_gives_a_number_twice(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "keep_ahead", lambda *_: ())
    outbox, given = rolled_back(file, monkeypatch)
    outbox.reopen()
    until(lambda: len(numbers(outbox, "event")) == 2)
    again = [seq for seq in numbers(outbox, "event") if seq != 1]
    assert set(again) & {receipt.seq for receipt in given[:3]}
    outbox.close()


def stored_events(outbox: Outbox) -> dict[int, str]:
    """Events of class critical by number."""
    return {row.seq: decode(row.body, Event).event_id for row in rows(outbox, "critical") if row.kind == "event"}


def test_an_entry_whose_commit_failed_gets_its_receipt_only_when_it_is_in_the_file(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outbox, given = rolled_back(file, monkeypatch, "critical")
    outbox.reopen()
    until(lambda: len(given) == 4)
    assert stored_events(outbox)[given[3].seq] == "e4"
    assert decode(rows(outbox, "critical")[1].body, Notice).code == "store_rolled_back", "under the number of the lost"
    outbox.close()


def test_control_a_number_alone_is_a_receipt_for_an_entry_that_is_nowhere(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outbox, given = rolled_back(file, monkeypatch, "critical")
    hand_over = Generation.hand_over

    def by_number(broken: Generation, mailbox: Mailbox, *, stored: bool) -> None:
        batch, books = broken._writer.unsettled, outbox._generation.database.committed
        assert not stored
        assert batch is not None
        there = all(books[name].lowest <= first <= books[name].highest for name, first in batch.firsts.items())
        hand_over(broken, mailbox, stored=there)

    monkeypatch.setattr(Generation, "hand_over", by_number)
    outbox.reopen()
    until(lambda: len(given) == 4)
    assert outbox.put([event(5)])
    assert "e4" not in stored_events(outbox).values()
    outbox.close()


def test_rows_are_told_by_their_contents_and_not_by_their_numbers(file: Path) -> None:
    with opened(file) as outbox:
        outbox.put([event(1), event(2), event(3)])
        database = outbox._generation.database
        mine = [row_of(entry.kind, entry.body, entry.recorded_at_ns, entry.blob) for entry in map(event, (2, 3))]
        assert database.holds("event", 2, mine)
        assert not database.holds("event", 1, mine)
        assert not database.holds("event", 2, mine[::-1])
        assert not database.holds("event", 3, mine)


def test_a_file_whose_damage_shows_only_when_it_is_asked_for_the_entry_is_put_aside(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outbox = Outbox.open(file, settings())
    epoch = outbox.put([event(1)])[0].epoch
    failed = threading.Event()
    outbox._on_failed = lambda _: failed.set()
    FailingCommit(monkeypatch, after_commit=False)
    given: list[Receipt] = []
    outbox.submit([event(2)], given.extend)
    assert failed.wait(20)

    def damaged(*_: object) -> bool:
        raise DamagedStoreError("database disk image is malformed (SQLITE_CORRUPT)")

    monkeypatch.setattr(Database, "holds", damaged)
    outbox.reopen()
    until(lambda: given)
    assert given[0].epoch == outbox.epoch != epoch
    assert outbox.stats().quarantined == 1
    outbox.close()


def test_a_file_that_is_as_long_as_it_was_leaves_nothing_out(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    outbox = Outbox.open(file, settings())
    outbox.put([event(1)])
    failed = threading.Event()
    outbox._on_failed = lambda _: failed.set()
    FailingCommit(monkeypatch, after_commit=False)
    outbox.submit([event(2)])
    assert failed.wait(20)
    outbox.reopen()
    until(lambda: numbers(outbox, "event") == [1, 2])
    assert "store_rolled_back" not in {
        decode(row.body, Notice).code for row in rows(outbox, "critical") if row.kind == "notice"
    }
    outbox.close()
