"""What an update of the system leaves for the next start, of this program or of another one."""

import errno
import json
import os
import resource
import tempfile
from pathlib import Path
from typing import Any

import pytest

from gateway.osupdate.errors import OsJournalError
from gateway.osupdate.journal import (
    FILE,
    VERDICTS,
    Job,
    Journal,
    Wish,
    begin,
    end,
    found_in,
    reach,
    read_book,
    wish_for,
)
from gateway.owner import as_owner

NOBODY = 65534
JOB = Job(compatible="x", version="1.1.0")


def blocked(state: Path) -> Journal:
    """A device that has tried 1.1.0, at the wish of twin 7, and has fallen back."""
    journal = Journal(state)
    journal.change(wish_for(7, Wish(compatible="x", version="1.1.0", token=7)))
    journal.change(begin(JOB, "then"))
    journal.change(reach("installing", "boot", "then", to_slot="b"))
    journal.change(end("reverted", "then", code="no-boot", detail="it panics", block=True))
    return journal


def rewritten(state: Path, **changes: Any) -> None:
    file = state / "os" / FILE
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def under_way(state: Path, **changes: Any) -> Journal:
    """Read a journal whose job has values that another program has written."""
    blocked(state).change(begin(Job(compatible="x", version="1.2.0"), "now"))
    job = json.loads((state / "os" / FILE).read_text())["job"]
    rewritten(state, format=2, job=job | changes)
    return Journal(state)


# ---- of a newer program, after falling back ------------------------------------------------------------------


def test_a_stage_of_a_newer_program_means_that_it_ran_and_fell_back(tmp_path: Path) -> None:
    found = under_way(tmp_path, stage="verifying", to_slot="b")
    assert found.book.job is not None
    assert (found.book.job.stage, found.book.job.version) == ("trial", "1.2.0")
    assert (found.damage, found.book.token) == ("", 7)
    assert found.book.is_blocked("x", "1.1.0") is not None


def test_a_stage_of_a_newer_program_that_has_installed_nothing_begins_again(tmp_path: Path) -> None:
    found = under_way(tmp_path, stage="verifying")
    assert found.book.job is not None
    assert found.book.job.stage == "wanted"


def test_who_began_an_update_in_a_way_that_is_not_known_is_taken_for_the_bridge(tmp_path: Path) -> None:
    found = under_way(tmp_path, origin="neighbour", stage="installed")
    assert found.book.job is not None
    assert (found.book.job.origin, found.book.job.stage) == ("cloud", "installed")


def test_a_word_that_is_not_known_is_the_only_thing_that_is_forgotten(tmp_path: Path) -> None:
    journal = blocked(tmp_path)
    word = {"pipeline": "os-x", "phase": "settling", "model": {"name": "x", "version": "1.1.0"}, "at": "then"}
    rewritten(tmp_path, told=word)
    assert Journal(tmp_path).book == journal.book


def test_fields_of_a_newer_program_outlive_what_an_older_one_writes(tmp_path: Path) -> None:
    blocked(tmp_path)
    rewritten(tmp_path, format=2, plans={"at": "night", "slots": [1, 2]})
    Journal(tmp_path).change(found_in("a", "1.0.0"))
    written = json.loads((tmp_path / "os" / FILE).read_text())
    assert written["plans"] == {"at": "night", "slots": [1, 2]}
    assert written["format"] == 1, "so that the newer one sees that an older one has written since"


def test_what_is_blocked_in_a_way_that_is_not_known_counts_as_the_copy_says(tmp_path: Path) -> None:
    blocked(tmp_path)
    rewritten(tmp_path, blocked={"x": "1.1.0"})
    assert Journal(tmp_path).book.is_blocked("x", "1.1.0") is not None


# ---- damage ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("content", [b"", b"{half", b"[]", None])
def test_what_is_blocked_outlives_the_journal_and_the_last_twin_counts_once_more(
    tmp_path: Path, content: bytes | None
) -> None:
    blocked(tmp_path)
    file = tmp_path / "os" / FILE
    file.unlink() if content is None else file.write_bytes(content)
    found = Journal(tmp_path)
    assert found.damage
    assert found.book.is_blocked("x", "1.1.0") is not None
    older = found.change(wish_for(6, Wish(compatible="x", version="1.0.5", token=6)))
    assert older.wish is None, "a twin from before is none any more"
    again = found.change(wish_for(7, Wish(compatible="x", version="1.1.0", token=7)))
    assert again.wish is not None, "what was wanted was in the journal alone, and is handed over again"


def test_control_without_the_copy_the_bad_image_would_be_installed_again(tmp_path: Path) -> None:
    blocked(tmp_path)
    (tmp_path / "os" / VERDICTS).unlink()
    (tmp_path / "os" / FILE).write_bytes(b"{half")
    assert Journal(tmp_path).book.is_blocked("x", "1.1.0") is None


def test_a_version_that_a_person_tries_again_is_not_blocked_by_the_copy(tmp_path: Path) -> None:
    blocked(tmp_path).change(begin(Job(compatible="x", version="1.1.0", origin="person"), "now"))
    (tmp_path / "os" / FILE).unlink()
    assert Journal(tmp_path).book.is_blocked("x", "1.1.0") is None


# ---- errors that pass ------------------------------------------------------------------------------------------


def test_a_journal_that_cannot_be_opened_for_now_is_not_put_aside(tmp_path: Path) -> None:
    blocked(tmp_path)
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, limit[1]))
    try:
        with pytest.raises(OsJournalError, match=os.strerror(errno.EMFILE)):
            Journal(tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limit)
    assert Journal(tmp_path).book.is_blocked("x", "1.1.0") is not None


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")
def test_a_journal_of_another_user_is_told_with_the_remedy_and_not_put_aside() -> None:
    with tempfile.TemporaryDirectory() as folder:
        state = Path(folder)
        blocked(state)
        for each in (state, state / "os"):
            os.chown(each, NOBODY, NOBODY)
        with as_owner(state):
            for asks in (Journal, read_book):
                with pytest.raises(OsJournalError, match=r"belongs to another user.*chown"):
                    asks(state)
        assert read_book(state).is_blocked("x", "1.1.0") is not None
