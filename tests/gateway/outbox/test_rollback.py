"""No number is given twice, whatever has become of the file between a failure and the next opening."""

import shutil
import threading
from pathlib import Path

import pytest

from gateway.outbox import store
from gateway.outbox.damage import side
from gateway.outbox.store import Outbox
from gateway.values import Receipt
from gateway.wire.messages import Notice, decode
from tests.gateway.outbox.outbox_kit import event, numbers, rows, settings, until
from tests.gateway.outbox.test_failure import FailingCommit


def rolled_back(file: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Outbox, list[Receipt]]:
    """Store three events, fail, and put the file back as it was after the first of them; return what was promised."""
    outbox = Outbox.open(file, settings())
    given = outbox.put([event(1)])
    older = file.parent / "older"
    older.mkdir()
    for end in ("", "-wal"):
        shutil.copyfile(side(file, end), older / side(file, end).name)
    given += outbox.put([event(2), event(3)])
    failed = threading.Event()
    outbox._on_failed = lambda _: failed.set()
    FailingCommit(monkeypatch, after_commit=False)
    outbox.submit([event(4)])
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
    assert [receipt.seq for receipt in given] == [1, 2, 3]
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
    outbox.acknowledge("event", outbox.epoch, given[-1].seq)
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
    assert set(again) & {receipt.seq for receipt in given}
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
