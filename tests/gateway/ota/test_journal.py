"""What pipelines run, written down before it is done."""

from pathlib import Path

import pytest

from gateway.ota import slots
from gateway.ota.journal import FENCE, FILE, Book, Installed, Journal, JournalError, Reference, Slot

ONE, TWO = Installed(name="m", version="1.0.0"), Installed(name="m", version="2.0.0")
THERE = [("m", "1.0.0"), ("m", "2.0.0")]


def trial(book: Book) -> Book:
    return slots.begin_trial("p", TWO, ONE, Reference(), now_ns=1, at="now")(book)


def fenced(token: int) -> slots.Step:
    return lambda book: Book(fencing_token=token, pipelines=book.pipelines)


def test_what_was_changed_is_there_after_a_restart(tmp_path: Path) -> None:
    Journal(tmp_path).change(trial)
    slot = Journal(tmp_path).book.slot("p")
    assert (slot.active, slot.previous) == (TWO, ONE)


def test_a_damaged_journal_is_kept_aside_and_the_fence_is_not_forgotten(tmp_path: Path) -> None:
    Journal(tmp_path).change(fenced(7))
    file = tmp_path / "ota" / FILE
    file.write_bytes(file.read_bytes()[:-9])
    after = Journal(tmp_path)
    assert after.book.fencing_token == 7
    assert after.book.pipelines == {}
    assert "kept as" in after.damage
    assert (tmp_path / "ota" / f"{FILE}.damaged").exists()


def test_without_the_second_copy_of_the_fence_it_would_be_forgotten(tmp_path: Path) -> None:
    Journal(tmp_path).change(fenced(7))
    (tmp_path / "ota" / FILE).write_bytes(b"{")
    (tmp_path / "ota" / FENCE).unlink()
    assert Journal(tmp_path).book.fencing_token == 0


def test_a_disk_that_refuses_changes_nothing(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    (tmp_path / "ota" / f".{FILE}.part").mkdir()
    with pytest.raises(JournalError, match="no release is swapped"):
        journal.change(trial)
    assert journal.book == Book()


@pytest.mark.parametrize(
    ("slot", "configured", "there", "expected"),
    [
        (Slot(), "m", THERE, "m@2.0.0"),
        (Slot(), "m@1.0.0", THERE, "m@1.0.0"),
        (Slot(active=ONE), "m", THERE, "m@1.0.0"),
        (Slot(active=TWO, pinned=ONE), "m", THERE, "m@1.0.0"),
        (Slot(active=TWO, previous=ONE), "m", THERE[:1], "m@1.0.0"),
        (Slot(active=TWO), "m", [], "m"),
    ],
)
def test_a_pin_wins_over_an_assignment_and_that_over_the_configuration(
    slot: Slot, configured: str, there: list[tuple[str, str]], expected: str
) -> None:
    assert slots.model_for(Book(pipelines={"p": slot}), "p", configured, there) == expected


def test_what_came_over_the_air_is_not_the_newest_of_the_configuration() -> None:
    assert slots.model_for(Book(installed=(TWO,)), "p", "m", THERE) == "m@1.0.0"


def test_a_run_that_did_not_say_its_end_counts_as_a_crash() -> None:
    book = trial(Book())
    crashed = slots.run_begins("p", "now")(book).slot("p").trial
    assert crashed is not None
    assert crashed.crashes == 1
    ended = slots.run_begins("p", "now")(slots.run_ended("p")(book)).slot("p").trial
    assert ended is not None
    assert (ended.crashes, ended.running) == (0, True)


def test_going_back_blocks_what_was_tried_and_keeps_what_is_needed() -> None:
    book = slots.take_back("p", "latency", "slow", "now")(trial(Book(installed=(TWO,))))
    slot = book.slot("p")
    assert (slot.active, slot.previous, slot.trial) == (ONE, None, None)
    assert slot.is_blocked(TWO) is not None
    assert slots.kept(book) == {ONE}
