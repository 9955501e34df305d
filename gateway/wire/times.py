"""Times on the wire: RFC 3339 in UTC for people, integer nanoseconds where order matters."""

from datetime import UTC, datetime


def rfc3339(at_ns: int) -> str:
    """Format nanoseconds since the epoch as RFC 3339 with milliseconds, e.g. `2026-01-31T12:00:00.250Z`."""
    seconds, nanoseconds = divmod(at_ns, 1_000_000_000)
    whole = datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S")
    return f"{whole}.{nanoseconds // 1_000_000:03d}Z"
