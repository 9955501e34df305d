"""A store whose file is deleted or replaced under the running gateway."""

from pathlib import Path

import pytest

from gateway.outbox import writer
from gateway.outbox.damage import SIDES, side
from gateway.outbox.store import Outbox
from gateway.recorder import Recorder
from tests.gateway.outbox.outbox_kit import event, rows, settings
from tests.simulators.waiting import wait_for


def remove(file: Path, ends: tuple[str, ...]) -> None:
    for end in ends:
        side(file, end).unlink(missing_ok=True)


@pytest.mark.parametrize("ends", [("", *SIDES), ("",), ("-wal",)], ids=["all", "file", "log"])
def test_what_was_stored_survives_the_deletion_of_its_files(tmp_path: Path, ends: tuple[str, ...]) -> None:
    file = tmp_path / "outbox.db"
    recorder = Recorder(Outbox.open(file, settings()))
    outbox = recorder._outbox
    epoch = outbox.epoch
    outbox.put([event(number) for number in range(50)])
    remove(file, ends)
    wait_for(lambda: outbox.failed, seconds=10, what="the deletion is noticed")
    recorder.reopen()
    assert outbox.epoch == epoch
    kept = [row.seq for row in rows(outbox, "event")]
    assert kept == list(range(1, 51))
    (receipt,) = outbox.put([event(51)])
    assert receipt.seq == 51
    recorder.close()
    again = Outbox.open(file, settings())
    assert len(rows(again, "event")) == 51
    assert again.epoch == epoch
    assert any(b"deleted or replaced" in row.body for row in rows(again, "critical"))
    again.close()


def test_a_file_that_was_put_in_its_place_is_kept_aside(tmp_path: Path) -> None:
    file = tmp_path / "outbox.db"
    recorder = Recorder(Outbox.open(file, settings()))
    outbox = recorder._outbox
    outbox.put([event(number) for number in range(5)])
    other = tmp_path / "other"
    other.write_bytes(b"something else" * 1000)
    other.rename(file)
    wait_for(lambda: outbox.failed, seconds=10, what="the replacement is noticed")
    recorder.reopen()
    assert len(rows(outbox, "event")) == 5
    assert side(file, ".quarantined").read_bytes().startswith(b"something else")
    said = [row.body for row in rows(outbox, "critical") if b"was replaced by another store" in row.body]
    assert len(said) == 1, "the cloud hears of it"
    recorder.close()


def test_without_the_check_a_deleted_store_is_lost_with_the_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control."""
    monkeypatch.setattr(writer.Writer, "_check_place", lambda _: None)
    file = tmp_path / "outbox.db"
    outbox = Outbox.open(file, settings())
    outbox.put([event(number) for number in range(50)])
    remove(file, ("", *SIDES))
    outbox.close()
    again = Outbox.open(file, settings())
    assert rows(again, "event") == []
    again.close()
