"""Turns what the meter knows into what a gateway says about itself."""

from gateway.metering.meter import FeatureUsage, Hold, LinkUsage
from gateway.report import FeatureReport, HoldReport, LinkUsageReport
from gateway.wire.times import rfc3339


def report_of(usage: LinkUsage, network_sent_bytes: int = 0, network_received_bytes: int = 0) -> LinkUsageReport:
    """Put a usage into words and times; the features come with `protocol`, which no budget covers."""
    features: dict[str, FeatureReport] = {name: _feature(each) for name, each in usage.features.items()}
    return LinkUsageReport(
        metered=usage.metered,
        features={**features, "protocol": _feature(usage.protocol)},
        held={name: _hold(hold) for name, hold in usage.held.items()},
        network_sent_bytes=network_sent_bytes,
        network_received_bytes=network_received_bytes,
    )


def _feature(usage: FeatureUsage) -> FeatureReport:
    return FeatureReport(
        sent_bytes=usage.sent_bytes,
        received_bytes=usage.received_bytes,
        month_sent_bytes=usage.month_sent_bytes,
        month_received_bytes=usage.month_received_bytes,
        budget_bytes=usage.budget_bytes,
        per=usage.per,
        spent_bytes=usage.spent_bytes,
        left_bytes=usage.left_bytes,
        renews_at=_time(usage.renews_at_ns),
        window_open=usage.window_open,
        window_until=_time(usage.window_until_ns),
        hold=_hold(usage.hold) if usage.hold is not None else None,
    )


def _hold(hold: Hold) -> HoldReport:
    return HoldReport(reason=hold.reason, until=_time(hold.until_ns))


def _time(at_ns: int | None) -> str | None:
    return None if at_ns is None else rfc3339(at_ns)
