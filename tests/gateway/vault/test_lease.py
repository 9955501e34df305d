"""Leases: what is worth writing down."""

import pytest

from gateway.vault.lease import NANOSECONDS_A_DAY, is_worth_writing

NOW = 1_800_000_000 * 10**9
MONTH = NOW + 30 * NANOSECONDS_A_DAY
HOUR = NANOSECONDS_A_DAY // 24


@pytest.mark.parametrize(
    ("until", "granted", "worth"),
    [
        (MONTH, MONTH, False),
        (MONTH, MONTH + HOUR // 2, False),
        (MONTH, MONTH + 8 * HOUR, True),  # more than a hundredth of a month
        (MONTH, MONTH - 1, True),  # somebody has shortened it
        (NOW + HOUR, NOW + 2 * HOUR, True),
        (NOW - HOUR, NOW - HOUR, True),  # over in any case: it is written as it came
    ],
)
def test_a_lease_is_written_when_it_has_moved_by_a_hundredth(until: int, granted: int, *, worth: bool) -> None:
    assert is_worth_writing(until, granted, NOW) is worth


def test_renewed_twice_an_hour_it_is_written_a_few_times_a_day_and_never_far_behind() -> None:
    kept, writes = MONTH, 0
    for step in range(1, 7 * 48):
        now = NOW + step * HOUR // 2
        granted = now + 30 * NANOSECONDS_A_DAY
        if is_worth_writing(kept, granted, now):
            kept, writes = granted, writes + 1
        assert granted - kept < 8 * HOUR
    assert 7 <= writes <= 7 * 4
