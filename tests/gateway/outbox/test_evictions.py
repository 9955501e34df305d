"""What goes when a class is full, and what is said about it."""

from pathlib import Path

import pytest

from gateway.config import ClassQuota
from gateway.outbox.evictions import merge
from gateway.outbox.store import Outbox
from gateway.wire.messages import Eviction
from tests.gateway.outbox.outbox_kit import (
    MIB,
    event,
    evictions,
    numbers,
    opened,
    picture,
    rows,
    settings,
    until,
)
from tests.simulators.settable_clocks import DAY, SECOND, SettableClocks


def test_the_oldest_rows_go_and_a_record_says_which(file: Path) -> None:
    with opened(file, settings(bulk=ClassQuota(max_bytes=MIB, max_rows=100))) as outbox:
        outbox.put([picture(n, 100) for n in range(100)])
        outbox.put([picture(n, 100) for n in range(10)])
        (record,) = evictions(outbox)
        assert (record.record_class, record.first_seq, record.last_seq) == ("bulk", 1, 12)
        assert (record.count, record.reason) == (12, "rows")
        assert record.size_bytes > 12 * 100
        assert numbers(outbox, "bulk") == list(range(13, 111))
        assert outbox.heads()["bulk"] == (13, 110)
        assert outbox.stats().classes["bulk"].evicted == 12


def test_bytes_on_disk_stay_below_the_quota(file: Path) -> None:
    with opened(file, settings(bulk=ClassQuota(max_bytes=2 * MIB))) as outbox:
        for n in range(300):
            outbox.put([picture(n, 20_000)])
        stats = outbox.stats()
        assert stats.classes["bulk"].disk_bytes <= 2 * MIB
        assert stats.file_bytes < 3.5 * MIB
        assert {record.reason for record in evictions(outbox)} == {"bytes"}


def test_evictions_nobody_has_read_become_one_record(file: Path) -> None:
    with opened(file, settings(bulk=ClassQuota(max_bytes=MIB, max_rows=20))) as outbox:
        for n in range(200):
            outbox.put([picture(n, 10)])
        (record,) = evictions(outbox)
        assert record.first_seq == 1
        assert record.count == record.last_seq == numbers(outbox, "bulk")[0] - 1


def test_a_record_that_was_read_never_changes(file: Path) -> None:
    with opened(file, settings(bulk=ClassQuota(max_bytes=MIB, max_rows=20))) as outbox:
        outbox.put([picture(n, 10) for n in range(20)])
        outbox.put([picture(1, 10)])
        before = rows(outbox, "critical")
        for n in range(20):
            outbox.put([picture(n, 10)])
        after = rows(outbox, "critical")
        assert after[: len(before)] == before
        first, second = evictions(outbox)
        assert first.last_seq + 1 == second.first_seq


def test_a_record_of_an_earlier_run_never_changes(file: Path) -> None:
    small = settings(bulk=ClassQuota(max_bytes=MIB, max_rows=20))
    with opened(file, small) as outbox:
        outbox.put([picture(n, 10) for n in range(20)])
        outbox.put([picture(1, 10)])
    with opened(file, small) as outbox:
        outbox.put([picture(1, 10)])
        outbox.put([picture(1, 10)])
        assert len(evictions(outbox)) == 2


def test_eviction_records_enter_a_full_critical_class(file: Path) -> None:
    tight = settings(
        critical=ClassQuota(max_bytes=MIB, max_rows=1, on_full="refuse"), bulk=ClassQuota(max_bytes=MIB, max_rows=1)
    )
    with opened(file, tight) as outbox:
        outbox.put([event(1, "critical")])
        outbox.put([picture(1, 10)])
        outbox.put([picture(2, 10)])
        assert [row.kind for row in rows(outbox, "critical")] == ["event", "eviction"]


def test_records_of_evictions_survive_the_eviction_of_their_own_class(file: Path) -> None:
    evicting = settings(critical=ClassQuota(max_bytes=MIB, max_rows=10), bulk=ClassQuota(max_bytes=MIB, max_rows=5))
    with opened(file, evicting) as outbox:
        outbox.put([picture(n, 10) for n in range(5)])
        outbox.put([picture(9, 10)])
        rows(outbox, "critical")
        for n in range(50):
            outbox.put([event(n, "critical")])
        told = evictions(outbox)
        gone = {
            seq
            for record in told
            if record.record_class == "critical"
            for seq in range(record.first_seq, record.last_seq + 1)
        }
        assert gone | set(numbers(outbox, "critical")) == set(range(1, outbox.heads()["critical"][1] + 1))
        assert [(r.first_seq, r.last_seq) for r in told if r.record_class == "bulk"] == [(1, 1)]


