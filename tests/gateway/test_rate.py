"""How often something happens."""

import pytest

from gateway.rate import Rate

SECOND = 1_000_000_000


def test_a_steady_beat_is_told_as_its_rate() -> None:
    rate = Rate()
    for tick in range(201):
        rate.tick(tick * SECOND // 20)
    assert rate.per_second(10 * SECOND) == pytest.approx(20.0, rel=0.02)


def test_a_rate_dies_away_when_nothing_happens_any_more() -> None:
    rate = Rate()
    for tick in range(201):
        rate.tick(tick * SECOND // 20)
    assert rate.per_second(60 * SECOND) < 0.5


def test_nothing_is_a_rate_of_zero() -> None:
    assert Rate().per_second(SECOND) == 0.0
