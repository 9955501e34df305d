"""How the commands put things: plain values for JSON, lines for people."""

from typing import Any, Final

import msgspec

from cloud_bridge.store.base import Reader
from cloud_bridge.values import Gap, Rollup, Spread, StoredEvent, StoredLetter, StoredRecord, StreamKey
from gateway.wire.batch import payload_digest
from gateway.wire.plain import in_figures, so_many
from gateway.wire.times import rfc3339

_NS_PER_SECOND: Final = 1_000_000_000
_RATE_SECONDS: Final = (10, 60, 600)


def _key(key: StreamKey) -> dict[str, str]:
    return {"gateway": key.gateway, "epoch": key.epoch, "class": key.record_class}


def status_plain(store: Reader, now_ns: int) -> dict[str, Any]:
    """Gather what `status` shows."""
    counts, streams = store.counts(), store.streams()
    newest: dict[str, int] = {}
    for stream in streams:
        newest[stream.key.gateway] = max(newest.get(stream.key.gateway, 0), stream.marked_at_ns)
    return {
        "records_per_second": {
            f"{seconds}s": round(store.received_since(now_ns - seconds * _NS_PER_SECOND) / seconds, 2)
            for seconds in _RATE_SECONDS
        },
        "rollup_backlog": store.rollup_backlog(),
        "gateways": [
            {
                "gateway": one.gateway,
                "state": one.state,
                "at": one.at,
                "version": one.version,
                "seen_at": rfc3339(one.seen_at_ns) if one.seen_at_ns else None,
                "mark_age_seconds": _age(newest.get(one.gateway, 0), now_ns),
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
                "marked_at": rfc3339(one.marked_at_ns) if one.marked_at_ns else None,
            }
            for one in streams
        ],
        "records": counts.records,
        "events": counts.events,
        "duplicates": counts.duplicates,
        "gaps": counts.gaps,
        "deleted": counts.deleted,
        "dead_letters": counts.dead_letters,
        "store_bytes": store.size_bytes(),
    }


def _age(at_ns: int, now_ns: int) -> float | None:
    return round(max(0, now_ns - at_ns) / _NS_PER_SECOND, 1) if at_ns else None


def status_lines(plain: dict[str, Any]) -> list[str]:
    """Put the status for people."""
    letters = sum(plain["dead_letters"].values())
    lines = [
        f"{so_many(plain['records'], 'record')}, {so_many(plain['events'], 'event')} in"
        f" {plain['store_bytes'] / 1e6:.1f} MB",
        f"{so_many(plain['duplicates'], 'duplicate')} absorbed, {so_many(plain['gaps'], 'number')} in gaps,"
        f" {so_many(letters, 'dead letter')}",
        "taken in " + ", ".join(f"{rate:g}/s over {over}" for over, rate in plain["records_per_second"].items()),
    ]
    for reason, count in plain["dead_letters"].items():
        lines.append(f"  dead letters, {reason}: {count}")
    for one in plain["gateways"]:
        age = one["mark_age_seconds"]
        marked = "" if age is None else f", newest mark {age:g} s old"
        lines.append(
            f"gateway {one['gateway']}: {one['state']} since {one['at'] or '?'}, seen {one['seen_at'] or '-'}{marked}"
        )
    for one in plain["pipelines"]:
        rate = f"{one['inferences_per_second']:g}/s"
        lines.append(f"  pipeline {one['gateway']}/{one['pipeline']}: {one['state']}, mode {one['mode']}, {rate}")
    for one in plain["streams"]:
        missing = "" if one["mark"] == one["last"] else f", more up to {one['last']}"
        name = f"{one['gateway']}/{one['class']} ({one['epoch']})"
        lines.append(f"  stream {name}: complete to {one['mark']}{missing}, {so_many(one['records'], 'record')}")
    return lines


def _text(data: bytes, limit: int = 120) -> str:
    text = data.decode("utf-8", "backslashreplace").replace("\n", " ")
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
        "is_open": gap.is_open,
    }


def gap_line(gap: Gap) -> str:
    """Put a gap for people."""
    why = {
        "eviction": f"evicted ({gap.reason})",
        "quarantine": f"in a store that was put aside ({gap.reason})",
        "dead-letter": f"unread, in the dead letter with payload {gap.reason}",
    }.get(gap.source, "below what the gateway still has")
    name = f"{gap.key.gateway}/{gap.key.record_class or 'any class'} ({gap.key.epoch})"
    if gap.is_open:
        return f"{rfc3339(gap.noted_at_ns)} {name} from {gap.first} on, how far is not known: {why}"
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
        "sender": None if one.sender is None else {"gateway": one.sender[0], "class": one.sender[1]},
        "only_copy": one.is_custody,
        "payload_bytes": one.payload_bytes,
        "payload_digest": payload_digest(one.payload) if len(one.payload) == one.payload_bytes else None,
        "payload": one.payload.decode("utf-8", "backslashreplace"),
    }


def letter_line(stored: StoredLetter) -> str:
    """Put a dead letter for people."""
    one = stored.letter
    times = f"{stored.count}x" if stored.count > 1 else "once"
    held = " (the only copy of its records)" if one.is_custody else ""
    return f"{stored.id} {rfc3339(stored.last_at_ns)} {times} {one.reason} {one.topic}: {one.detail}{held}"


def _spread_plain(spread: Spread) -> dict[str, float | int | None]:
    return {"count": spread.size, "min": spread.minimum, "mean": spread.mean, "max": spread.maximum}


def rollup_plain(one: Rollup) -> dict[str, Any]:
    """Put a rollup for JSON."""
    return {
        "start": rfc3339(one.start_s * _NS_PER_SECOND),
        "start_s": one.start_s,
        "seconds": one.grain_seconds,
        "gateway": one.gateway,
        "pipeline": one.pipeline,
        "label": one.label,
        "events": one.events,
        "updates": one.updates,
        "score": _spread_plain(one.score),
        "measures": one.measures,
        "inferences": one.inferences,
        "findings": one.findings,
        "level": _spread_plain(one.level),
        "latency_ms": _spread_plain(one.latency_ms),
        "dropped": one.dropped,
        "raw_bytes": one.raw_bytes,
        "sent_bytes": one.sent_bytes,
    }


def _spread_text(name: str, spread: Spread) -> str:
    if spread.minimum is None or spread.mean is None or spread.maximum is None:
        return ""
    return f", {name} {in_figures(spread.minimum)}/{in_figures(spread.mean)}/{in_figures(spread.maximum)}"


def rollup_line(one: Rollup) -> str:
    """Put a rollup for people; distributions as smallest/mean/largest."""
    parts = [f"{so_many(one.events, 'event')}" if one.events or one.updates else ""]
    parts.append(f"{so_many(one.inferences, 'inference')}, {so_many(one.findings, 'finding')}" if one.measures else "")
    if not one.measures and one.findings:
        parts.append(f"{so_many(one.findings, 'finding')}")
    spreads = _spread_text("score", one.score) + _spread_text("level", one.level)
    spreads += _spread_text("latency ms", one.latency_ms)
    counted = ", ".join(part for part in parts if part)
    start = rfc3339(one.start_s * _NS_PER_SECOND)[:16]
    return f"{start}Z {one.gateway}/{one.pipeline} {one.label or '*'}: {counted}{spreads}"
