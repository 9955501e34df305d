"""When a budget period is over, whatever the clocks do."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import msgspec
import pytest

from gateway.config import Period
from gateway.metering.periods import Account, Moment, opened, period_at, renews_at, rolled

BERLIN = ZoneInfo("Europe/Berlin")
NOON = datetime(2026, 11, 21, 12, tzinfo=UTC)


def ns(moment: datetime) -> int:
    return int(moment.timestamp()) * 1_000_000_000


def at(moment: datetime = NOON, *, age_hours: float = 1000.0, boot: str = "a", synchronised: bool = False) -> Moment:
    return Moment(ns(moment), int(age_hours * 3_600_000), boot, synchronised)


def later(moment: Moment, hours: float) -> Moment:
    """Time really passes."""
    return replace(
        moment,
        wall_ns=moment.wall_ns + int(hours * 3600) * 1_000_000_000,
        age_ms=moment.age_ms + int(hours * 3_600_000),
    )


def stepped(moment: Moment, hours: float) -> Moment:
    """Somebody sets the clock."""
    return replace(moment, wall_ns=moment.wall_ns + int(hours * 3600) * 1_000_000_000)


def used(per: Period, now: Moment, spent: int = 100) -> Account:
    return msgspec.structs.replace(opened(per, now, BERLIN), spent_bytes=spent)


@pytest.mark.parametrize(
    ("per", "moment", "start", "hours"),
    [
        ("hour", datetime(2026, 11, 21, 12, 59, 59, tzinfo=UTC), datetime(2026, 11, 21, 12, tzinfo=UTC), 1),
        ("day", NOON, datetime(2026, 11, 20, 23, tzinfo=UTC), 24),
        ("month", NOON, datetime(2026, 10, 31, 23, tzinfo=UTC), 30 * 24),
        ("day", datetime(2026, 3, 29, 12, tzinfo=UTC), datetime(2026, 3, 28, 23, tzinfo=UTC), 23),
        ("day", datetime(2026, 10, 25, 12, tzinfo=UTC), datetime(2026, 10, 24, 22, tzinfo=UTC), 25),
        ("hour", datetime(2026, 10, 25, 0, 30, tzinfo=UTC), datetime(2026, 10, 25, 0, tzinfo=UTC), 1),
        ("hour", datetime(2026, 10, 25, 1, 30, tzinfo=UTC), datetime(2026, 10, 25, 1, tzinfo=UTC), 1),
        ("month", datetime(2026, 12, 31, 22, 59, tzinfo=UTC), datetime(2026, 11, 30, 23, tzinfo=UTC), 31 * 24),
        ("month", datetime(2028, 2, 10, tzinfo=UTC), datetime(2028, 1, 31, 23, tzinfo=UTC), 29 * 24),
    ],
)
def test_periods_are_those_of_the_calendar_in_the_time_zone(
    per: Period, moment: datetime, start: datetime, hours: int
) -> None:
    assert period_at(per, ns(moment), BERLIN) == (ns(start), ns(start + timedelta(hours=hours)))


def test_a_period_that_really_passed_ends_without_a_synchronised_clock() -> None:
    now = at()
    account = used("day", now)
    assert rolled(account, later(now, 10), BERLIN).spent_bytes == 100
    assert rolled(account, later(now, 11), BERLIN).spent_bytes == 0


@pytest.mark.parametrize("synchronised", [False, True])
@pytest.mark.parametrize("hours", [30, 24 * 40, 24 * 3650, -30, -24 * 3650])
def test_no_step_of_a_watched_clock_grants_a_budget_again(synchronised: bool, hours: float) -> None:
    now = at(synchronised=synchronised)
    for per in ("hour", "day", "month"):
        account = used(per, now)
        there = rolled(account, stepped(now, hours), BERLIN)
        assert there.spent_bytes == 100
        assert rolled(there, now, BERLIN).spent_bytes == 100  # and back again


def test_after_a_step_of_a_synchronised_clock_the_next_period_begins_as_it_shows() -> None:
    now = at(synchronised=True)
    jumped = stepped(now, 24)
    account = rolled(used("day", now), jumped, BERLIN)
    assert rolled(account, later(jumped, 10.9), BERLIN).spent_bytes == 100
    assert rolled(account, later(jumped, 11), BERLIN).spent_bytes == 0


def test_a_wrong_clock_withholds_a_budget_no_longer_than_the_longest_period() -> None:
    wrong = stepped(at(), -24 * 3650)
    account = used("day", at())
    assert rolled(account, later(wrong, 24.9), BERLIN).spent_bytes == 100
    renewed = rolled(account, later(wrong, 25), BERLIN)
    assert renewed.spent_bytes == 0
    # From there on its periods are those that the wrong clock shows.
    assert rolled(msgspec.structs.replace(renewed, spent_bytes=7), later(wrong, 49), BERLIN).spent_bytes == 0


def test_a_reboot_within_the_period_changes_nothing() -> None:
    now = at()
    assert rolled(used("month", now), replace(later(now, 48), boot_id="b"), BERLIN).spent_bytes == 100


def test_a_long_rest_counts_once_the_clock_is_synchronised() -> None:
    now = at(synchronised=True)
    account = used("month", now)
    # Three weeks off; the store's clock counts a day of it at most, and the wall clock begins in 1970.
    booted = Moment(0, now.age_ms + 24 * 3_600_000, "b", synchronised=False)
    account = rolled(account, booted, BERLIN)
    assert account.spent_bytes == 100
    right = Moment(ns(NOON + timedelta(days=21)), booted.age_ms + 60_000, "b", synchronised=True)
    assert rolled(account, right, BERLIN).spent_bytes == 0


def test_rebooting_into_1970_again_and_again_grants_nothing() -> None:
    now = at(synchronised=True)
    account = used("day", now)
    for boot in range(20):
        booted = Moment(0, now.age_ms, f"boot-{boot}", synchronised=False)
        account = rolled(account, booted, BERLIN)
        account = rolled(account, later(booted, 0.01), BERLIN)
        right = replace(now, boot_id=f"boot-{boot}")
        account = rolled(account, right, BERLIN)
        assert account.spent_bytes == 100


def test_losing_the_time_server_does_not_explain_a_jump() -> None:
    now = at(synchronised=True)
    account = rolled(used("day", now), replace(later(now, 1), synchronised=False), BERLIN)
    jumped = replace(stepped(later(now, 1), 48), synchronised=True)
    assert rolled(account, jumped, BERLIN).spent_bytes == 100


def test_the_renewal_is_told_by_the_clock_as_it_is() -> None:
    now = at()
    account = used("day", now)
    assert renews_at(account, now, BERLIN) == ns(datetime(2026, 11, 21, 23, tzinfo=UTC))
    wrong = stepped(now, -1000)
    assert renews_at(account, wrong, BERLIN) == wrong.wall_ns + 25 * 3600 * 1_000_000_000


def test_a_clock_set_back_a_little_over_the_turn_does_not_begin_the_same_period_twice() -> None:
    before = at(datetime(2026, 11, 21, 12, 58, tzinfo=UTC))
    fresh = rolled(used("hour", before), later(before, 0.05), BERLIN)
    assert fresh.spent_bytes == 0
    account = msgspec.structs.replace(fresh, spent_bytes=100)
    now = later(before, 0.05)
    for _ in range(3):
        now = stepped(now, -0.05)
        account = rolled(account, now, BERLIN)
        now = later(now, 0.05)
        account = rolled(account, now, BERLIN)
        assert account.spent_bytes == 100
