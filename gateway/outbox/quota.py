"""Which rows must go, and which producers must wait. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Generic, Literal, Protocol, TypeVar

from gateway.config import DEFAULT_QUOTAS, ClassQuota, Outbox
from gateway.outbox.schema import PAGE_BYTES
from gateway.wire.messages import CLASSES, RecordClass

SLACK: Final = 0.02
"""Share of a quota that an eviction frees beyond the need, so that a full class does not evict at every commit."""

_HEADROOM_PAGES: Final = 384
"""For the tables themselves, and for eviction records and notices, which no quota refuses: 1.5 MiB."""


@dataclass(frozen=True, slots=True)
class Held:
    """What one class holds. `lowest` is `highest + 1` when it is empty; `highest` is the last number ever given."""

    rows: int
    disk_bytes: int
    lowest: int
    highest: int
    oldest_ms: int | None  # on the store's own clock


@dataclass(frozen=True, slots=True)
class Amount:
    """A number of rows and their bytes on disk."""

    rows: int = 0
    disk_bytes: int = 0

    def plus(self, other: "Amount") -> "Amount":
        return Amount(self.rows + other.rows, self.disk_bytes + other.disk_bytes)


@dataclass(frozen=True, slots=True)
class Need:
    """How much must be freed at least (`must`), how much is wished, and why."""

    must: Amount
    wish: Amount
    reason: Literal["bytes", "rows"]


Quotas = Mapping[RecordClass, ClassQuota]


def quotas_of(settings: Outbox) -> Quotas:
    """Return the quota of every class; those that the settings do not name have their default."""
    return {name: settings.classes.get(name, DEFAULT_QUOTAS[name]) for name in CLASSES}


def page_quota(quotas: Quotas) -> int:
    """Return how many pages the database file may have: all quotas, 5 % for inner pages, and a fixed headroom."""
    return sum(quota.max_bytes for quota in quotas.values()) * 105 // 100 // PAGE_BYTES + _HEADROOM_PAGES


def overflow(quota: ClassQuota, held: Held, incoming: Amount) -> Need | None:
    """Return what must go before `incoming` fits; None when it fits.

    `must` is bounded by what comes in: a store that is far above a quota that was lowered shrinks step by step, not in
    one transaction that holds up the producers.
    """
    over_rows = held.rows + incoming.rows - quota.max_rows
    over_bytes = held.disk_bytes + incoming.disk_bytes - quota.max_bytes
    if over_rows <= 0 and over_bytes <= 0:
        return None
    wish = Amount(
        over_rows + int(quota.max_rows * SLACK) if over_rows > 0 else 0,
        over_bytes + int(quota.max_bytes * SLACK) if over_bytes > 0 else 0,
    )
    must = Amount(min(max(over_rows, 0), incoming.rows), min(max(over_bytes, 0), incoming.disk_bytes))
    return Need(must, wish, "bytes" if over_bytes > 0 else "rows")


class Asking(Protocol):
    """Rows that are stored together or not at all."""

    @property
    def amounts(self) -> Mapping[RecordClass, Amount]:
        """How much of each class."""


A = TypeVar("A", bound=Asking)


@dataclass(frozen=True, slots=True)
class Admission(Generic[A]):
    """What may be stored now, what must wait for the next transaction, what must wait for acknowledgements."""

    accepted: tuple[A, ...]
    deferred: tuple[A, ...]
    refused: tuple[A, ...]


def admit(
    quotas: Quotas, held: Mapping[RecordClass, Held], candidates: Sequence[A], blocked: frozenset[RecordClass]
) -> Admission[A]:
    """Sort candidates, which come in order, into one transaction.

    A class that refuses when full blocks everything behind it that has rows of the same class, so that rows keep
    their order; other classes pass. One transaction never brings more of a class than its whole quota.
    """
    accepted: list[A] = []
    refused: list[A] = []
    incoming: dict[RecordClass, Amount] = {}
    closed = set(blocked)
    for at, candidate in enumerate(candidates):
        sums = {name: incoming.get(name, Amount()).plus(amount) for name, amount in candidate.amounts.items()}
        if closed.intersection(sums) or any(_refuses(quotas[name], held[name], sums[name]) for name in sums):
            refused.append(candidate)
            closed.update(sums)
        elif accepted and any(exceeds(quotas[name], amount) for name, amount in sums.items()):
            return Admission(tuple(accepted), tuple(candidates[at:]), tuple(refused))
        else:
            accepted.append(candidate)
            incoming.update(sums)
    return Admission(tuple(accepted), (), tuple(refused))


def exceeds(quota: ClassQuota, amount: Amount) -> bool:
    """Tell whether an amount is more than a class may hold even when it is empty."""
    return amount.rows > quota.max_rows or amount.disk_bytes > quota.max_bytes


def _refuses(quota: ClassQuota, held: Held, incoming: Amount) -> bool:
    return quota.on_full == "refuse" and exceeds(quota, incoming.plus(Amount(held.rows, held.disk_bytes)))
