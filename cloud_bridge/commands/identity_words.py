"""How the commands about identities put things: plain values for JSON, lines for people. No secrets."""

from typing import Any

from cloud_bridge.identity.approvals import Approval
from cloud_bridge.identity.claims import Claim
from cloud_bridge.identity.contentkeys import ContentKey
from cloud_bridge.identity.devices import Device
from cloud_bridge.identity.events import Event
from gateway.wire.times import rfc3339


def device_plain(device: Device) -> dict[str, Any]:
    """Put a device for JSON."""
    return {
        "gateway": device.gateway,
        "level": device.level,
        "state": device.state or None,
        "enrolled_at": rfc3339(device.enrolled_ns),
        "attested_at": rfc3339(device.attested_ns),
        "certified_until": rfc3339(device.certified_until_ns),
        "revoked_at": _time(device.revoked_ns),
        "revoked_why": device.revoked_why,
        "ek": device.ek_digest or None,
        "ek_certificate_checked": device.ek_trusted,
        "version": device.version or None,
        "address": device.address,
        "reboots": device.resets,
        "firmware": device.firmware or None,
        "clock_off_seconds": None if device.clock_off_ns is None else round(device.clock_off_ns / 1e9, 1),
    }


def device_line(device: Device, now_ns: int) -> str:
    """Put a device for people."""
    if device.revoked_ns is not None:
        how = f"revoked {rfc3339(device.revoked_ns)}: {device.revoked_why}"
    elif device.certified_until_ns > now_ns:
        how = f"certified until {rfc3339(device.certified_until_ns)}"
    else:
        how = f"not certified since {rfc3339(device.certified_until_ns)}"
    level = "level SOFTWARE" if device.level == "software" else f"state {device.state}"
    return f"{device.gateway}: {how}, {level}, from {device.address}"


def event_plain(event: Event) -> dict[str, Any]:
    """Put an event for JSON."""
    one = event.happening
    return {
        "id": event.id,
        "first_at": rfc3339(event.first_ns),
        "last_at": rfc3339(event.last_ns),
        "count": event.count,
        "gateway": one.gateway or None,
        "kind": one.kind,
        "who": one.who,
        "detail": one.detail,
        "evidence": dict(one.evidence),
        "proven": one.proven,
    }


def event_line(event: Event) -> str:
    """Put an event for people."""
    one = event.happening
    times = f" {event.count}x" if event.count > 1 else ""
    return f"{rfc3339(event.last_ns)}{times} {event.id} {one.gateway or '-'} {one.kind} by {one.who}: {one.detail}"


def claim_plain(claim: Claim, now_ns: int) -> dict[str, Any]:
    """Put a claim for JSON."""
    state = "used" if claim.used_ns is not None else "expired" if claim.expires_ns <= now_ns else "open"
    return {
        "gateway": claim.gateway,
        "kind": claim.kind,
        "state": state,
        "replaces": claim.replaces,
        "created_at": rfc3339(claim.created_ns),
        "expires_at": rfc3339(claim.expires_ns),
        "used_at": _time(claim.used_ns),
    }


def state_plain(approval: Approval) -> dict[str, Any]:
    """Put an approved state for JSON."""
    return {
        "name": approval.state.name,
        "pcrs": {str(number): value.hex() for number, value in sorted(approval.state.pcrs.items())},
        "created_at": rfc3339(approval.created_ns),
        "origin": approval.origin,
    }


def key_plain(key: ContentKey) -> dict[str, Any]:
    """Put what is known of a content key for JSON, without the key."""
    return {
        "release": key.release,
        "digest": key.digest,
        "gateways": list(key.gateways),
        "created_at": rfc3339(key.created_ns),
        "revoked_at": _time(key.revoked_ns),
    }


def _time(at_ns: int | None) -> str | None:
    return None if at_ns is None else rfc3339(at_ns)
