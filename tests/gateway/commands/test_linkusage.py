"""What waits for a budget or a window, in words."""

from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import pytest

from gateway.commands.linkusage import moment, show_usage, waiting
from gateway.report import FeatureReport, HoldReport, LinkUsageReport
from gateway.wire.messages import RecordClass

BERLIN = ZoneInfo("Europe/Berlin")
NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("at", "words"),
    [
        ("2026-11-21T14:30:00.000Z", "15:30"),
        ("2026-11-21T23:00:00.000Z", "midnight"),
        ("2026-11-22T01:00:00.000Z", "tomorrow 02:00"),
        ("2026-11-30T23:00:00.000Z", "2026-12-01 00:00"),
        (None, "further notice"),
    ],
)
def test_a_moment_is_told_in_the_gateways_time_zone(at: str | None, words: str) -> None:
    assert moment(at, BERLIN, NOW) == words


def test_a_used_up_budget_is_told_with_what_waits_and_what_flows() -> None:
    hold = HoldReport(reason="budget", until="2026-11-21T23:00:00.000Z")
    usage = LinkUsageReport(metered=True, held={"event": hold, "measure": hold, "bulk": hold})
    depths: dict[RecordClass, int] = {"critical": 0, "event": 400, "measure": 11_999, "bulk": 1}
    assert waiting(usage, depths, BERLIN, NOW) == [
        "budget used up until midnight: 12,400 records wait (event, measure, bulk); critical flows"
    ]


def test_each_reason_has_its_sentence() -> None:
    usage = LinkUsageReport(
        metered=True,
        features={"telemetry": FeatureReport(hold=HoldReport(reason="budget", until="2026-11-21T13:00:00.000Z"))},
        held={
            "bulk": HoldReport(reason="window", until="2026-11-22T01:00:00.000Z"),
            "event": HoldReport(reason="budget"),
        },
    )
    first, second, third = waiting(usage, {"bulk": 1, "event": 0}, BERLIN, NOW)
    assert first == "window closed until tomorrow 02:00: 1 record waits (bulk); critical, measure flow"
    assert second.startswith("budget used up until further notice: 0 records wait (event)")
    assert third.startswith("telemetry: budget used up until 14:00")


def test_nothing_is_said_where_nothing_waits() -> None:
    assert waiting(LinkUsageReport(metered=True), {}, BERLIN, NOW) == []


def test_the_table_says_what_is_left_and_what_is_not_counted(capsys: pytest.CaptureFixture[str]) -> None:
    usage = LinkUsageReport(
        metered=False,
        features={
            "records": FeatureReport(
                sent_bytes=2048,
                month_sent_bytes=4096,
                budget_bytes=10_240,
                per="day",
                left_bytes=1024,
                renews_at="2026-11-21T23:00:00.000Z",
                window_until="2026-11-21T13:00:00.000Z",
            )
        },
        network_sent_bytes=3000,
    )
    show_usage(usage, BERLIN, now=NOW)
    text = capsys.readouterr().out
    assert "without TLS, TCP and IP; the broker in use is not metered" in text
    assert "records  2.0 KiB  0 B       4.0 KiB     10.0 KiB a day  1.0 KiB  midnight  closes 14:00" in text
    assert "estimated" in text
