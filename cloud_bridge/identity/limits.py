"""How often somebody may ask. Pure: the time comes in."""

from collections import OrderedDict
from ipaddress import IPv6Address, ip_address
from typing import Final

_REMEMBERED: Final = 20_000


class RateLimit:
    """Token buckets by key: `per_minute` in the long run, and as many at once.

    Of more keys than can be remembered the one longest unused is forgotten. Belongs to one thread.
    """

    def __init__(self, per_minute: float) -> None:
        self._per_second = per_minute / 60.0
        self._burst = max(1.0, per_minute)
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def wait_seconds(self, key: str, now: float) -> float:
        """Take one turn and return 0, or return after how many seconds there will be one. `now`: any steady clock."""
        left, at = self._buckets.get(key, (self._burst, now))
        left = min(self._burst, left + (now - at) * self._per_second)
        wait = 0.0 if left >= 1.0 else (1.0 - left) / self._per_second
        self._buckets[key] = (left if wait else left - 1.0, now)
        self._buckets.move_to_end(key)
        while len(self._buckets) > _REMEMBERED:
            self._buckets.popitem(last=False)
        return wait


def side_of(address: str) -> str:
    """Return what counts as one side: an IPv4 address, or the /64 that a single IPv6 host can choose from."""
    try:
        found = ip_address(address)
    except ValueError:
        return address
    if isinstance(found, IPv6Address):
        if found.ipv4_mapped is not None:
            return str(found.ipv4_mapped)
        return f"{IPv6Address(int(found) >> 64 << 64)}/64"
    return str(found)
