"""What the way to the cloud carries, what waits for it and where that is heading, in words and as a table."""

from collections.abc import Mapping
from datetime import UTC, datetime, tzinfo
from typing import Final

from gateway.commands.output import duration, print_table, say, size
from gateway.report import ClassReport, FeatureReport, HoldReport, LinkUsageReport
from gateway.wire.messages import CLASSES, RecordClass

_REASONS: Final = {"budget": "budget used up until {until}", "window": "window closed until {until}"}


def show_waiting(
    usage: LinkUsageReport, depths: Mapping[RecordClass, int], zone: tzinfo, *, now: datetime | None = None
) -> None:
    """Say which records wait for a budget or a window, until when, and which still flow."""
    for sentence in waiting(usage, depths, zone, now or datetime.now(UTC)):
        say(sentence)


def waiting(usage: LinkUsageReport, depths: Mapping[RecordClass, int], zone: tzinfo, now: datetime) -> list[str]:
    """Return one sentence for each reason to wait: `budget used up until midnight: 12,400 records wait (event, …)`."""
    groups: dict[HoldReport, list[RecordClass]] = {}
    for name, hold in usage.held.items():
        groups.setdefault(hold, []).append(name)
    flowing = [name for name in CLASSES if name not in usage.held]
    sentences = []
    for hold, names in groups.items():
        reason = _REASONS[hold.reason].format(until=moment(hold.until, zone, now))
        count = sum(depths.get(name, 0) for name in names)
        verb = "record waits" if count == 1 else "records wait"
        flows = f"; {', '.join(flowing)} {'flows' if len(flowing) == 1 else 'flow'}" if flowing else ""
        sentences.append(f"{reason}: {count:,} {verb} ({', '.join(names)}){flows}")
    telemetry = usage.features.get("telemetry", FeatureReport()).hold
    if telemetry is not None:
        reason = _REASONS[telemetry.reason].format(until=moment(telemetry.until, zone, now))
        sentences.append(f"telemetry: {reason}: events, status and measures are not shown on the cloud's broker")
    return sentences


def moment(at: str | None, zone: tzinfo, now: datetime) -> str:
    """Say a time for people, in the gateway's time zone: `02:00`, `midnight`, `tomorrow 02:00`, `2026-12-01 00:00`."""
    if at is None:
        return "further notice"
    then, today = datetime.fromisoformat(at).astimezone(zone), now.astimezone(zone)
    days = (then.date() - today.date()).days
    clock = then.strftime("%H:%M")
    if days == 1 and clock == "00:00":
        return "midnight"
    if days in (0, 1):
        return clock if days == 0 else f"tomorrow {clock}"
    return then.strftime("%Y-%m-%d %H:%M")


def forecast(live: ClassReport | None) -> str:
    """Say where a class is heading at the rate of now."""
    if live is None:
        return "-"
    if live.refusing:
        return "full: producers wait"
    if live.full_in_seconds is not None:
        return f"full in {duration(live.full_in_seconds)}"
    if live.empty_in_seconds is not None:
        return f"empty in {duration(live.empty_in_seconds)}"
    return "-"


def show_usage(usage: LinkUsageReport, zone: tzinfo, *, now: datetime | None = None) -> None:
    """Print what each use of the link took, and what it may still take."""
    today = now or datetime.now(UTC)
    applies = "" if usage.metered else "; the broker in use is not metered, so no limit applies"
    say(f"link: bytes of MQTT, without TLS, TCP and IP{applies}")
    print_table(
        ("USE", "SENT", "RECEIVED", "THIS MONTH", "BUDGET", "LEFT", "RENEWS", "WINDOW"),
        [_row(name, each, zone, today) for name, each in usage.features.items()],
    )
    if usage.network_sent_bytes or usage.network_received_bytes:
        sent, received = size(usage.network_sent_bytes), size(usage.network_received_bytes)
        say(f"on the network, estimated with TLS, TCP, IP and retransmissions: {sent} sent, {received} received")


def _row(name: str, usage: FeatureReport, zone: tzinfo, now: datetime) -> tuple[str, ...]:
    limited = usage.budget_bytes is not None
    window = "-"
    if usage.window_until is not None or not usage.window_open:
        window = f"{'closes' if usage.window_open else 'opens'} {moment(usage.window_until, zone, now)}"
    return (
        name,
        size(usage.sent_bytes),
        size(usage.received_bytes),
        size(usage.month_sent_bytes + usage.month_received_bytes),
        f"{size(usage.budget_bytes or 0)} a {usage.per}" if limited else "-",
        size(usage.left_bytes or 0) if limited else "-",
        moment(usage.renews_at, zone, now) if limited else "-",
        window,
    )
