"""How the commands put things: plain values for JSON, lines for people."""

from typing import Any

import msgspec

from cloud_bridge.store.base import Reader
from cloud_bridge.values import Gap, StoredEvent, StoredLetter, StoredRecord, StreamKey
from gateway.wire.times import rfc3339


def _key(key: StreamKey) -> dict[str, str]:
    return {"gateway": key.gateway, "epoch": key.epoch, "class": key.record_class}


def status_plain(store: Reader) -> dict[str, Any]:
    """Gather what `status` shows."""
    counts = store.counts()
    return {
        "gateways": [
            {
                "gateway": one.gateway,
                "state": one.state,
                "at": one.at,
                "version": one.version,
                "seen_at": rfc3339(one.seen_at_ns) if one.seen_at_ns else None,
            }
            for one in store.gateways()
        ],
        "pipelines": [
            {"gateway": one.gateway, **msgspec.to_builtins(one.status), "received_at": rfc3339(one.received_at_ns)}
            for one in store.pipelines()
        ],
        "streams": [
            {
                **_key(one.key),
                "mark": one.mark,
                "last": one.last,
                "records": one.records,
                "duplicates": one.duplicates,
                "last_received_at": rfc3339(one.last_received_at_ns) if one.last_received_at_ns else None,
            }
            for one in store.streams()
        ],
        "records": counts.records,
        "events": counts.events,
        "duplicates": counts.duplicates,
        "gaps": counts.gaps,
        "deleted": counts.deleted,
        "dead_letters": counts.dead_letters,
        "store_bytes": store.size_bytes(),
    }


def status_lines(plain: dict[str, Any]) -> list[str]:
    """Put the status for people."""
    letters = sum(plain["dead_letters"].values())
    lines = [
        f"{plain['records']} records, {plain['events']} events in {plain['store_bytes'] / 1e6:.1f} MB",
        f"{plain['duplicates']} duplicates absorbed, {plain['gaps']} numbers in gaps, {letters} dead letters",
    ]
    for one in plain["gateways"]:
        lines.append(f"gateway {one['gateway']}: {one['state']} since {one['at'] or '?'}, seen {one['seen_at'] or '-'}")
    for one in plain["pipelines"]:
        rate = f"{one['inferences_per_second']:g}/s"
        lines.append(f"  pipeline {one['gateway']}/{one['pipeline']}: {one['state']}, mode {one['mode']}, {rate}")
    for one in plain["streams"]:
        missing = "" if one["mark"] == one["last"] else f", more up to {one['last']}"
        name = f"{one['gateway']}/{one['class']} ({one['epoch']})"
        lines.append(f"  stream {name}: complete to {one['mark']}{missing}, {one['records']} records")
    return lines


def _text(data: bytes, limit: int = 120) -> str:
    text = data.decode("utf-8", "replace").replace("\n", " ")
    return text if len(text) <= limit else f"{text[:limit]}…"


def record_line(record: StoredRecord) -> str:
    """Put a record for people."""
    where = f"{record.key.gateway}/{record.key.record_class}#{record.seq}"
    return f"{rfc3339(record.received_at_ns)} {where} {record.kind} {record.pipeline or '-'} {_text(record.body)}"


def event_plain(stored: StoredEvent) -> dict[str, Any]:
    """Put an event for JSON: the event itself, with when it came."""
    return {
        "id": stored.id,
        "received_at": rfc3339(stored.received_at_ns),
        "updated_at": rfc3339(stored.updated_at_ns),
        **msgspec.to_builtins(stored.event),
    }


def event_line(stored: StoredEvent) -> str:
    """Put an event for people."""
    one = stored.event
    model = f"{one.model.name} {one.model.version}"
    return (
        f"{one.at} {one.gateway}/{one.pipeline} {one.phase:6} {one.label} {one.score:.2f}"
        f" (peak {one.peak_score:.2f}) {one.event_id} {model}"
    )


def gap_plain(gap: Gap) -> dict[str, Any]:
    """Put a gap for JSON."""
    return {
        **_key(gap.key),
        "first": gap.first,
        "last": gap.last,
        "source": gap.source,
        "reason": gap.reason,
        "noted_at": rfc3339(gap.noted_at_ns),
    }


def gap_line(gap: Gap) -> str:
    """Put a gap for people."""
    why = f"evicted ({gap.reason})" if gap.source == "eviction" else "below what the gateway still has"
    name = f"{gap.key.gateway}/{gap.key.record_class} ({gap.key.epoch})"
    return f"{rfc3339(gap.noted_at_ns)} {name} {gap.first}..{gap.last}: {why}"


def letter_plain(stored: StoredLetter) -> dict[str, Any]:
    """Put a dead letter for JSON, its payload as text with what is no UTF-8 escaped."""
    one = stored.letter
    return {
        "id": stored.id,
        "reason": one.reason,
        "detail": one.detail,
        "topic": one.topic,
        "key": None if one.key is None else {**_key(one.key), "seq": one.seq},
        "count": stored.count,
        "first_at": rfc3339(stored.first_at_ns),
        "last_at": rfc3339(stored.last_at_ns),
        "payload_bytes": one.payload_bytes,
        "payload": one.payload.decode("utf-8", "backslashreplace"),
    }


def letter_line(stored: StoredLetter) -> str:
    """Put a dead letter for people."""
    one = stored.letter
    times = f"{stored.count}x" if stored.count > 1 else "once"
    return f"{stored.id} {rfc3339(stored.last_at_ns)} {times} {one.reason} {one.topic}: {one.detail}"
