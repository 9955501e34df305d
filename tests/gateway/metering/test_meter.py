"""Budgets, windows and the account of what passed."""

import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
from structlog.testing import capture_logs

from gateway.config import Budget, ClassWindows, Feature, FeatureMetering, LinkWindow, Metering, Period
from gateway.metering.ledger import Ledger, ReadOnlyLedger
from gateway.metering.meter import Direction, Hold, Meter
from tests.simulators.settable_clocks import SettableClocks

BERLIN = ZoneInfo("Europe/Berlin")
NOON = int(datetime(2026, 11, 21, 12, tzinfo=UTC).timestamp()) * 1_000_000_000
MIDNIGHT = NOON + 11 * 3600 * 1_000_000_000
TWO = MIDNIGHT + 2 * 3600 * 1_000_000_000
NIGHT = [LinkWindow(open="0 2 * * *", minutes=60)]

Make = Callable[[Metering], Meter]


@pytest.fixture
def machine() -> SettableClocks:
    return SettableClocks(wall_ns=NOON)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "link-usage.json"


@pytest.fixture
def meter_of(machine: SettableClocks, file: Path) -> Make:
    def make(settings: Metering) -> Meter:
        return Meter(settings, BERLIN, Ledger(file), clocks=machine.clocks())

    return make


def budget(feature: Feature = "records", size: int | str = 10_000, per: Period = "day", **more: object) -> Metering:
    return Metering(features={feature: FeatureMetering(budget=Budget(bytes=size, per=per))}, **more)  # type: ignore[arg-type]


def send(meter: Meter, feature: Feature, size: int) -> bool:
    """Ask, and send if it may be."""
    if not meter.allow(feature, size):
        return False
    meter.spent(feature, "out", size)
    return True


def test_nothing_is_limited_by_default_and_everything_is_counted(meter_of: Make) -> None:
    meter = meter_of(Metering())
    assert not meter.limits
    assert meter.held() == {}
    assert meter.room("records") is None
    assert send(meter, "records", 10**12)
    meter.spent("records", "in", 5)
    meter.spent("protocol", "in", 2)
    usage = meter.usage()
    assert (usage.features["records"].sent_bytes, usage.features["records"].received_bytes) == (10**12, 5)
    assert usage.protocol.received_bytes == 2
    assert usage.features["records"].left_bytes is None


def test_no_more_than_the_budget_is_let_through(meter_of: Make) -> None:
    meter = meter_of(budget())
    sent = [size for size in (4000, 4000, 4000, 2000, 1) if send(meter, "records", size)]
    assert sent == [4000, 4000, 2000]
    assert meter.room("records") == 0
    assert meter.hold("records") == Hold("budget", MIDNIGHT)
    assert set(meter.held()) == {"event", "measure"}


def test_what_is_on_its_way_is_set_aside(meter_of: Make) -> None:
    meter = meter_of(budget())
    assert meter.allow("records", 6000)
    assert meter.room("records") == 4000
    assert not meter.allow("records", 6000)
    meter.spent("records", "out", 1000)
    assert meter.room("records") == 4000
    meter.give_back("records", 5000)
    assert meter.room("records") == 9000
    assert meter.allow("records", 6000)
    meter.link_down()
    assert meter.room("records") == 9000


def test_answers_count_too(meter_of: Make) -> None:
    meter = meter_of(budget())
    meter.spent("records", "in", 4000)
    assert meter.room("records") == 6000


def test_what_is_larger_than_the_whole_budget_passes_in_a_fresh_period_only(meter_of: Make) -> None:
    meter = meter_of(budget())
    assert send(meter, "records", 15_000)
    assert not meter.allow("records", 1)
    other = meter_of(budget("snapshots"))
    assert send(other, "snapshots", 1)
    assert not other.allow("snapshots", 15_000)


def test_a_remainder_too_small_for_the_next_piece_makes_the_feature_wait(
    meter_of: Make, machine: SettableClocks
) -> None:
    meter = meter_of(budget())
    assert send(meter, "records", 9990)
    assert meter.held() == {}
    meter.exhaust("records", 11)
    assert meter.hold("records") == Hold("budget", MIDNIGHT)
    machine.pass_seconds(12 * 3600)
    assert meter.hold("records") is None


def test_critical_passes_a_used_up_budget_and_is_counted(meter_of: Make) -> None:
    meter = meter_of(budget())
    assert send(meter, "records", 10_000)
    assert meter.allow("records", 500, record_class="critical")
    meter.spent("records", "out", 500)
    assert meter.usage().features["records"].spent_bytes == 10_500
    assert "critical" not in meter.held()
    # Control: without the override it waits like the others.
    strict = meter_of(budget("snapshots", override=()))
    assert send(strict, "snapshots", 10_000)
    assert not strict.allow("snapshots", 500, record_class="critical")


