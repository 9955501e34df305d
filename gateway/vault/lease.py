"""How long a device may use a key without hearing from the bridge (pure), and the clock that this is measured with.

The wall clock may be set back, by a dead battery or by somebody who wants more time. So the latest time that was ever
seen counts, unless the bridge itself says that it is earlier: a clock that once ran ahead is mended by the next grant.
"""

from datetime import UTC, datetime
from typing import Final

from gateway.vault.errors import LeaseEndedError

NANOSECONDS_A_DAY = 86_400 * 10**9
FLOOR_STEP_NS = 3600 * 10**9
"""The floor is written down when it has moved by so much: it may not wear the disk out."""

_WORTH_SHARE: Final = 100
"""A lease is written down anew when it has moved by a hundredth of what is left of it, or more."""


def effective_now_ns(wall_ns: int, floor_ns: int) -> int:
    """Return the time that leases are measured with, UTC."""
    return max(wall_ns, floor_ns)


def require_lease(label: str, lease_until_ns: int | None, now_ns: int) -> None:
    """Make sure that a key may still be used.

    Raises:
        LeaseEndedError: the time is over; the message says since when.
    """
    if lease_until_ns is not None and now_ns >= lease_until_ns:
        ended = datetime.fromtimestamp(lease_until_ns / 1e9, UTC)
        raise LeaseEndedError(
            f"the lease for {label} ended at {ended:%Y-%m-%d %H:%M} UTC: this device must attest itself to the bridge "
            "again. What is running goes on"
        )


def remaining_seconds(lease_until_ns: int | None, now_ns: int) -> float | None:
    """Return how long a lease still lasts, 0 when it is over, None when it never is."""
    return None if lease_until_ns is None else max(0.0, (lease_until_ns - now_ns) / 1e9)


def is_worth_writing(until_ns: int, granted_ns: int, now_ns: int) -> bool:
    """Tell whether a lease that ends at `granted_ns` must be written over one that ends at `until_ns`.

    Attestations bring a new lease twice an hour, for every release; a month that grows by half an hour each time need
    not wear the disk out. One that ends earlier than before always counts.
    """
    return granted_ns < until_ns or (granted_ns - until_ns) * _WORTH_SHARE >= granted_ns - now_ns
