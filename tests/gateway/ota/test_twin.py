"""What a desired twin changes, and what never counts."""

import pytest

from gateway.ota import slots
from gateway.ota.journal import Book, Installed, Reference
from gateway.ota.twin import judge, reported
from gateway.wire.messages import Assignment, ModelRef, Twin

ONE, TWO = Installed(name="m", version="1.0.0"), Installed(name="m", version="2.0.0")
SERVING = {"door": ModelRef(name="m", version="1.0.0")}
AT = "2026-01-01T00:00:00Z"


def twin(token: int, version: int = 1, model: Installed = TWO, pipeline: str = "door") -> Twin:
    given = Assignment(pipeline=pipeline, model=ModelRef(name=model.name, version=model.version))
    return Twin(version=version, fencing_token=token, at=AT, assignments=[given], features={"shadow": True})


def ruled(book: Book, wish: Twin) -> Book:
    return judge(book, wish, ["door"], SERVING, AT).book


def on_trial() -> Book:
    book = ruled(Book(), twin(3))
    return slots.begin_trial("door", TWO, ONE, Reference(), now_ns=1, at=AT)(book)


def test_what_is_assigned_is_wanted() -> None:
    ruling = judge(Book(), twin(3), ["door"], SERVING, AT)
    wanted = ruling.book.slot("door").wanted
    assert wanted is not None
    assert (wanted.model, wanted.token, ruling.book.fencing_token) == (TWO, 3, 3)
    assert [each.phase for each in ruling.updates] == ["waiting"]
    assert ruling.book.features == {"shadow": True}


@pytest.mark.parametrize(("token", "version", "code"), [(2, 9, "old-token"), (3, 4, "old-version")])
def test_a_lower_token_or_version_never_counts(token: int, version: int, code: str) -> None:
    book = ruled(Book(), twin(3, 5))
    ruling = judge(book, twin(token, version, ONE), ["door"], SERVING, AT)
    assert ruling.code == code
    assert ruling.book == book


@pytest.mark.parametrize(
    ("token", "version", "code"),
    [(101, 1, "token-ahead"), (2**63 - 1, -1, "token-ahead"), (4, -1, "impossible"), (4, 2**63, "impossible"),
     (-1, 1, "impossible")],
)  # fmt: skip
def test_what_no_bridge_gives_changes_nothing_and_the_next_that_one_gives_counts(
    token: int, version: int, code: str
) -> None:
    book = ruled(Book(), twin(3, 5))
    ruling = judge(book, twin(token, version, ONE), ["door"], SERVING, AT, most_token=100)
    assert (ruling.code, ruling.book) == (code, book)
    assert judge(ruling.book, twin(100, 1), ["door"], SERVING, AT, most_token=100).book.fencing_token == 100


def test_without_the_fence_an_old_twin_would_count() -> None:
    """The control: the same old twin, to a device that has forgotten its fence."""
    assert ruled(Book(), twin(2, 9, ONE)).slot("door").wanted is not None


def test_the_same_twin_again_changes_nothing() -> None:
    book = ruled(Book(), twin(3))
    ruling = judge(book, twin(3), ["door"], SERVING, AT)
    assert ruling.known
    assert ruling.book == book


def test_a_higher_token_gives_an_older_release_again() -> None:
    wanted = ruled(on_trial(), twin(4, 1, ONE)).slot("door").wanted
    assert wanted is not None
    assert wanted.model == ONE


def test_a_release_that_was_taken_back_is_blocked_and_said_to_be() -> None:
    book = slots.take_back("door", "latency", "too slow", AT)(on_trial())
    ruling = judge(book, twin(5), ["door"], SERVING, AT)
    assert ruling.book.slot("door").wanted is None
    (update,) = ruling.updates
    assert (update.phase, update.code, update.reason) == ("blocked", "latency", "too slow")


def test_a_pipeline_that_is_not_here_is_refused_in_words() -> None:
    (update,) = judge(Book(), twin(3, pipeline="gate"), ["door"], SERVING, AT).updates
    assert (update.phase, update.code) == ("refused", "unknown-pipeline")


def test_a_pin_is_kept_and_said() -> None:
    book = slots.pin("door", ONE, AT)(Book())
    ruling = judge(book, twin(3), ["door"], SERVING, AT)
    assert [each.phase for each in ruling.updates] == ["pinned"]
    assert slots.running(ruling.book.slot("door")) == ONE