def test_what_is_left_of_a_budget_is_told_with_its_period(meter_of: Make, machine: SettableClocks) -> None:
    meter = meter_of(budget())
    assert send(meter, "records", 4000)
    now = meter.allowance("records")
    assert now is not None
    assert (now.left_bytes, now.budget_bytes, now.renews_at_ns) == (6000, 10_000, MIDNIGHT)
    machine.pass_seconds(12 * 3600)
    following = meter.allowance("records")
    assert following is not None
    assert following.left_bytes == 10_000
    assert now.period != following.period
    assert meter.allowance("snapshots") is None
    meter.link(metered=False)
    assert meter.allowance("records") is None


def test_a_new_period_that_a_clock_set_back_begins_on_the_same_day_is_another_one(
    meter_of: Make, machine: SettableClocks
) -> None:
    meter = meter_of(budget())
    assert send(meter, "records", 10_000)
    spent = meter.allowance("records")
    machine.step_wall(-20 * 3600)
    machine.pass_seconds(24 * 3600)
    still = meter.allowance("records")
    machine.pass_seconds(3600)
    renewed = meter.allowance("records")
    assert spent is not None
    assert still is not None
    assert renewed is not None
    assert (still.left_bytes, still.period) == (0, spent.period)
    assert renewed.left_bytes == 10_000
    assert renewed.period != spent.period, "who waits for it would go on waiting"


def test_a_new_period_brings_a_new_budget(meter_of: Make, machine: SettableClocks) -> None:
    meter = meter_of(budget())
    assert send(meter, "records", 10_000)
    machine.pass_seconds(11 * 3600 - 1)
    assert not meter.allow("records", 1)
    machine.pass_seconds(2)
    assert send(meter, "records", 10_000)


def test_features_pay_from_their_own_budgets(meter_of: Make) -> None:
    meter = meter_of(budget("snapshots"))
    assert send(meter, "snapshots", 10_000)
    assert set(meter.held()) == {"bulk"}
    assert send(meter, "records", 10**9)


def test_a_window_holds_its_feature_and_a_class_may_have_its_own(meter_of: Make, machine: SettableClocks) -> None:
    meter = meter_of(
        Metering(
            features={"records": FeatureMetering(windows=NIGHT), "telemetry": FeatureMetering(windows=NIGHT)},
            classes={"event": ClassWindows(windows=[LinkWindow(open="0 * * * *", minutes=30)])},
        )
    )
    assert meter.held() == {"measure": Hold("window", TWO)}
    assert meter.allow("records", 1, record_class="event")
    assert not meter.allow("records", 1, record_class="measure")
    assert not meter.allow("telemetry", 1)
    machine.pass_seconds(13 * 3600)  # 02:00 in Berlin
    assert meter.held() == {}


def test_nothing_is_limited_on_a_broker_that_is_not_metered(meter_of: Make) -> None:
    meter = meter_of(budget())
    assert send(meter, "records", 10_000)
    meter.link(metered=False)
    assert meter.held() == {}
    assert send(meter, "records", 10**6)
    meter.link(metered=True)
    usage = meter.usage().features["records"]
    assert (usage.spent_bytes, usage.sent_bytes) == (10_000, 1_010_000)


# ---- over restarts ---------------------------------------------------------------------------------------


def test_a_month_budget_survives_a_restart_a_reboot_and_a_clock_step(meter_of: Make, machine: SettableClocks) -> None:
    settings = budget(per="month")
    meter = meter_of(settings)
    assert send(meter, "records", 9000)
    meter.close()
    assert meter_of(settings).room("records") == 1000
    machine.reboot(off_seconds=3600)
    assert meter_of(settings).room("records") == 1000
    machine.step_wall(40 * 86_400)
    assert meter_of(settings).room("records") == 1000
    machine.step_wall(-4000 * 86_400)
    assert meter_of(settings).room("records") == 1000


def test_without_its_file_the_budget_would_be_granted_again(meter_of: Make, file: Path) -> None:
    meter = meter_of(budget(per="month"))
    assert send(meter, "records", 9000)
    meter.close()
    file.unlink()
    assert meter_of(budget(per="month")).room("records") == 10_000


def test_a_power_cut_never_gives_bytes_back_and_takes_little(meter_of: Make) -> None:
    """The process ends anywhere, without `close`: what the next one believes is at least what was spent."""
    settings = budget(size=1_000_000)
    spent = 0
    lives = 0
    for lives in range(1, 21):
        meter = meter_of(settings)
        believed = 1_000_000 - (meter.room("records") or 0)
        assert spent <= believed <= spent + (lives - 1) * 4000
        for _ in range(7):
            assert send(meter, "records", 3000)
            spent += 3000
    assert lives == 20


