"""How far ahead a fencing token of a desired twin may be. Pure.

A token is one more than the last one and never less than the clock in milliseconds. The highest that was accepted is
never forgotten, so a device that believed any number could be shut off from updates for good by a single message.

The bridge lets what devices report move the tokens of the fleet by at most `MOST_AHEAD_MS`. A device believes a day
more, and the bridge answers a single device up to two days more, so that clocks which differ leave no token that the
one has taken and the other passes over. A clock that was never set counts as the earliest that there can be: else it
would pass over whatever a right one has given.
"""

from typing import Final

_MS_NS: Final = 1_000_000
_DAY_MS: Final = 86_400_000
_EARLIEST_MS: Final = 1_793_491_200_000
"""2026-11-01: no token was bounded before."""

MOST_AHEAD_MS: Final = 10 * 366 * _DAY_MS
"""Ten years."""


def of_fleet_ms(now_ns: int) -> int:
    """Return the highest token, reported by a device, that the tokens of a whole fleet are raised above."""
    return max(now_ns // _MS_NS, _EARLIEST_MS) + MOST_AHEAD_MS


def of_twin_ms(now_ns: int) -> int:
    """Return the highest token of a desired twin that a device believes."""
    return of_fleet_ms(now_ns) + _DAY_MS


def of_report_ms(now_ns: int) -> int:
    """Return the highest reported token above which the device that reports it is given its twin again."""
    return of_twin_ms(now_ns) + _DAY_MS
