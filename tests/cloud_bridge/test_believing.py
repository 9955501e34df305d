import pytest

from cloud_bridge.believing import PATIENCE_NS, STEP_NS, Belief, believe

NOW = 1_800_000_000_000_000_000
HOUR = 3600 * 10**9


@pytest.mark.parametrize(
    ("before", "elapsed", "wall", "after"),
    [
        (None, 0, NOW, Belief(NOW)),
        (Belief(NOW), HOUR, NOW + HOUR, Belief(NOW + HOUR)),
        (Belief(NOW), HOUR, NOW + HOUR + STEP_NS, Belief(NOW + HOUR + STEP_NS)),
        (Belief(NOW), HOUR, NOW + 2 * HOUR + STEP_NS, Belief(NOW + HOUR, NOW + HOUR)),
        (Belief(NOW), HOUR, 0, Belief(NOW + HOUR, NOW + HOUR)),
        (Belief(NOW, NOW - HOUR), HOUR, 0, Belief(NOW + HOUR, NOW - HOUR)),
        (Belief(NOW, NOW - HOUR), HOUR, NOW, Belief(NOW)),
        (Belief(NOW, NOW - PATIENCE_NS), 0, 2 * NOW, Belief(2 * NOW)),
        (Belief(NOW, NOW - PATIENCE_NS), 0, 0, Belief(0)),
    ],
)
def test_a_time_that_was_not_expected_is_believed_once_it_has_stood_for_long(
    before: Belief | None, elapsed: int, wall: int, after: Belief
) -> None:
    assert believe(before, elapsed, wall) == after


def test_while_two_times_differ_what_is_old_goes_by_the_earlier_one() -> None:
    assert Belief(NOW).due_ns(NOW + 1) == NOW
    assert Belief(NOW).due_ns(5) == 5