@pytest.mark.parametrize(("feature", "direction"), [("model_downloads", "in"), ("records", "out")])
def test_a_power_cut_never_takes_back_what_passed_this_month(
    meter_of: Make, feature: Feature, direction: Direction
) -> None:
    settings = budget(feature, size=1_000_000, per="hour")
    passed = 0
    for life in range(10):
        meter = meter_of(settings)
        usage = meter.usage().features[feature]
        told = usage.month_received_bytes if direction == "in" else usage.month_sent_bytes
        assert passed <= told <= passed + life * 4000
        for _ in range(7):
            assert meter.allow(feature, 3000)
            meter.spent(feature, direction, 3000)
            passed += 3000
        if life == 5:
            meter.close()  # what was written ahead is taken back by a clean stop
            assert (
                meter_of(settings).usage().features[feature].spent_bytes == meter.usage().features[feature].spent_bytes
            )


def test_writing_ahead_is_rare(meter_of: Make, file: Path) -> None:
    meter = meter_of(budget(size=1_000_000))
    versions = set()
    for _ in range(1000):
        assert send(meter, "records", 500)
        versions.add(file.stat().st_ino)
    assert len(versions) < 200


def test_this_month_is_remembered_without_any_budget(meter_of: Make, machine: SettableClocks) -> None:
    meter = meter_of(Metering())
    meter.spent("records", "out", 700)
    meter.spent("records", "in", 30)
    meter.save()
    again = meter_of(Metering()).usage().features["records"]
    assert (again.month_sent_bytes, again.month_received_bytes, again.sent_bytes) == (700, 30, 0)
    machine.pass_seconds(10 * 86_400)
    assert meter_of(Metering()).usage().features["records"].month_sent_bytes == 0


def test_a_damaged_file_is_put_aside_and_told(meter_of: Make, file: Path) -> None:
    file.write_bytes(b"\0" * 100)
    with capture_logs() as logs:
        meter = meter_of(budget())
    assert [line["event"] for line in logs] == ["link_usage_unreadable"]
    assert meter.room("records") == 10_000
    assert file.with_name(file.name + ".damaged").exists()


def test_a_disk_that_does_not_let_us_write_is_told_once_and_counting_goes_on(
    machine: SettableClocks, tmp_path: Path
) -> None:
    lost = tmp_path / "gone" / "link-usage.json"
    meter = Meter(budget(), BERLIN, Ledger(lost), clocks=machine.clocks())
    with capture_logs() as logs:
        sent = [size for size in (4000, 4000, 4000) if send(meter, "records", size)]
        meter.save()
        lost.parent.mkdir()
        meter.save()
    assert sent == [4000, 4000]
    assert [line["event"] for line in logs] == ["link_usage_not_written", "link_usage_written_again"]
    assert json.loads(lost.read_bytes())["accounts"]["records"]["spent_bytes"] >= 8000


def test_looking_from_outside_changes_nothing(meter_of: Make, file: Path, machine: SettableClocks) -> None:
    meter = meter_of(budget())
    assert send(meter, "records", 10_000)
    meter.close()
    before = file.read_bytes()
    outside = Meter(budget(), BERLIN, ReadOnlyLedger(file), clocks=machine.clocks())
    assert outside.usage().held["event"].reason == "budget"
    outside.save()
    assert file.read_bytes() == before
    file.write_bytes(b"rubbish")
    assert Meter(budget(), BERLIN, ReadOnlyLedger(file), clocks=machine.clocks()).usage().held == {}
    assert file.read_bytes() == b"rubbish"


def test_a_hold_is_logged_when_it_begins_and_when_it_ends(meter_of: Make, machine: SettableClocks) -> None:
    meter = meter_of(budget())
    with capture_logs() as logs:
        meter.tell()
        assert send(meter, "records", 10_000)
        meter.tell()
        meter.tell()
        machine.pass_seconds(12 * 3600)
        meter.tell()
    assert [(line["event"], line["feature"]) for line in logs] == [
        ("link_hold_began", "records"),
        ("link_hold_ended", "records"),
    ]


def test_a_budget_for_another_period_begins_anew(meter_of: Make) -> None:
    meter = meter_of(budget(per="day"))
    assert send(meter, "records", 10_000)
    meter.close()
    assert meter_of(budget(per="month")).room("records") == 10_000


def test_a_window_that_closes_while_a_piece_is_made_ready_takes_nothing_from_the_budget(
    meter_of: Make, machine: SettableClocks
) -> None:
    feature = FeatureMetering(budget=Budget(bytes=10_000, per="month"), windows=NIGHT)
    meter = meter_of(Metering(features={"records": feature}))
    machine.pass_seconds((TWO - NOON) / 1e9 + 3599)
    assert meter.hold("records") is None
    machine.pass_seconds(2)
    assert not meter.allow("records", 500)
    meter.exhaust("records", 500)  # as whoever was refused does
    machine.pass_seconds(23 * 3600)
    assert meter.hold("records") is None


def test_a_remainder_that_was_only_promised_is_there_again_when_the_connection_is_lost(meter_of: Make) -> None:
    meter = meter_of(budget())
    assert meter.allow("records", 9000)
    assert not meter.allow("records", 2000)
    meter.exhaust("records", 2000)
    assert meter.hold("records") is not None
    meter.link_down()
    assert meter.hold("records") is None
    assert meter.allow("records", 2000)
