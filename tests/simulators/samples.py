"""Messages of all kinds, as a gateway would send them."""

import msgspec

from gateway.wire.batch import pack
from gateway.wire.messages import (
    Event,
    Eviction,
    Evidence,
    Measure,
    Message,
    ModelRef,
    Notice,
    Record,
    RecordBatch,
    RecordClass,
    encode,
)

AT = "2026-01-31T12:00:00.000Z"
EPOCH = "00000000000000aa"


def event(event_id: str = "e1", *, phase: str = "new", revision: int = 0, label: str = "person") -> Event:
    return msgspec.convert(
        {
            "type": phase,
            "event_id": event_id,
            "gateway": "dock",
            "pipeline": "camera",
            "source": "camera",
            "rule": "people",
            "label": label,
            "score": 0.9,
            "peak_score": 0.95,
            "model": msgspec.to_builtins(ModelRef(name="detector", version="1.2.3")),
            "at": AT,
            "started_at": AT,
            "captured_at_ns": 1_700_000_000_000_000_000,
            "revision": revision,
        },
        Event,
    )


def measure(pipeline: str = "camera") -> Measure:
    return Measure(
        gateway="dock",
        pipeline=pipeline,
        started_at=AT,
        ended_at=AT,
        captured_from_ns=1,
        captured_to_ns=2,
        inferences=60,
        labels={"person": 3},
    )


def notice(code: str = "started") -> Notice:
    return Notice(code=code, severity="info", detail="all is well", at=AT)


def evidence(evidence_id: str = "v1") -> Evidence:
    return Evidence(
        evidence_id=evidence_id, event_id="e1", pipeline="camera", content_type="image/jpeg", captured_at_ns=1
    )


def eviction(record_class: RecordClass, first: int, last: int) -> Eviction:
    return Eviction(
        record_class=record_class,
        first_seq=first,
        last_seq=last,
        count=last - first + 1,
        size_bytes=1000,
        reason="bytes",
        at=AT,
    )


KINDS: dict[type[Message], str] = {
    Event: "event",
    Measure: "measure",
    Evidence: "evidence",
    Eviction: "eviction",
    Notice: "notice",
}


def record(seq: int, body: Message | bytes | None = None, *, kind: str = "", blob: bytes = b"") -> Record:
    message = notice() if body is None else body
    text = message if isinstance(message, bytes) else encode(message)
    name = kind or (KINDS[type(message)] if isinstance(message, Message) else "notice")
    return Record(seq=seq, kind=name, recorded_at_ns=1000 + seq, body=msgspec.Raw(text), blob_bytes=len(blob))


def batch(*records: Record, base: int = 1, epoch: str = EPOCH, blobs: tuple[bytes, ...] = ()) -> bytes:
    return pack(RecordBatch(epoch=epoch, base=base, records=list(records)), blobs).payload
