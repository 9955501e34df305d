"""The part of the bridge's store that rollouts read, in memory, for any number of gateways."""

from dataclasses import dataclass, field

import msgspec

from cloud_bridge.errors import StoreError
from cloud_bridge.store.base import RecordFilter
from cloud_bridge.values import GatewayState, PipelineState, StoredRecord, StreamKey
from gateway.wire.histogram import Histogram
from gateway.wire.messages import Measure, ModelRef, PipelineStatus, encode
from tests.simulators.samples import AT, event

SECOND_NS = 1_000_000_000
EDGES = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0)


@dataclass(slots=True)
class FleetStore:
    """Knob: `away` makes every call raise."""

    pipeline: str = "camera"
    away: bool = False
    states: dict[str, GatewayState] = field(default_factory=dict)
    models: dict[str, ModelRef | None] = field(default_factory=dict)
    rows: list[StoredRecord] = field(default_factory=list)

    def add(self, gateway: str, model: ModelRef | None, *, state: str = "online", seen_ns: int = 0) -> None:
        """Let the store know a gateway."""
        self.states[gateway] = GatewayState(gateway, state, AT, "1", seen_ns)
        self.models[gateway] = model

    def see(self, gateway: str, *, state: str, seen_ns: int) -> None:
        """Let a gateway be heard of, or be gone."""
        self.states[gateway] = GatewayState(gateway, state, AT, "1", seen_ns)

    def add_event(self, gateway: str, model: ModelRef, score: float, at_ns: int, pipeline: str = "") -> None:
        name = f"{gateway}-{len(self.rows)}"
        one = msgspec.structs.replace(
            event(name),
            gateway=gateway,
            pipeline=pipeline or self.pipeline,
            score=score,
            peak_score=score,
            model=model,
            captured_at_ns=at_ns,
        )
        self._row(gateway, "event", encode(one), at_ns, pipeline or self.pipeline)

    def add_measure(
        self, gateway: str, model: ModelRef, from_ns: int, to_ns: int, *, errors: int = 0, latency_ms: float = 5.0
    ) -> None:
        counts = [0] * (len(EDGES) + 1)
        counts[sum(1 for edge in EDGES if latency_ms >= edge)] = 60
        one = Measure(
            gateway=gateway,
            pipeline=self.pipeline,
            started_at=AT,
            ended_at=AT,
            captured_from_ns=from_ns,
            captured_to_ns=to_ns,
            inferences=60,
            model=model,
            errors=errors,
            latencies_ms=Histogram(edges=EDGES, counts=tuple(counts)),
        )
        self._row(gateway, "measure", encode(one), to_ns, self.pipeline)

    def _row(self, gateway: str, kind: str, body: bytes, at_ns: int, pipeline: str) -> None:
        number = len(self.rows) + 1
        key = StreamKey(gateway, "00000000000000aa", "event")
        self.rows.append(StoredRecord(number, key, number, kind, pipeline, at_ns, at_ns, body, b""))

    # ---- what rollouts call --------------------------------------------------------------------------

    def gateways(self) -> list[GatewayState]:
        self._check()
        return [self.states[name] for name in sorted(self.states)]

    def pipelines(self, gateway: str | None = None) -> list[PipelineState]:
        self._check()
        return [
            PipelineState(
                name,
                0,
                PipelineStatus(pipeline=self.pipeline, state="running", source_state="streaming", at=AT, model=model),
            )
            for name, model in sorted(self.models.items())
            if gateway in (None, name)
        ]

    def records(self, wanted: RecordFilter, *, limit: int = 100, with_blobs: bool = False) -> list[StoredRecord]:
        self._check()
        rows = self.rows if wanted.after_id is None else self.rows[wanted.after_id :]
        found = [row for row in rows if _fits(row, wanted)]
        return found[:limit] if wanted.after_id is not None else found[::-1][:limit]

    def _check(self) -> None:
        if self.away:
            raise StoreError("the store is away")


def _fits(row: StoredRecord, wanted: RecordFilter) -> bool:
    return (
        wanted.gateway in (None, row.key.gateway)
        and wanted.pipeline in (None, row.pipeline)
        and wanted.kind in (None, row.kind)
        and (wanted.since_ns is None or row.received_at_ns >= wanted.since_ns)
        and (wanted.until_ns is None or row.received_at_ns < wanted.until_ns)
    )
