from gateway.uplink.unanswered import NOBODY_LISTENS, NOBODY_SECONDS, SILENT, SILENT_SECONDS, Unanswered

SECOND = 1_000_000_000


def seconds_until_left(state: Unanswered, reason: str, began: int) -> float:
    now = began
    while not state.is_over(now, reason):
        now += SECOND
    state.left()
    return (now - began) / SECOND


def test_patience_grows_each_time_and_begins_anew_when_a_bridge_is_heard() -> None:
    state = Unanswered()
    waits = [seconds_until_left(state, NOBODY_LISTENS, at * 10_000 * SECOND) for at in range(7)]
    assert waits == [NOBODY_SECONDS * factor for factor in (1, 2, 4, 8, 16, 16, 16)]
    assert state.hears(5)
    assert not state.hears(5)
    assert seconds_until_left(state, NOBODY_LISTENS, 0) == NOBODY_SECONDS


def test_a_bridge_that_only_does_not_acknowledge_gets_more_of_it() -> None:
    assert seconds_until_left(Unanswered(), SILENT, 0) == SILENT_SECONDS > NOBODY_SECONDS


def test_one_answer_in_between_is_enough() -> None:
    state = Unanswered()
    almost = int((NOBODY_SECONDS - 1) * SECOND)
    assert not state.is_over(0, NOBODY_LISTENS)
    assert not state.is_over(almost, "")
    assert not state.is_over(almost + SECOND, NOBODY_LISTENS)
    assert not state.is_over(2 * almost, NOBODY_LISTENS)


def test_a_bridge_that_acknowledges_one_class_is_there_whatever_becomes_of_the_others() -> None:
    state = Unanswered()
    for second in range(600):
        assert state.hears(second + 1)
        assert not state.is_over(second * SECOND, SILENT)
