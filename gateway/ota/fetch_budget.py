"""Every byte is asked for before it passes: a metered link never carries more than its budget says."""

from typing import Final, Literal, Protocol

from gateway.config import Feature
from gateway.metering.meter import Allowance
from gateway.ota.errors import BudgetError, BudgetSpentError

FEATURE: Final[Feature] = "model_downloads"

ASK_BYTES: Final = 1024
"""What asking for a file costs beside its bytes, in both directions: request, headers, and a share of the handshake."""

LEAST_BYTES: Final = 16 * 1024
"""Less than this is not asked for on its own, except where a file ends."""


RESERVE_SHARE: Final = 4
"""One of so many parts of a budget is left to updates: looking at the repository now and then does not take it."""


def reserve(allowance: Allowance) -> int:
    """Return how many bytes of a period are for updates alone."""
    return allowance.budget_bytes // RESERVE_SHARE


def carries(allowance: Allowance | None, size_bytes: int) -> bool:
    """Tell whether to begin with so many bytes: they fit into what is left, or into no period beside the metadata.

    What no period can carry comes in pieces, as far as each budget goes: it would wait for ever.
    """
    if allowance is None or size_bytes <= allowance.left_bytes:
        return True
    return size_bytes > allowance.budget_bytes - reserve(allowance)


class Spend(Protocol):
    """What is needed of `gateway.metering.meter.Meter`; safe to call from any thread."""

    def allow(self, feature: Feature, size_bytes: int) -> bool:
        """Set bytes aside for what is about to pass. False: it must wait."""
        ...

    def room(self, feature: Feature) -> int | None:
        """Return how many bytes may still pass in this period; None: any number."""
        ...

    def give_back(self, feature: Feature, size_bytes: int) -> None:
        """What was set aside will not pass."""
        ...

    def exhaust(self, feature: Feature, size_bytes: int) -> None:
        """So much was not allowed: have the feature wait, if the budget lacks it."""
        ...

    def spent(self, feature: Feature, direction: Literal["out", "in"], size_bytes: int) -> None:
        """Count bytes that passed."""
        ...


class Unmetered:
    """Where nothing is counted, such as a USB stick."""

    def allow(self, feature: Feature, size_bytes: int) -> bool:  # noqa: ARG002 - the protocol's
        """Allow everything."""
        return True

    def room(self, feature: Feature) -> int | None:  # noqa: ARG002 - the protocol's
        """Any number."""
        return None

    def give_back(self, feature: Feature, size_bytes: int) -> None:
        """Nothing was set aside."""

    def exhaust(self, feature: Feature, size_bytes: int) -> None:
        """Nothing ever lacks."""

    def spent(self, feature: Feature, direction: Literal["out", "in"], size_bytes: int) -> None:
        """Count nothing."""


class Purse:
    """Bytes set aside for one request. Use it in a `with`: what is left at the end is given back."""

    def __init__(self, meter: Spend, *, counted_elsewhere: bool) -> None:
        """Begin empty. With `counted_elsewhere`, what passes is told to the meter by somebody else."""
        self._meter = meter
        self._counted_elsewhere = counted_elsewhere
        self._left = 0

    def __enter__(self) -> "Purse":
        return self

    def __exit__(self, *_: object) -> None:
        if self._left:
            self._meter.give_back(FEATURE, self._left)
            self._left = 0

    def take(self, size_bytes: int, what: str) -> None:
        """Set so many more bytes aside.

        Raises:
            BudgetSpentError: not in this period.
            BudgetError: not now, for the window is closed.
        """
        if not self._meter.allow(FEATURE, size_bytes):
            self._meter.exhaust(FEATURE, size_bytes)
            room = self._meter.room(FEATURE)
            raise (BudgetSpentError if room is not None and room < size_bytes else BudgetError)(
                f"{what}: {size_bytes} bytes are not allowed over this link now; see `gateway status`, or "
                f"metering.features.{FEATURE}"
            )
        self._left += size_bytes

    def piece(self, size_bytes: int) -> int:
        """Return how much of so many bytes to ask for next: what the budget has left, if that is worth asking for."""
        room = self._meter.room(FEATURE)
        if room is None or room - ASK_BYTES < LEAST_BYTES:
            return size_bytes  # `take` says whether it may pass
        return min(size_bytes, room - ASK_BYTES)

    def used(self, size_bytes: int, what: str) -> None:
        """So much has passed; more than was set aside is asked for first.

        Raises:
            BudgetError: what has passed is counted all the same.
        """
        lacking = size_bytes - self._left
        try:
            if lacking > 0:
                self.take(lacking, what)
        finally:
            self._left = max(0, self._left - size_bytes)
            if not self._counted_elsewhere:
                self._meter.spent(FEATURE, "in", size_bytes)
