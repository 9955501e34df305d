"""What pipelines run, written down before it is done."""

import os
import resource
import tempfile
from pathlib import Path

import msgspec
import pytest

from gateway.ota import slots
from gateway.ota.agent import check_rollback
from gateway.ota.errors import OtaError
from gateway.ota.journal import (
    FENCE,
    FILE,
    VERDICTS,
    Blocked,
    Book,
    Installed,
    Journal,
    JournalError,
    Reference,
    Slot,
    look,
    peek,
)
from gateway.owner import as_owner
from gateway.wire.messages import ModelRef, UpdateState

NOBODY = 65534

ONE, TWO = Installed(name="m", version="1.0.0"), Installed(name="m", version="2.0.0")
FOUR = Blocked(model=Installed(name="m", version="4.0.0"), code="latency", reason="slow", at="now")
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


def test_a_fence_beyond_belief_counts_as_the_time_and_is_forgotten_on_the_disk(tmp_path: Path) -> None:
    Journal(tmp_path).change(fenced(2**63 - 1))
    journal = Journal(tmp_path, fencing_token=2**63 - 1, most_token=500, instead=100)
    assert journal.book.fencing_token == 100
    assert not journal.is_written
    journal.flush()
    assert (tmp_path / "ota" / "fence").read_text() == "100\n"
    assert Journal(tmp_path).book.fencing_token == 100
    assert Journal(tmp_path, most_token=100, instead=7).book.fencing_token == 100, "what is believed stays"


def test_without_the_second_copy_of_the_fence_it_would_be_forgotten(tmp_path: Path) -> None:
    Journal(tmp_path).change(fenced(7))
    (tmp_path / "ota" / FILE).write_bytes(b"{")
    (tmp_path / "ota" / FENCE).unlink()
    assert Journal(tmp_path).book.fencing_token == 0


def judged(book: Book) -> Book:
    return slots.pin("q", ONE, "now")(slots.take_back("p", "latency", "slow", "now")(trial(book)))


@pytest.mark.parametrize("damaged", [True, False], ids=["damaged", "gone"])
def test_what_was_blocked_and_pinned_outlives_the_journal(tmp_path: Path, *, damaged: bool) -> None:
    Journal(tmp_path).change(judged)
    file = tmp_path / "ota" / FILE
    file.unlink()
    if damaged:
        file.write_bytes(b'{"format": 1')
    assert peek(tmp_path).slot("q").pinned == ONE
    after = Journal(tmp_path)
    assert ("kept as" if damaged else "is gone") in after.damage
    assert "not known" not in after.damage
    assert after.book.slot("p").is_blocked(TWO) is not None
    assert after.book.slot("q").pinned == ONE
    after.flush()
    assert Journal(tmp_path).damage == "", "told once: now there is a journal again"


def test_a_journal_that_is_gone_with_all_its_copies_is_missed_where_releases_have_come(tmp_path: Path) -> None:
    Journal(tmp_path).change(judged)
    for name in (FILE, FENCE, VERDICTS):
        (tmp_path / "ota" / name).unlink(missing_ok=True)
    after = Journal(tmp_path, came=[TWO])
    assert "is gone" in after.damage
    assert "which releases were blocked is not known any more" in after.damage
    after.flush()
    assert Journal(tmp_path, came=[TWO]).damage == ""
    assert Journal(tmp_path / "new").damage == "", "the control: a new device misses nothing"


def test_without_the_second_copy_of_verdicts_they_would_be_forgotten(tmp_path: Path) -> None:
    Journal(tmp_path).change(judged)
    (tmp_path / "ota" / FILE).write_bytes(b"{")
    (tmp_path / "ota" / VERDICTS).unlink()
    after = Journal(tmp_path)
    assert after.book.pipelines == {}
    assert "not known any more" in after.damage


def test_a_first_start_that_is_killed_after_any_write_is_no_loss(tmp_path: Path) -> None:
    assert Journal(tmp_path).damage == ""
    for part in (FENCE, VERDICTS):
        (tmp_path / "ota" / f".{part}.part").mkdir()
        journal = Journal(tmp_path)
        with pytest.raises(JournalError):
            journal.change(lambda book: judged(fenced(7)(book)))
        (tmp_path / "ota" / f".{part}.part").rmdir()
        after = Journal(tmp_path)
        assert after.damage == ""
        assert after.book.pipelines == {}


