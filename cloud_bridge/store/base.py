"""What a store can do. Every method blocks and may be called from any thread."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from cloud_bridge.values import (
    Counts,
    Gap,
    GatewayState,
    Intake,
    Outcome,
    PipelineState,
    StoredEvent,
    StoredLetter,
    StoredRecord,
    Stream,
    StreamKey,
)


@dataclass(frozen=True, slots=True)
class RecordFilter:
    """Which records are meant; None means any."""

    gateway: str | None = None
    pipeline: str | None = None
    record_class: str | None = None
    kind: str | None = None
    since_ns: int | None = None  # by time of receipt
    before_id: int | None = None
    after_id: int | None = None


@dataclass(frozen=True, slots=True)
class Swept:
    """What one slice of retention has removed."""

    records: int = 0
    events: int = 0
    dead_letters: int = 0

    @property
    def total(self) -> int:
        """All rows together."""
        return self.records + self.events + self.dead_letters


class Reader(Protocol):
    """The reading half.

    Every method raises StoreError when the store cannot be read right now.
    """

    def gateways(self) -> list[GatewayState]:
        """Return every gateway ever heard of, by name."""
        ...

    def pipelines(self, gateway: str | None = None) -> list[PipelineState]:
        """Return the latest status of every pipeline."""
        ...

    def events(
        self,
        *,
        limit: int = 100,
        gateway: str | None = None,
        pipeline: str | None = None,
        label: str | None = None,
        since_ns: int | None = None,
        before_id: int | None = None,
    ) -> list[StoredEvent]:
        """Return events in their latest phase, the last heard of first; page on with `before_id`."""
        ...

    def event(self, event_id: str, gateway: str | None = None) -> StoredEvent | None:
        """Return one event in its latest phase."""
        ...

    def records(self, wanted: RecordFilter, *, limit: int = 100, with_blobs: bool = False) -> list[StoredRecord]:
        """Return records: the last received first, or from `after_id` on in order of receipt."""
        ...

    def record(self, key: StreamKey, seq: int) -> StoredRecord | None:
        """Return one record with its blob."""
        ...

    def measures(
        self,
        *,
        gateway: str | None = None,
        pipeline: str | None = None,
        since_ns: int | None = None,
        limit: int = 1000,
    ) -> list[StoredRecord]:
        """Return records of kind `measure`, the last received first."""
        ...

    def evidence(self, evidence_id: str, gateway: str | None = None) -> tuple[str, bytes] | None:
        """Return the content type and the bytes of a piece of evidence, None if it is not there."""
        ...

    def streams(self) -> list[Stream]:
        """Return every stream with its mark, by key."""
        ...

    def gaps(self, *, gateway: str | None = None, limit: int = 1000) -> list[Gap]:
        """Return the gaps, the latest first."""
        ...

    def counts(self) -> Counts:
        """Return what the store holds."""
        ...

    def dead_letters(self, *, limit: int = 100, reason: str | None = None) -> list[StoredLetter]:
        """Return dead letters, the latest first."""
        ...

    def dead_letter(self, letter_id: int) -> StoredLetter | None:
        """Return one dead letter."""
        ...

    def close(self) -> None:
        """Finish and let go. Closing twice is harmless."""
        ...

    def change_counter(self) -> int:
        """Return a number that is higher after every committed change, whichever process made it."""
        ...

    def size_bytes(self) -> int:
        """Return how much the store takes on its disk."""
        ...


class Store(Reader, Protocol):
    """A store that can be written."""

    def open(self) -> None:
        """Connect, and make the tables if need be. Every other call does so too, if this has failed.

        Raises:
            StoreError: it cannot be reached or used now.
        """
        ...

    def ingest(self, intake: Intake) -> Outcome:
        """Write everything in one durable transaction.

        Raises:
            StoreError: nothing was written; the same intake may be tried again.
            StoreRefusedError: nothing was written, and this intake never will be.
        """
        ...

    def settle(self, letter_id: int, intake: Intake | None = None) -> Outcome:
        """Remove a dead letter and write what was made of it, in one transaction."""
        ...

    def sweep(self, before_ns: Mapping[str, int], dead_letters_before_ns: int, limit: int) -> Swept:
        """Remove at most about `limit` rows of each table that were received before their time.

        `before_ns` is by class; the class `event` (or `critical`, whichever is longer) also decides for the events.
        """
        ...

    def tidy(self) -> None:
        """Give freed pages back, in a small slice."""
        ...