def nothing(token: int) -> Twin:
    return Twin(version=1, fencing_token=token, at=AT)


def test_what_is_not_assigned_any_more_is_not_wanted_any_more_and_that_is_said() -> None:
    """As after a rollout was aborted that knows of no release before."""
    ruling = judge(ruled(Book(), twin(3)), nothing(4), ["door"], SERVING, AT)
    slot = ruling.book.slot("door")
    assert slot.wanted is None
    assert slot.is_blocked(TWO) is None
    assert slot.told is not None
    assert (slot.told.phase, slot.told.model, slot.told.code) == ("running", SERVING["door"], "withdrawn")
    assert [each.what for each in ruling.book.history] == ["accepted", "withdrawn"]
    again = judge(ruling.book, twin(5), ["door"], SERVING, AT).book.slot("door").wanted
    assert again is not None, "it may be assigned again"


def told_of(book: Book) -> list[tuple[str, str]]:
    return [(each.what, each.model) for each in book.history]


def test_the_history_of_a_rollout_that_was_aborted_does_not_end_with_what_was_accepted() -> None:
    """What ran before is assigned again: that it runs already, and what became of the other, is said."""
    book = ruled(ruled(Book(), twin(3)), twin(4, model=ONE))
    book = slots.give_directly("door", ONE, AT)(book)
    assert told_of(book) == [
        ("accepted", "m@2.0.0"), ("withdrawn", "m@2.0.0"), ("accepted", "m@1.0.0"), ("kept", "m@1.0.0"),
    ]  # fmt: skip


def test_so_it_is_where_the_release_before_came_over_the_air_or_is_blocked() -> None:
    proven = slots.prove("door", AT)(on_trial())
    three = Installed(name="m", version="3.0.0")
    aborted = ruled(ruled(proven, twin(4, model=three)), twin(5, model=TWO))
    assert told_of(aborted)[-2:] == [("accepted", "m@3.0.0"), ("withdrawn", "m@3.0.0")]
    reverted = slots.take_back("door", "latency", "too slow", AT)(on_trial())
    blocked = ruled(ruled(reverted, twin(4, model=three)), twin(5, model=TWO))
    assert told_of(blocked)[-2:] == [("accepted", "m@3.0.0"), ("withdrawn", "m@3.0.0")]


def test_a_release_that_is_fetched_once_more_is_not_said_to_be_withdrawn() -> None:
    missing = slots.want_again("door", AT)(slots.prove("door", AT)(on_trial()))
    assert told_of(ruled(missing, twin(4)))[-1] == ("missing", "m@2.0.0")
    assert told_of(slots.give_directly("door", TWO, AT)(missing))[-1] == ("kept", "m@2.0.0")


def test_of_a_pipeline_that_runs_nothing_and_is_to_run_nothing_else_there_is_nothing_to_say() -> None:
    ruling = judge(ruled(Book(), twin(3)), nothing(4), ["door"], {"door": None}, AT)
    assert (ruling.book.slot("door").wanted, ruling.book.slot("door").told) == (None, None)


def test_what_serves_goes_on_though_nothing_is_assigned_any_more() -> None:
    book = on_trial()
    assert judge(book, nothing(4), ["door"], SERVING, AT).book.slot("door") == book.slot("door")
    proven = slots.prove("door", AT)(book)
    missing = slots.want_again("door", AT)(proven)
    assert judge(missing, nothing(4), ["door"], SERVING, AT).book.slot("door").wanted is not None


def test_a_pipeline_that_is_gone_is_not_reported() -> None:
    book = ruled(Book(), twin(3))
    assert [each.pipeline for each in reported(book, SERVING, AT).updates] == ["door"]
    renamed = {"gate": ModelRef(name="m", version="1.0.0")}
    assert reported(book, renamed, AT).updates == []


def test_what_is_reported_says_what_runs_and_how_far_it_is() -> None:
    said = reported(ruled(Book(), twin(3, 7)), SERVING, AT)
    assert (said.version, said.fencing_token) == (7, 3)
    assert [(each.pipeline, each.model.version) for each in said.assignments] == [("door", "1.0.0")]
    assert [(each.phase, each.model.version) for each in said.updates] == [("waiting", "2.0.0")]
