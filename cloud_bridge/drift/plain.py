"""What is known of drift in JSON, the same on the command line and over HTTP. Pure."""

from typing import Any

import msgspec

from cloud_bridge.drift.book import DriftEvent, Finding, Proposal
from gateway.wire.times import rfc3339


def finding_plain(one: Finding) -> dict[str, Any]:
    """Put a finding for JSON."""
    return {
        **msgspec.to_builtins(one.key),
        "level": one.standing.level,
        "since": rfc3339(one.standing.since_ns),
        "looked_at": rfc3339(one.looked_ns),
        "comparison": msgspec.to_builtins(one.comparison),
    }


def event_plain(one: DriftEvent) -> dict[str, Any]:
    """Put an event for JSON."""
    return {**msgspec.to_builtins(one), "at": rfc3339(one.at_ns)}


def proposal_plain(one: Proposal) -> dict[str, Any]:
    """Put a proposal for JSON."""
    return {**msgspec.to_builtins(one), "at": rfc3339(one.at_ns)}
