"""When windows are open: crontab(5), time zones, summer time."""

from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import pytest

from gateway.config import LinkWindow
from gateway.metering.windows import Opening, Windows

BERLIN = ZoneInfo("Europe/Berlin")


def ns(*parts: int) -> int:
    return int(datetime(*parts, tzinfo=UTC).timestamp()) * 1_000_000_000  # type: ignore[misc,arg-type]


def windows(*given: tuple[str, int]) -> Windows:
    return Windows([LinkWindow(open=expression, minutes=minutes) for expression, minutes in given], BERLIN)


def test_without_windows_it_is_always_open() -> None:
    assert windows().at(ns(2026, 1, 1)) == Opening(is_open=True, until_ns=None)


def test_a_window_opens_and_closes_to_the_second() -> None:
    night = windows(("0 2 * * *", 60))
    assert night.at(ns(2026, 1, 1, 0, 59, 59)) == Opening(is_open=False, until_ns=ns(2026, 1, 1, 1))
    assert night.at(ns(2026, 1, 1, 1)) == Opening(is_open=True, until_ns=ns(2026, 1, 1, 2))
    assert night.at(ns(2026, 1, 1, 1, 59, 59)) == Opening(is_open=True, until_ns=ns(2026, 1, 1, 2))
    assert night.at(ns(2026, 1, 1, 2)) == Opening(is_open=False, until_ns=ns(2026, 1, 2, 1))


def test_a_clock_that_is_set_back_is_followed() -> None:
    night = windows(("0 2 * * *", 60))
    assert night.at(ns(2026, 1, 5, 1, 30)).is_open
    assert not night.at(ns(2026, 1, 4, 12)).is_open


def test_where_summer_time_skips_the_hour_the_window_opens_after_the_gap_in_full_length() -> None:
    night = windows(("30 2 * * *", 60))
    assert night.at(ns(2026, 3, 29, 1, 29)) == Opening(is_open=False, until_ns=ns(2026, 3, 29, 1, 30))
    assert night.at(ns(2026, 3, 29, 1, 30)) == Opening(is_open=True, until_ns=ns(2026, 3, 29, 2, 30))


def test_where_summer_time_repeats_the_hour_a_window_of_that_hour_opens_once() -> None:
    night = windows(("0 2 * * *", 60))
    assert night.at(ns(2026, 10, 25, 0)) == Opening(is_open=True, until_ns=ns(2026, 10, 25, 1))
    assert night.at(ns(2026, 10, 25, 1)) == Opening(is_open=False, until_ns=ns(2026, 10, 26, 1))


def test_an_hourly_window_opens_in_the_repeated_hour_too() -> None:
    hourly = windows(("0 * * * *", 10))
    assert hourly.at(ns(2026, 10, 25, 0, 5)).is_open
    assert hourly.at(ns(2026, 10, 25, 1, 5)).is_open


def test_a_window_over_the_change_of_the_clock_keeps_its_real_length() -> None:
    evening = windows(("0 23 * * *", 300))
    assert evening.at(ns(2026, 10, 24, 22)) == Opening(is_open=True, until_ns=ns(2026, 10, 25, 2))
    assert evening.at(ns(2026, 3, 28, 23)) == Opening(is_open=True, until_ns=ns(2026, 3, 29, 3))


@pytest.mark.parametrize(
    ("weekday", "open_on"),
    [("0", {22}), ("7", {22}), ("1", {23}), ("6", {21}), ("1-5", {23, 24, 25, 26, 27}), ("sun-tue", {22, 23, 24})],
)
def test_weekdays_count_from_sunday_as_in_crontab(weekday: str, open_on: set[int]) -> None:
    noon = windows((f"0 12 * * {weekday}", 30))
    assert {day for day in range(21, 28) if noon.at(ns(2026, 11, day, 11, 10)).is_open} == open_on


def test_steps_in_the_weekday_field_stay_steps() -> None:
    assert windows(("0 12 * * */2", 30)).at(ns(2026, 11, 21)).until_ns is not None


def test_windows_that_touch_are_one() -> None:
    both = windows(("0 2 * * *", 60), ("0 3 * * *", 60))
    assert both.at(ns(2026, 1, 1, 1, 30)) == Opening(is_open=True, until_ns=ns(2026, 1, 1, 3))


def test_a_day_that_never_comes_never_opens() -> None:
    assert windows(("0 0 31 2 *", 60)).at(ns(2026, 1, 1)) == Opening(is_open=False, until_ns=None)


@pytest.mark.parametrize("expression", ["", "x", "0 2 * *", "0 25 * * *", "61 * * * *", "0 2 * * mun", "@daily"])
def test_what_is_no_crontab_expression_is_refused(expression: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        windows((expression, 10))