def test_a_journal_that_cannot_be_opened_for_now_is_not_put_aside(tmp_path: Path) -> None:
    Journal(tmp_path).change(trial)
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, limit[1]))
    try:
        with pytest.raises(JournalError):
            Journal(tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limit)
    assert Journal(tmp_path).book.slot("p").active == TWO


def test_a_wish_that_is_given_up_does_not_take_what_a_twin_has_put_in_its_place_with_it() -> None:
    wished = slots.accept("p", ONE, 0, "now", by_hand=True)(Book())
    wish = wished.slot("p").wanted
    assigned = slots.accept("p", TWO, 1, "now")(wished)
    assert slots.withdraw("p", "now", of=wish)(assigned) == assigned
    assert slots.withdraw("p", "now", of=wish)(slots.attempted("p")(wished)).slot("p").wanted is None
    assert slots.withdraw("p", "now")(assigned).slot("p").wanted is None, "the control: whatever is wanted"


def test_releases_that_are_marked_in_the_store_are_known_to_have_come_over_the_air(tmp_path: Path) -> None:
    assert slots.model_for(Journal(tmp_path, came=[TWO]).book, "p", "m", THERE) == "m@1.0.0"
    assert slots.model_for(Journal(tmp_path).book, "p", "m", THERE) == "m@2.0.0", "the control: nobody knows"


def test_what_is_insisted_on_counts_at_once_and_is_written_when_the_disk_allows(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.change(trial)
    (tmp_path / "ota" / f".{FILE}.part").mkdir()
    journal.insist(slots.take_back("p", "latency", "slow", "now"))
    assert journal.book.slot("p").active == ONE
    with pytest.raises(JournalError):
        journal.flush()
    assert peek(tmp_path).slot("p").active == TWO, "a start now would judge it anew"
    (tmp_path / "ota" / f".{FILE}.part").rmdir()
    journal.flush()
    assert journal.is_written
    assert peek(tmp_path).slot("p").active == ONE


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
        (Slot(), "m", [("m", "3.0.0"), ("m", "4.0.0")], "m@4.0.0"),
        (Slot(blocked=(FOUR,)), "m", [("m", "3.0.0"), ("m", "4.0.0")], "m@3.0.0"),
        (Slot(blocked=(FOUR,)), "m", [("m", "4.0.0")], "m"),
        (Slot(), "m@1.0.0", [("m", "4.0.0")], "m@1.0.0"),
    ],
)
def test_a_pin_wins_over_an_assignment_and_that_over_the_configuration(
    slot: Slot, configured: str, there: list[tuple[str, str]], expected: str
) -> None:
    came = (Installed(name="m", version="3.0.0"), FOUR.model)
    assert slots.model_for(Book(pipelines={"p": slot}, installed=came), "p", configured, there) == expected


def test_what_came_over_the_air_is_not_the_newest_of_the_configuration() -> None:
    assert slots.model_for(Book(installed=(TWO,)), "p", "m", THERE) == "m@1.0.0"


def test_what_was_given_up_is_not_the_newest_of_the_configuration_either_way_it_came_here() -> None:
    """A person may bring it with `gateway vault import`, which leaves no mark of the air, and then try it."""
    tried = slots.accept("p", TWO, 0, "now", by_hand=True)(Book())
    assert slots.model_for(tried, "p", "m", THERE) == "m@1.0.0", "it has to prove itself first"
    assert slots.model_for(tried, "p", "m", THERE[1:]) == "m@2.0.0", "nothing else is here"
    refused = slots.refuse("p", TWO, "golden", "wrong answers", "now")(tried)
    assert slots.model_for(refused, "p", "m", THERE) == "m@1.0.0"
    assert slots.model_for(refused, "p", "m", THERE[1:]) == "m"
    assert slots.model_for(refused, "p", "m@2.0.0", THERE) == "m@2.0.0", "the configuration says so"
    assert slots.model_for(refused, "other", "m", THERE) == "m@2.0.0", "the control: it was not given up there"


def test_a_run_that_did_not_say_its_end_counts_as_a_crash() -> None:
    book = trial(Book())
    crashed = slots.run_begins("p", "now", "boot")(book).slot("p").trial
    assert crashed is not None
    assert crashed.crashes == 1
    ended = slots.run_begins("p", "now", "boot")(slots.run_ended("p")(book)).slot("p").trial
    assert ended is not None
    assert (ended.crashes, ended.running) == (0, True)


