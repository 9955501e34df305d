"""The trusted clock: floor, anchor, doubt."""

from dataclasses import dataclass

from gateway.identity.clock import TrustedClock

_S = 1_000_000_000
_NOON = 1_800_000_000 * _S


@dataclass
class Clocks:
    wall: int = _NOON
    passed: int = 0

    def trusted(self, floor_ns: int = 0) -> TrustedClock:
        return TrustedClock(floor_ns, wall_ns=lambda: self.wall, monotonic_ns=lambda: self.passed)


def test_the_wall_clock_is_believed_until_somebody_knows_better() -> None:
    clock = Clocks().trusted()
    assert clock.now_ns() == _NOON
    assert not clock.doubtful


def test_it_is_never_earlier_than_the_floor() -> None:
    clocks = Clocks(wall=0)  # 1970
    clock = clocks.trusted(floor_ns=_NOON)
    assert clock.now_ns() == _NOON
    assert clock.doubtful


def test_time_told_by_the_bridge_goes_on_by_the_monotonic_clock() -> None:
    clocks = Clocks(wall=0)
    clock = clocks.trusted()
    clock.learn(_NOON)
    clocks.passed += 90 * _S
    clocks.wall = 5 * _NOON
    assert clock.now_ns() == _NOON + 90 * _S
    assert clock.skew_seconds > 0
    assert clock.doubtful


def test_a_small_difference_is_no_doubt() -> None:
    clocks = Clocks()
    clock = clocks.trusted()
    clock.learn(_NOON + 200 * _S)
    assert not clock.doubtful


def test_an_old_message_does_not_turn_time_back() -> None:
    clocks = Clocks()
    clock = clocks.trusted(floor_ns=_NOON)
    clock.learn(_NOON - 3600 * _S)
    assert clock.floor_ns == _NOON
    assert clock.now_ns() == _NOON


def test_a_step_of_the_wall_clock_is_noticed() -> None:
    clocks = Clocks()
    clock = clocks.trusted()
    clock.learn(_NOON)
    clocks.wall -= 10 * 86_400 * _S
    assert clock.doubtful
    assert clock.now_ns() == _NOON
