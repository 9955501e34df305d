import pytest

from gateway.uplink.pacing import FIRST_WINDOW, MAX_PUBACK_DOUBLINGS, SECOND, BrokerPatience, Window


def test_the_window_grows_with_quick_acks_up_to_what_the_broker_takes() -> None:
    window = Window(20)
    window.begin(receive_maximum=6)
    assert window.room == FIRST_WINDOW
    for number in range(10):
        window.steer(now_ns=number * SECOND + 5, sent_ns=number * SECOND)
    assert window.room == 6


def test_the_window_shrinks_once_for_all_that_was_sent_into_the_same_queue() -> None:
    window = Window(20)
    window.steer(now_ns=10 * SECOND + 1, sent_ns=10 * SECOND)  # the best: almost no delay
    for number in range(15):
        window.steer(now_ns=11 * SECOND + number, sent_ns=11 * SECOND)
    assert window.room == 20
    window.steer(now_ns=20 * SECOND, sent_ns=15 * SECOND)
    window.steer(now_ns=20 * SECOND + 1, sent_ns=15 * SECOND)
    assert window.room == 14


def test_a_window_is_never_closed_by_overdue_acks() -> None:
    window = Window(20)
    for _ in range(20):
        window.halve()
    assert window.room == 1


def test_the_broker_has_time_from_its_last_answer_on_not_from_the_sending() -> None:
    patience = BrokerPatience(30.0)
    assert patience.deadline(ticket=2, sent_ns=0) == 30 * SECOND
    patience.answered(ticket=1, now_ns=20 * SECOND)
    assert patience.deadline(ticket=2, sent_ns=0) == 50 * SECOND
    patience.answered(ticket=3, now_ns=25 * SECOND)  # batch 2 was passed over: it is not on its way any more
    assert patience.deadline(ticket=2, sent_ns=0) == 30 * SECOND


@pytest.mark.parametrize(("lives", "doublings"), [(1, 1), (2, 2), (20, MAX_PUBACK_DOUBLINGS)])
def test_each_stuck_connection_doubles_the_time_of_the_next_up_to_a_limit(lives: int, doublings: int) -> None:
    patience = BrokerPatience(30.0)
    for _ in range(lives):
        patience.note_stuck()
        patience.link_down()
        patience.link_up()
    assert patience.deadline(ticket=1, sent_ns=0) == (30 << doublings) * SECOND


def test_a_quick_answer_ends_the_longer_patience_and_a_slow_one_does_not() -> None:
    patience = BrokerPatience(30.0)
    patience.note_stuck()
    patience.link_down()
    patience.link_up()
    patience.taken(ticket=1, sent_ns=0, now_ns=40 * SECOND)
    assert patience.deadline(ticket=2, sent_ns=40 * SECOND) == 100 * SECOND
    patience.taken(ticket=2, sent_ns=40 * SECOND, now_ns=41 * SECOND)
    assert patience.deadline(ticket=3, sent_ns=41 * SECOND) == 71 * SECOND