def test_what_ends_badly_while_another_release_is_pinned_is_not_counted_against_the_one_on_trial() -> None:
    pinned = slots.pin("p", ONE, "now")(trial(Book()))
    for _ in range(3):
        pinned = slots.run_begins("p", "now", "boot")(pinned)
    judged = pinned.slot("p").trial
    assert judged is not None
    assert (judged.crashes, judged.outages) == (0, 0)
    book = slots.unpin("p", "now")(pinned)
    for _ in range(3):
        book = slots.run_begins("p", "now", "boot")(book)
    judged = book.slot("p").trial
    assert judged is not None
    assert judged.crashes == 2, "the control: what it does itself is counted"


def crashes_after(book: Book) -> int:
    judged = slots.run_begins("p", "now", "boot")(book).slot("p").trial
    assert judged is not None
    return judged.crashes


def test_a_release_on_trial_that_serves_again_after_a_pin_is_counted_from_its_first_bad_end() -> None:
    goes_on = slots.run_goes_on("p", "boot")
    pinned = goes_on(slots.run_begins("p", "now", "boot")(slots.pin("p", ONE, "now")(trial(Book()))))
    unpinned = slots.unpin("p", "now")(pinned)
    assert crashes_after(goes_on(unpinned)) == 1
    assert crashes_after(unpinned) == 0, "the control: without a word of the run the first one is lost"


def test_a_run_under_a_pinned_release_that_ended_badly_is_not_counted_once_it_is_unpinned() -> None:
    pinned = slots.pin("p", ONE, "now")(trial(Book()))
    assert crashes_after(slots.unpin("p", "now")(slots.run_goes_on("p", "boot")(pinned))) == 0
    assert crashes_after(slots.unpin("p", "now")(pinned)) == 1, "the control"
    same = slots.pin("p", TWO, "now")(trial(Book()))
    assert crashes_after(slots.run_goes_on("p", "boot")(same)) == 1, "the one on trial itself was pinned"


def test_going_back_blocks_what_was_tried_and_keeps_what_is_needed() -> None:
    book = slots.take_back("p", "latency", "slow", "now")(trial(Book(installed=(TWO,))))
    slot = book.slot("p")
    assert (slot.active, slot.previous, slot.trial) == (ONE, None, None)
    assert slot.is_blocked(TWO) is not None
    assert slots.kept(book) == {ONE}


