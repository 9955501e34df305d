import pytest

from gateway.uplink.backoff import Backoff, Lane


@pytest.mark.parametrize(
    ("lane", "failures", "shortest", "longest"),
    [
        ("unreachable", 1, 0.0, 0.5),
        ("unreachable", 3, 0.0, 2.0),
        ("unreachable", 50, 0.0, 5.0),
        ("busy", 1, 0.125, 0.5),
        ("busy", 5, 2.0, 8.0),
        ("busy", 5000, 7.5, 30.0),
        ("refused", 1, 5.0, 6.0),
        ("refused", 4, 5.0, 13.0),
        ("refused", 5000, 5.0, 60.0),
    ],
)
def test_the_wait_is_drawn_from_a_window_that_doubles_to_its_cap(
    lane: Lane, failures: int, shortest: float, longest: float
) -> None:
    assert Backoff().delay(lane, failures, 0.0) == shortest
    assert Backoff().delay(lane, failures, 1.0) == longest


def test_however_the_draws_fall_a_busy_broker_is_asked_less_than_once_a_second() -> None:
    waits = [Backoff().delay("busy", failures, 0.0) for failures in range(1, 20)]
    for tries in range(6, len(waits)):
        assert sum(waits[:tries]) > tries
