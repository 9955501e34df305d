"""The store's own clock."""

import pytest

from gateway.outbox.ages import LONGEST_PAUSE_MS, AgeClock, Reading, SavedAge, resumed_age_ms
from tests.simulators.settable_clocks import DAY, SECOND, SettableClocks

BEFORE = SavedAge(age_ms=5000, reading=Reading(wall_ns=1000 * SECOND, uptime_ns=50 * SECOND, boot_id="one"))


@pytest.mark.parametrize(
    ("now", "expected_ms"),
    [
        pytest.param((1000, 60, "one"), 15_000, id="a restart counts by the uptime"),
        pytest.param((-(10**6), 60, "one"), 15_000, id="a clock set back meanwhile does not matter"),
        pytest.param((10**12, 60, "one"), 15_000, id="nor one set ahead"),
        pytest.param((1030, 5, "two"), 35_000, id="a reboot counts by the wall clock"),
        pytest.param((0, 5, "two"), 5000, id="a boot in 1970 counts nothing"),
        pytest.param((10**9, 5, "two"), 5000 + LONGEST_PAUSE_MS, id="a boot years ahead counts a day"),
        pytest.param((1030, 60, ""), 35_000, id="no boot id counts as a reboot"),
    ],
)
def test_age_goes_on_by_what_can_be_trusted(now: tuple[int, int, str], expected_ms: int) -> None:
    wall, uptime, boot = now
    reading = Reading(wall_ns=wall * SECOND, uptime_ns=uptime * SECOND, boot_id=boot)
    assert resumed_age_ms(BEFORE, reading) == expected_ms


def test_a_new_store_begins_at_nought() -> None:
    assert resumed_age_ms(None, BEFORE.reading) == 0


def test_the_clock_follows_the_uptime_and_survives_restarts() -> None:
    machine = SettableClocks()
    clock = AgeClock(None, machine.clocks())
    machine.pass_seconds(100)
    machine.step_wall(-10 * DAY / SECOND)
    assert clock.now_ms() == 100_000
    saved = clock.save()
    machine.pass_seconds(20)
    again = AgeClock(saved, machine.clocks())
    assert again.now_ms() == 120_000


def test_the_clock_never_goes_back() -> None:
    machine = SettableClocks()
    clock = AgeClock(None, machine.clocks())
    machine.pass_seconds(100)
    assert clock.now_ms() == 100_000
    machine.uptime_ns -= 50 * SECOND
    assert clock.now_ms() == 100_000