def test_merged_records_span_both() -> None:
    one = Eviction(record_class="bulk", first_seq=1, last_seq=4, count=4, size_bytes=40, reason="rows", at="a")
    two = Eviction(record_class="bulk", first_seq=9, last_seq=9, count=1, size_bytes=7, reason="age", at="b")
    assert merge(one, two) == Eviction(
        record_class="bulk", first_seq=1, last_seq=9, count=5, size_bytes=47, reason="age", at="b"
    )


def test_a_lowered_quota_is_reached_without_new_entries(file: Path) -> None:
    with opened(file) as outbox:
        for at in range(10):
            outbox.put([picture(at * 1000 + n, 10) for n in range(1000)])
    with opened(file, settings(bulk=ClassQuota(max_bytes=MIB, max_rows=500))) as outbox:
        until(lambda: outbox.stats().classes["bulk"].rows <= 500)
        assert outbox.heads()["bulk"][1] == 10_000


# ---- age -----------------------------------------------------------------------------------------

AGED = settings(event=ClassQuota(max_bytes=16 * MIB, max_age_seconds=3600))


def test_rows_go_when_they_are_too_old(file: Path) -> None:
    machine = SettableClocks()
    outbox = Outbox.open(file, AGED, clocks=machine.clocks())
    outbox.put([event(n) for n in range(10)])
    machine.pass_seconds(3000)
    outbox.put([event(n) for n in range(5)])
    assert outbox.stats().classes["event"].oldest_age_seconds == 3000
    machine.pass_seconds(700)
    until(lambda: outbox.heads()["event"] == (11, 15))
    (record,) = evictions(outbox)
    assert (record.first_seq, record.last_seq, record.count, record.reason) == (1, 10, 10, "age")
    outbox.close()


@pytest.mark.parametrize("step_seconds", [10 * 365 * 86_400, -10 * 86_400, -50 * 365 * 86_400])
def test_a_clock_step_evicts_nothing(file: Path, step_seconds: int) -> None:
    machine = SettableClocks()
    outbox = Outbox.open(file, AGED, clocks=machine.clocks())
    outbox.put([event(n) for n in range(10)])
    machine.step_wall(step_seconds)
    machine.pass_seconds(3500)
    outbox.put([event(11)])
    machine.step_wall(-step_seconds)
    outbox.close()
    outbox = Outbox.open(file, AGED, clocks=machine.clocks())
    outbox.put([event(12)])
    assert outbox.heads()["event"] == (1, 12)
    assert outbox.stats().classes["event"].evicted == 0
    outbox.close()


def test_a_reboot_with_a_wrong_clock_ages_the_rows_by_a_day_at_most(file: Path) -> None:
    week = settings(event=ClassQuota(max_bytes=16 * MIB, max_age_seconds=7 * 86_400))
    machine = SettableClocks()
    outbox = Outbox.open(file, week, clocks=machine.clocks())
    outbox.put([event(n) for n in range(10)])
    outbox.close()
    machine.reboot(off_seconds=10 * 365 * DAY / SECOND)
    outbox = Outbox.open(file, week, clocks=machine.clocks())
    outbox.put([event(11)])
    assert outbox.stats().classes["event"].oldest_age_seconds == 86_400
    assert outbox.heads()["event"] == (1, 11)
    outbox.close()


def test_thirty_days_offline_with_daily_clock_steps_keep_what_is_young_enough(file: Path) -> None:
    fortnight = settings(event=ClassQuota(max_bytes=16 * MIB, max_age_seconds=14 * 86_400))
    machine = SettableClocks()
    outbox = Outbox.open(file, fortnight, clocks=machine.clocks())
    for day in range(30):
        outbox.put([event(day * 10 + n) for n in range(10)])
        machine.step_wall((-1) ** day * 40 * 86_400)
        if day % 7 == 3:
            outbox.close()
            outbox = Outbox.open(file, fortnight, clocks=machine.clocks())
        machine.pass_seconds(86_400)
    until(lambda: outbox.heads()["event"] == (161, 300))
    assert sum(record.count for record in evictions(outbox)) == 160
    outbox.close()
