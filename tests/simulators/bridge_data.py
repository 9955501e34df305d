"""What the console reads, in memory: a fleet that a test can change while someone looks at it."""

import io
import struct
import threading
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Unpack

import numpy as np

from cloud_bridge.errors import StoreError
from cloud_bridge.store.base import EventFilter, GapFilter, LetterFilter, RecordFilter, RollupFilter
from cloud_bridge.values import (
    Counts,
    DeadLetter,
    Gap,
    GapPlace,
    GatewayState,
    PipelineState,
    Rollup,
    Spread,
    StoredEvent,
    StoredLetter,
    StoredRecord,
    Stream,
    StreamKey,
)
from gateway.wire.messages import Event, EvidenceLink, ModelRef, PipelineStatus, encode
from gateway.wire.times import rfc3339

NOW_NS = 1_770_000_000_000_000_000
SECOND_NS = 1_000_000_000
EPOCH = "0123456789abcdef"
MODEL = ModelRef(name="vibration-ae", version="1.2.0", digest="sha256:" + "ab" * 32)

# The smallest thing that begins like a JPEG and ends like one; a browser shows it as a broken picture.
TINY_JPEG = b"\xff\xd8\xff\xe0" + struct.pack(">H5sHBHHBB", 16, b"JFIF\0", 0x0101, 0, 1, 1, 0, 0) + b"\xff\xd9"


def window(samples: int = 256, channels: int = 3) -> bytes:
    """Make window evidence as a gateway sends it."""
    across = np.linspace(0, 40, samples)[:, None] + np.arange(channels)
    stream = io.BytesIO()
    np.save(stream, np.sin(across).astype(np.float16), allow_pickle=False)
    return stream.getvalue()


