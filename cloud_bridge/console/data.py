"""What the console needs to know, and from whom. `cloud_bridge.store.base.Reader` has all of it."""

from typing import Protocol

from cloud_bridge.store.base import RecordFilter, RollupFilter
from cloud_bridge.values import (
    Counts,
    Gap,
    GapPlace,
    GatewayState,
    LetterPlace,
    PipelineState,
    Rollup,
    StoredEvent,
    StoredLetter,
    StoredRecord,
    Stream,
)


class ConsoleData(Protocol):
    """What the console reads. Every method blocks, may be called from any thread, and may raise StoreError."""

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
        until_ns: int | None = None,
        before_id: int | None = None,
    ) -> list[StoredEvent]:
        """Return events in their latest phase, the last heard of first; page on with `before_id`."""
        ...

    def event(self, event_id: str, gateway: str | None = None) -> StoredEvent | None:
        """Return one event in its latest phase."""
        ...

    def records(self, wanted: RecordFilter, *, limit: int = 100, with_blobs: bool = False) -> list[StoredRecord]:
        """Return records, the last received first."""
        ...

    def evidence(self, evidence_id: str, gateway: str | None = None) -> tuple[str, bytes] | None:
        """Return the content type and the bytes of a piece of evidence, None if it is not there."""
        ...

    def streams(self) -> list[Stream]:
        """Return every stream with its mark, by key."""
        ...

    def gaps(
        self,
        *,
        gateway: str | None = None,
        source: str | None = None,
        since_ns: int | None = None,
        until_ns: int | None = None,
        before: GapPlace | None = None,
        limit: int = 1000,
    ) -> list[Gap]:
        """Return the gaps, the latest first."""
        ...

    def counts(self) -> Counts:
        """Return what the store holds."""
        ...

    def dead_letters(
        self,
        *,
        limit: int = 100,
        reason: str | None = None,
        gateway: str | None = None,
        since_ns: int | None = None,
        until_ns: int | None = None,
        before: LetterPlace | None = None,
    ) -> list[StoredLetter]:
        """Return dead letters, the latest first."""
        ...

    def rollups(self, wanted: RollupFilter, *, limit: int = 1000) -> list[Rollup]:
        """Return rollups, the latest first."""
        ...

    def change_counter(self) -> int:
        """Return a number that is higher after every committed change."""
        ...