def test_going_back_without_a_gateway_leaves_the_word_for_the_bridge(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.change(trial)
    journal.change(slots.take_back_and_tell("p", "by-hand", "a person went back", "now"))
    found = Journal(tmp_path).book.slot("p")
    assert found.active == ONE
    assert found.told is not None
    assert (found.told.phase, found.told.code, found.told.model.version) == ("reverted", "by-hand", "2.0.0")


def _tree(directory: Path) -> dict[str, tuple[int, bytes]]:
    files = [each for each in directory.rglob("*") if each.is_file()]
    return {each.name: (each.stat().st_mtime_ns, each.read_bytes()) for each in files}


def test_who_only_looks_changes_nothing_so_that_the_gateway_tells_of_the_damage(tmp_path: Path) -> None:
    Journal(tmp_path).change(fenced(7))
    (tmp_path / "ota" / FILE).write_bytes(b"garb")
    (tmp_path / "ota" / ".journal.json.x.part").write_bytes(b"half")
    before = _tree(tmp_path)
    seen = look(tmp_path)
    assert "cannot be read" in seen.damage
    assert seen.book.fencing_token == 7
    assert _tree(tmp_path) == before
    assert "kept as" in Journal(tmp_path).damage
    assert _tree(tmp_path) != before, "the control: who opens it to write puts it aside"


def test_looking_where_nothing_is_makes_nothing(tmp_path: Path) -> None:
    assert look(tmp_path) == (Book(), "")
    assert not list(tmp_path.iterdir())


def test_a_second_damage_does_not_take_the_place_of_the_first(tmp_path: Path) -> None:
    Journal(tmp_path).change(fenced(7))
    for content in (b"first", b"second"):
        (tmp_path / "ota" / FILE).write_bytes(content)
        Journal(tmp_path).flush()
    kept = sorted(each.read_bytes() for each in (tmp_path / "ota").glob(f"{FILE}.damaged*"))
    assert kept == [b"first", b"second"]


@pytest.mark.parametrize(
    ("boots", "crashes", "outages", "bad_ends"),
    [
        (("one", "two", "three"), 0, 2, 1),
        (("one", "one", "one"), 2, 0, 2),  # the control: within a boot nothing but the run has ended
        (("one", "two", "two"), 1, 1, 1),
        (("", "", ""), 2, 0, 2),  # a kernel that does not say which boot it is
    ],
)
def test_a_power_cut_in_a_trial_counts_half_of_a_crash(
    boots: tuple[str, ...], crashes: int, outages: int, bad_ends: int
) -> None:
    book = slots.begin_trial("p", TWO, ONE, Reference(), now_ns=1, at="now", boot_id=boots[0])(Book())
    for boot in boots[1:]:
        book = slots.run_begins("p", "now", boot)(book)
    found = book.slot("p").trial
    assert found is not None
    assert (found.crashes, found.outages, found.bad_ends) == (crashes, outages, bad_ends)


def test_words_of_a_newer_program_do_not_make_an_older_one_forget_what_runs(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    told = UpdateState(pipeline="p", phase="running", model=ModelRef(name="m", version="2.0.0"), at="now")
    journal.change(lambda book: slots.tell(told)(slots.prove("p", "now")(trial(book))))
    file = tmp_path / "ota" / "journal.json"
    written = file.read_text()
    file.write_text(written.replace('"phase":"running"', '"phase":"settling"'))
    after = Journal(tmp_path)
    assert (after.damage, after.book.slot("p").active, after.book.slot("p").told) == ("", TWO, None)
    assert after.book == msgspec.structs.replace(
        journal.book, pipelines={"p": msgspec.structs.replace(journal.book.slot("p"), told=None)}
    )


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")
def test_a_journal_of_another_user_is_told_with_the_remedy_and_not_put_aside() -> None:
    with tempfile.TemporaryDirectory() as folder:
        state = Path(folder)
        Journal(state).change(trial)
        for each in (state, state / "ota"):
            os.chown(each, NOBODY, NOBODY)
        with as_owner(state), pytest.raises(JournalError, match=r"belongs to another user.*chown"):
            Journal(state)
        assert Journal(state).book.slot("p").active == TWO


THREE = Installed(name="m", version="3.0.0")


def proved(book: Book) -> Book:
    """Two runs and has proved itself; ONE is the way back."""
    return slots.prove("p", "now")(trial(book))


def tried(model: Installed, before: Installed) -> slots.Step:
    return slots.begin_trial("p", model, before, Reference(), now_ns=2, at="now")


def test_what_was_the_way_back_before_a_trial_is_it_again_once_that_was_taken_back() -> None:
    on_trial = tried(THREE, TWO)(proved(Book()))
    assert {ONE, TWO, THREE} <= slots.kept(on_trial), "it must still be on the disk then"
    slot = slots.take_back("p", "latency", "slow", "now")(on_trial).slot("p")
    assert (slot.active, slot.previous) == (TWO, ONE)
    given_again = slots.return_to_previous("p", "now")(on_trial).slot("p")
    assert (given_again.active, given_again.previous) == (TWO, ONE)


def test_of_two_trials_in_a_row_the_way_back_is_that_before_the_first() -> None:
    four = Installed(name="m", version="4.0.0")
    second = tried(four, TWO)(tried(THREE, TWO)(proved(Book())))
    slot = slots.take_back("p", "latency", "slow", "now")(second).slot("p")
    assert (slot.active, slot.previous) == (TWO, ONE)


def test_nobody_goes_back_to_what_was_given_up_or_is_tried_again() -> None:
    again = tried(ONE, TWO)(proved(Book()))
    assert slots.take_back("p", "latency", "slow", "now")(again).slot("p").previous is None
    on_trial = tried(THREE, TWO)(proved(Book()))
    given_up = slots.refuse("p", ONE, "key", "over", "now")(on_trial)
    assert slots.take_back("p", "latency", "slow", "now")(given_up).slot("p").previous is None


def test_a_release_that_has_proved_itself_has_the_one_before_as_its_way_back_and_taken_back_none() -> None:
    book = slots.prove("p", "now")(tried(THREE, TWO)(proved(Book())))
    assert book.slot("p").previous == TWO
    assert ONE not in slots.kept(book)
    assert slots.take_back("p", "by-hand", "bad", "now")(book).slot("p").previous is None


def test_nobody_goes_back_under_another_release_that_is_kept() -> None:
    book = slots.pin("p", ONE, "now")(proved(Book()))
    with pytest.raises(OtaError, match=r"keeps m@1\.0\.0: `gateway ota unpin p` first"):
        check_rollback(book, "p")
    check_rollback(slots.pin("p", TWO, "now")(proved(Book())), "p")