class BridgeData:
    """A store of the bridge for the console, with knobs. `failing` makes every call raise StoreError."""

    def __init__(self, now_ns: int = NOW_NS) -> None:
        self.now_ns = now_ns
        self.failing = False
        self.calls = 0
        self._lock = threading.Lock()
        self._change = 0
        self._gateways: dict[str, GatewayState] = {}
        self._pipelines: dict[tuple[str, str], PipelineState] = {}
        self._events: dict[tuple[str, str], StoredEvent] = {}
        self._evidence: dict[tuple[str, str], tuple[str, bytes]] = {}
        self._records: list[StoredRecord] = []
        self._streams: dict[StreamKey, Stream] = {}
        self._gaps: list[Gap] = []
        self._letters: list[StoredLetter] = []
        self._rollups: list[Rollup] = []

    # knobs

    def set_gateway(self, gateway: str, state: str = "online", version: str = "0.1.0") -> None:
        """Make a gateway known, or change its state."""
        with self._lock:
            self._change += 1
            self._gateways[gateway] = GatewayState(gateway, state, rfc3339(self.now_ns), version, self.now_ns)

    def set_pipeline(self, gateway: str, status: PipelineStatus) -> None:
        """Set the latest status of a pipeline."""
        with self._lock:
            self._change += 1
            self._pipelines[gateway, status.pipeline] = PipelineState(gateway, self.now_ns, status)

    def put_event(self, event: Event) -> int:
        """Store an event, or its next phase; return its id."""
        with self._lock:
            self._change += 1
            key = (event.gateway, event.event_id)
            known = self._events.get(key)
            if known is None:
                self._events[key] = StoredEvent(len(self._events) + 1, self.now_ns, self.now_ns, event)
            else:
                self._events[key] = replace(known, event=event, updated_at_ns=self.now_ns)
            self._put_record(StreamKey(event.gateway, EPOCH, "event"), "event", event.pipeline, encode(event))
            return self._events[key].id

    def put_evidence(self, gateway: str, evidence_id: str, content: bytes, content_type: str = "image/jpeg") -> None:
        """Store evidence."""
        with self._lock:
            self._change += 1
            self._evidence[gateway, evidence_id] = (content_type, content)

    def put_record(self, gateway: str, record_class: str, kind: str, body: bytes, pipeline: str | None = None) -> None:
        """Store a record of any kind."""
        with self._lock:
            self._change += 1
            self._put_record(StreamKey(gateway, EPOCH, record_class), kind, pipeline, body)

    def put_gap(self, gateway: str, first: int, last: int, reason: str = "bytes") -> None:
        """Note a gap."""
        with self._lock:
            self._change += 1
            key = StreamKey(gateway, EPOCH, "bulk")
            place = GapPlace(self.now_ns, 1, len(self._gaps) + 1)
            self._gaps.insert(0, Gap(key, first, last, "eviction", reason, self.now_ns, place=place))

    def put_lost_store(self, gateway: str, epoch: str, detail: str = "damaged") -> None:
        """Note that a device has put a store aside of which nothing ever came."""
        with self._lock:
            self._change += 1
            place = GapPlace(self.now_ns, 1, len(self._gaps) + 1)
            key = StreamKey(gateway, epoch, "")
            self._gaps.insert(0, Gap(key, 1, 0, "quarantine", detail, self.now_ns, is_open=True, place=place))

    def put_rollup(self, gateway: str, pipeline: str, label: str, events: int, *, grain_seconds: int = 3600) -> None:
        """Sum something up, in the present hour or day."""
        nothing = Spread(0, None, None, None)
        with self._lock:
            self._change += 1
            self._rollups.append(
                Rollup(
                    gateway=gateway,
                    grain_seconds=grain_seconds,
                    pipeline=pipeline,
                    label=label,
                    start_s=self.now_ns // SECOND_NS // grain_seconds * grain_seconds,
                    events=events,
                    updates=0,
                    score=Spread(events, 0.25, 0.5, 0.75),
                    measures=0,
                    inferences=0,
                    findings=0,
                    level=nothing,
                    latency_ms=nothing,
                    dropped=0,
                    raw_bytes=0,
                    sent_bytes=0,
                )
            )

    def put_letter(self, reason: str, topic: str, payload: bytes, detail: str = "not JSON") -> None:
        """Keep a dead letter."""
        with self._lock:
            self._change += 1
            letter = DeadLetter(reason, topic, detail, payload, len(payload))
            self._letters.insert(0, StoredLetter(len(self._letters) + 1, letter, 1, self.now_ns, self.now_ns))

    # what the console reads

    def gateways(self) -> list[GatewayState]:
        """Return the gateways by name."""
        with self._reading():
            return [self._gateways[name] for name in sorted(self._gateways)]

    def pipelines(self, gateway: str | None = None) -> list[PipelineState]:
        """Return the pipelines by gateway and name."""
        with self._reading():
            return [self._pipelines[key] for key in sorted(self._pipelines) if gateway in (None, key[0])]

    def events(self, *, limit: int = 100, **wanted: Unpack[EventFilter]) -> list[StoredEvent]:
        """Return the newest events."""
        with self._reading():
            found = sorted(self._events.values(), key=lambda stored: -stored.id)
        before_id = wanted.get("before_id")
        return [
            stored
            for stored in found
            if wanted.get("gateway") in (None, stored.event.gateway)
            and wanted.get("pipeline") in (None, stored.event.pipeline)
            and wanted.get("label") in (None, stored.event.label)
            and _within(stored.received_at_ns, wanted)
            and (before_id is None or stored.id < before_id)
        ][:limit]

    def event(self, event_id: str, gateway: str | None = None) -> StoredEvent | None:
        """Return one event."""
        return next((stored for stored in self.events(gateway=gateway) if stored.event.event_id == event_id), None)

    def records(self, wanted: RecordFilter, *, limit: int = 100, with_blobs: bool = False) -> list[StoredRecord]:
        """Return the newest records."""
        with self._reading():
            found = list(reversed(self._records))
        return [
            row
            for row in found
            if wanted.gateway in (None, row.key.gateway)
            and wanted.pipeline in (None, row.pipeline)
            and wanted.record_class in (None, row.key.record_class)
            and wanted.kind in (None, row.kind)
            and (wanted.since_ns is None or row.received_at_ns >= wanted.since_ns)
            and (wanted.until_ns is None or row.received_at_ns < wanted.until_ns)
            and (wanted.before_id is None or row.id < wanted.before_id)
        ][:limit]

    def evidence(self, evidence_id: str, gateway: str | None = None) -> tuple[str, bytes] | None:
        """Return evidence."""
        with self._reading():
            keys: Sequence[str] = sorted(self._gateways) if gateway is None else [gateway]
            return next(
                (self._evidence[key, evidence_id] for key in keys if (key, evidence_id) in self._evidence), None
            )

    def streams(self) -> list[Stream]:
        """Return the streams by key."""
        with self._reading():
            return [self._streams[key] for key in sorted(self._streams)]

    def gaps(self, *, limit: int = 1000, **wanted: Unpack[GapFilter]) -> list[Gap]:
        """Return the latest gaps."""
        before = wanted.get("before")
        with self._reading():
            return [
                gap
                for gap in self._gaps
                if wanted.get("gateway") in (None, gap.key.gateway)
                and wanted.get("source") in (None, gap.source)
                and _within(gap.noted_at_ns, wanted)
                and (before is None or (gap.place is not None and gap.place < before))
            ][:limit]

    def identity(self) -> str:
        """Return the id of the store."""
        with self._reading():
            return "00000000000000000000000000000000"

    def counts(self) -> Counts:
        """Return the sums."""
        with self._reading():
            return Counts(
                records=len(self._records),
                events=len(self._events),
                duplicates=sum(stream.duplicates for stream in self._streams.values()),
                gaps=sum(gap.last - gap.first + 1 for gap in self._gaps),
                dead_letters=dict(Counter(stored.letter.reason for stored in self._letters)),
                deleted=0,
            )

    def dead_letters(self, *, limit: int = 100, **wanted: Unpack[LetterFilter]) -> list[StoredLetter]:
        """Return the latest dead letters."""
        before, gateway = wanted.get("before"), wanted.get("gateway")
        with self._reading():
            return [
                stored
                for stored in self._letters
                if wanted.get("reason") in (None, stored.letter.reason)
                and (gateway is None or (stored.letter.key is not None and stored.letter.key.gateway == gateway))
                and _within(stored.last_at_ns, wanted)
                and (before is None or stored.place < before)
            ][:limit]

    def rollups(self, wanted: RollupFilter, *, limit: int = 1000) -> list[Rollup]:
        """Return the latest rollups."""
        with self._reading():
            found = sorted(
                self._rollups, key=lambda one: (one.start_s, one.gateway, one.pipeline, one.label), reverse=True
            )
        return [
            one
            for one in found
            if one.grain_seconds == wanted.grain_seconds
            and wanted.gateway in (None, one.gateway)
            and wanted.pipeline in (None, one.pipeline)
            and wanted.label in (None, one.label)
            and (wanted.since_s is None or one.start_s >= wanted.since_s)
            and (wanted.until_s is None or one.start_s < wanted.until_s)
            and (wanted.before is None or (one.start_s, one.gateway, one.pipeline, one.label) < wanted.before)
        ][:limit]

    def change_counter(self) -> int:
        """Return how often something changed."""
        with self._reading():
            return self._change

    def _reading(self) -> threading.Lock:
        self.calls += 1
        if self.failing:
            raise StoreError("the disk does not answer")
        return self._lock

    def _put_record(self, key: StreamKey, kind: str, pipeline: str | None, body: bytes) -> None:
        stream = self._streams.get(key, Stream(key, 0, 0, 0, 0, 0))
        seq = stream.last + 1
        self._streams[key] = Stream(key, seq, seq, stream.records + 1, stream.duplicates, self.now_ns)
        row = StoredRecord(len(self._records) + 1, key, seq, kind, pipeline, self.now_ns, self.now_ns, body, b"")
        self._records.append(row)


