"""A twin is told again as often as it helps, and no more."""

from collections.abc import Sequence

from cloud_bridge.twins.again import Again

SECOND_NS = 10**9


def minutes_told(hours: int, answers: Sequence[bool]) -> list[int]:
    """Have a device say each second, in turns, whether it has its twin; return the minutes in which it is told it."""
    again, told = Again(), []
    for second in range(hours * 3600):
        now_ns = second * SECOND_NS
        if answers[second % len(answers)]:
            again.has("gw-1", now_ns)
        else:
            again.lacks("gw-1", now_ns)
        if again.told("gw-1", now_ns):
            told.append(second // 60)
    return told


def test_a_device_that_refuses_for_ever_is_told_ever_more_seldom() -> None:
    assert minutes_told(5, [False]) == [0, 1, 3, 7, 15, 31, 63, 123, 183, 243]


def test_a_device_that_is_sent_others_again_and_again_has_one_of_ours_a_minute() -> None:
    told = minutes_told(2, [False, True])
    assert told == [*range(120)]


def test_a_device_that_has_its_twin_is_not_told_it() -> None:
    again = Again()
    again.lacks("gw-1", SECOND_NS)
    again.has("gw-1", 0)
    assert not again.is_due("gw-1", 3600 * SECOND_NS)
    assert not again.told("gw-1", 3600 * SECOND_NS)
