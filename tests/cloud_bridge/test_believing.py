import pytest

from cloud_bridge.believing import PATIENCE_NS, STEP_NS, Belief, Step, before_ns, believe

NOW = 1_800_000_000_000_000_000
HOUR = 3600 * 10**9


AHEAD = NOW + 400 * STEP_NS


@pytest.mark.parametrize(
    ("before", "elapsed", "wall", "after"),
    [
        (None, None, NOW, Belief(NOW)),
        (Belief(NOW), HOUR, NOW + HOUR, Belief(NOW + HOUR)),
        (Belief(NOW), HOUR, NOW + HOUR + STEP_NS, Belief(NOW + HOUR + STEP_NS)),
        (
            Belief(NOW),
            HOUR,
            NOW + 2 * HOUR + STEP_NS,
            Belief(NOW + HOUR, NOW + HOUR, NOW + 2 * HOUR + STEP_NS, stepped=True),
        ),
        (Belief(NOW), HOUR, 0, Belief(NOW + HOUR, NOW + HOUR, 0, stepped=True)),
        (Belief(NOW), None, AHEAD, Belief(NOW, NOW, AHEAD)),  # it may have been off
        (Belief(NOW, NOW - HOUR, 0), HOUR, HOUR, Belief(NOW + HOUR, NOW - HOUR, HOUR)),
        (Belief(NOW, NOW - HOUR, AHEAD), HOUR, NOW, Belief(NOW)),
        (Belief(NOW, NOW - PATIENCE_NS, AHEAD), 0, AHEAD, Belief(AHEAD)),
        (Belief(NOW, NOW - PATIENCE_NS, 0), 0, 0, Belief(0)),
        (Belief(NOW, NOW - PATIENCE_NS), 0, AHEAD, Belief(AHEAD)),  # kept when it was not kept what the clock said
    ],
)
def test_a_time_that_was_not_expected_is_believed_once_it_has_stood_for_long(
    before: Belief | None, elapsed: int | None, wall: int, after: Belief
) -> None:
    assert believe(before, elapsed, wall) == after


NEARLY = Belief(NOW, NOW - PATIENCE_NS + HOUR, AHEAD)
"""In doubt for 23 hours."""


@pytest.mark.parametrize(
    ("elapsed", "wall", "after"),
    [
        (HOUR, AHEAD + HOUR, Belief(AHEAD + HOUR)),
        (HOUR, AHEAD + 10 * STEP_NS, Belief(NOW + HOUR, NOW + HOUR, AHEAD + 10 * STEP_NS, stepped=True)),
        (HOUR, AHEAD - 10 * STEP_NS, Belief(NOW + HOUR, NOW + HOUR, AHEAD - 10 * STEP_NS, stepped=True)),
        (None, AHEAD + 10 * STEP_NS, Belief(NOW, NEARLY.doubted_since_ns, AHEAD + 10 * STEP_NS)),
        (None, AHEAD - 10 * STEP_NS, Belief(NOW, NOW, AHEAD - 10 * STEP_NS)),
    ],
    ids=["the same", "another, later", "another, earlier", "the same after a stop", "another after a stop"],
)
def test_a_clock_that_jumps_while_it_is_in_doubt_must_stand_for_a_day_again(
    elapsed: int | None, wall: int, after: Belief
) -> None:
    assert believe(NEARLY, elapsed, wall) == after


def test_a_clock_that_is_behind_for_a_moment_only_interrupts_the_wait_for_the_one_ahead() -> None:
    behind = believe(NEARLY, HOUR, 5)
    assert behind == Belief(NOW + HOUR, NOW - PATIENCE_NS + 2 * HOUR, AHEAD + HOUR)
    assert behind.due_ns(5) == 5
    again = believe(behind, HOUR // 2, AHEAD + 2 * HOUR)
    assert again.doubted_since_ns == behind.doubted_since_ns
    assert believe(again, HOUR // 2, AHEAD + 3 * HOUR) == Belief(AHEAD + 3 * HOUR)


def test_while_two_times_differ_what_is_old_goes_by_the_earlier_one() -> None:
    assert Belief(NOW).due_ns(NOW + 1) == NOW
    assert Belief(NOW).due_ns(5) == 5


def test_a_clock_that_was_set_while_the_bridge_ran_is_remembered_one_over_a_stop_is_not() -> None:
    doubting = believe(Belief(NOW), HOUR, AHEAD)
    later = believe(doubting, PATIENCE_NS, AHEAD + PATIENCE_NS)
    assert later == Belief(AHEAD + PATIENCE_NS, steps=(Step(NOW + HOUR, AHEAD - NOW - HOUR),))
    assert believe(later, HOUR, AHEAD + PATIENCE_NS + HOUR).steps == later.steps
    off = believe(Belief(NOW), None, AHEAD)
    assert believe(off, PATIENCE_NS, AHEAD + PATIENCE_NS).steps == ()


def test_a_setting_that_was_a_mistake_is_forgotten_when_the_clock_is_set_back() -> None:
    ahead = believe(believe(Belief(NOW), HOUR, AHEAD), PATIENCE_NS, AHEAD + PATIENCE_NS)
    assert len(ahead.steps) == 1
    now = NOW + 2 * PATIENCE_NS
    back = believe(believe(ahead, HOUR, now), PATIENCE_NS, now + PATIENCE_NS)
    assert back == Belief(now + PATIENCE_NS)
    year = 365 * 24 * HOUR
    assert before_ns(back.at_ns + year, 30 * STEP_NS, back.steps) == back.at_ns + year - 30 * STEP_NS


@pytest.mark.parametrize(
    ("now", "age", "before"),
    [
        (1000, 100, 900),  # of the present clock
        (1000, 500, 500),
        (1000, 501, 99),  # the clock was set from 100 to 500: one older is one of the clock before
        (1000, 550, 50),
        (550, 100, 50),
        (450, 10, 90),  # of the two times the earlier one counts
    ],
)
def test_the_time_that_a_clock_was_set_by_makes_nothing_old(now: int, age: int, before: int) -> None:
    assert before_ns(now, age, [Step(100, 400)]) == before
    assert before_ns(now + 10_000, age, [Step(100, 400), Step(now, 10_000)]) == before