def _within(at_ns: int, wanted: EventFilter | GapFilter | LetterFilter) -> bool:
    since_ns, until_ns = wanted.get("since_ns"), wanted.get("until_ns")
    return (since_ns is None or at_ns >= since_ns) and (until_ns is None or at_ns < until_ns)


def an_event(event_id: str, *, gateway: str = "plant-a", label: str = "imbalance", **changes: object) -> Event:
    """Make an event as a gateway sends it."""
    content: dict[str, object] = {
        "phase": "new",
        "event_id": event_id,
        "gateway": gateway,
        "pipeline": "pump",
        "source": "accelerometer",
        "rule": "anomaly",
        "label": label,
        "score": 0.73,
        "peak_score": 0.81,
        "model": MODEL,
        "at": rfc3339(NOW_NS),
        "started_at": rfc3339(NOW_NS - 2 * SECOND_NS),
        "captured_at_ns": NOW_NS,
        "raw_score": 4.2,
        "threshold": 2.1,
    }
    return Event(**{**content, **changes})  # type: ignore[arg-type]  # the caller knows the fields


def a_status(pipeline: str = "pump", **changes: object) -> PipelineStatus:
    """Make a status as a gateway sends it."""
    content: dict[str, object] = {
        "pipeline": pipeline,
        "state": "running",
        "source_state": "streaming",
        "at": rfc3339(NOW_NS),
        "model": MODEL,
        "backend": "litert-cpu",
        "inferences": 12345,
        "inferences_per_second": 9.7,
    }
    return PipelineStatus(**{**content, **changes})  # type: ignore[arg-type]  # the caller knows the fields


def a_fleet(now_ns: int = NOW_NS) -> BridgeData:
    """Make two gateways, their pipelines, events with evidence, a gap and a dead letter."""
    data = BridgeData(now_ns)
    data.set_gateway("plant-a")
    data.set_gateway("yard-b", state="offline", version="0.0.9")
    data.set_pipeline("plant-a", a_status(dropped={"stale": 7}))
    data.set_pipeline(
        "yard-b",
        a_status("gate", state="degraded", source_state="lost", mode="B", last_error="camera /dev/video0 is gone"),
    )
    data.put_event(an_event("ev-1"))
    data.put_event(an_event("ev-1", phase="end", ended_at=rfc3339(now_ns), revision=1))
    picture = EvidenceLink(evidence_id="pic-1", content_type="image/jpeg", size_bytes=len(TINY_JPEG))
    data.put_event(
        an_event("ev-2", gateway="yard-b", pipeline="gate", label="person", threshold=None, evidence=picture)
    )
    data.put_evidence("yard-b", "pic-1", TINY_JPEG)
    wave = EvidenceLink(evidence_id="win-1", content_type="application/x-npy", size_bytes=len(window()))
    data.put_event(an_event("ev-3", evidence=wave, channel=1))
    data.put_evidence("plant-a", "win-1", window(), "application/x-npy")
    data.put_gap("yard-b", 5, 9)
    data.put_letter("malformed", "sluice/v1/plant-a/records/event", b"\x00<not json>")
    return data
