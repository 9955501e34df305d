"""The HTTP API, version 1: what the pages show, for programs. `openapi.json` describes it."""

import re
from collections.abc import Awaitable, Callable, Sequence
from functools import cache
from importlib.resources import files
from typing import Any, Final

import msgspec
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from cloud_bridge.console.pictures import picture_type
from cloud_bridge.console.problems import problem
from cloud_bridge.console.query import Query, is_key
from cloud_bridge.cursors import cursor_of
from cloud_bridge.store.base import ConsoleReader, RecordFilter, RollupFilter, RollupPlace
from cloud_bridge.values import (
    Gap,
    GapPlace,
    GatewayState,
    LetterPlace,
    PipelineState,
    Rollup,
    Spread,
    StoredEvent,
    StoredLetter,
    StoredRecord,
    Stream,
)
from gateway.wire.times import rfc3339
from gateway.wire.topics import GATEWAY_ID

EVENT_PARAMETERS: Final = ("gateway", "pipeline", "label", "since", "until", "before", "limit")
RECORD_PARAMETERS: Final = ("gateway", "pipeline", "class", "kind", "since", "until", "before", "limit")
ROLLUP_PARAMETERS: Final = ("by", "gateway", "pipeline", "label", "since", "until", "cursor", "limit")
LETTER_PREVIEW_BYTES: Final = 256
NPY: Final = "application/x-npy"
UNKNOWN: Final = "application/octet-stream"
_NOT_IN_NAMES: Final = re.compile(r"[^A-Za-z0-9_-]")

_NS_PER_SECOND: Final = 1_000_000_000

Json = dict[str, Any]
Handler = Callable[[Request], Awaitable[Response]]


def api_routes(data: ConsoleReader) -> list[Route]:
    """Build the routes below /api/v1."""
    api = _Api(data)
    table: dict[str, Handler] = {
        "/gateways": api.gateways,
        "/gateways/{gateway}": api.gateway,
        "/pipelines": api.pipelines,
        "/events": api.events,
        "/events/{event_id:path}": api.event,
        "/records": api.records,
        "/counts": api.counts,
        "/streams": api.streams,
        "/gaps": api.gaps,
        "/deadletters": api.dead_letters,
        "/rollups": api.rollups,
        "/evidence/{evidence_id:path}": api.evidence,
        "/openapi.json": api.openapi,
    }
    return [Route(f"/api/v1{path}", handler, methods=["GET"]) for path, handler in table.items()]


class _Api:
    def __init__(self, data: ConsoleReader) -> None:
        self._data = data

    async def gateways(self, request: Request) -> Response:
        Query(request.query_params, ())
        found = await run_in_threadpool(self._data.gateways)
        return _json({"gateways": [_gateway(state) for state in found]})

    async def gateway(self, request: Request) -> Response:
        Query(request.query_params, ())
        wanted = request.path_params["gateway"]
        found = await run_in_threadpool(self._one_gateway, wanted)
        if found is None:
            return problem(404, f"no gateway {wanted[:80]!r} was ever heard of; see /api/v1/gateways")
        return _json(found)

    async def pipelines(self, request: Request) -> Response:
        query = Query(request.query_params, ("gateway",))
        found = await run_in_threadpool(self._data.pipelines, query.gateway())
        return _json({"pipelines": [_pipeline(state) for state in found]})

    async def events(self, request: Request) -> Response:
        query = Query(request.query_params, EVENT_PARAMETERS)
        limit = query.limit()
        found = await run_in_threadpool(
            self._data.events,
            limit=limit + 1,
            gateway=query.gateway(),
            pipeline=query.pipeline(),
            label=query.text("label"),
            since_ns=query.since_ns(),
            until_ns=query.until_ns(),
            before_id=query.before(),
        )
        return _json({"events": [_event(stored) for stored in found[:limit]], "next_before": next_before(found, limit)})

    async def event(self, request: Request) -> Response:
        query = Query(request.query_params, ("gateway",))
        event_id, gateway = request.path_params["event_id"], query.gateway()
        found = await run_in_threadpool(self._data.event, event_id, gateway) if is_key(event_id) else None
        return problem(404, "no such event, or retention has removed it") if found is None else _json(_event(found))

    async def records(self, request: Request) -> Response:
        query = Query(
            request.query_params, ("gateway", "pipeline", "class", "kind", "since", "until", "before", "limit")
        )
        limit = query.limit()
        wanted = RecordFilter(
            gateway=query.gateway(),
            pipeline=query.pipeline(),
            record_class=query.record_class(),
            kind=query.kind(),
            since_ns=query.since_ns(),
            until_ns=query.until_ns(),
            before_id=query.before(),
        )
        found = await run_in_threadpool(self._data.records, wanted, limit=limit + 1, with_blobs=False)
        return _json({"records": [_record(row) for row in found[:limit]], "next_before": next_before(found, limit)})

    async def counts(self, request: Request) -> Response:
        Query(request.query_params, ())
        return _json(msgspec.to_builtins(await run_in_threadpool(self._data.counts)))

    async def streams(self, request: Request) -> Response:
        gateway = Query(request.query_params, ("gateway",)).gateway()
        found = await run_in_threadpool(self._data.streams)
        return _json({"streams": [_stream(stream) for stream in found if gateway in (None, stream.key.gateway)]})

    async def gaps(self, request: Request) -> Response:
        query = Query(request.query_params, ("gateway", "source", "since", "until", "cursor", "limit"))
        limit = query.limit()
        found = await run_in_threadpool(
            self._data.gaps,
            gateway=query.gateway(),
            source=query.source(),
            since_ns=query.since_ns(),
            until_ns=query.until_ns(),
            before=query.cursor(GapPlace),
            limit=limit + 1,
        )
        last = found[limit - 1].place if len(found) > limit else None
        return _json({"gaps": [_gap(gap) for gap in found[:limit]], "next_cursor": last and cursor_of(last)})

    async def dead_letters(self, request: Request) -> Response:
        query = Query(request.query_params, ("gateway", "reason", "since", "until", "cursor", "limit"))
        limit = query.limit()
        found = await run_in_threadpool(
            self._data.dead_letters,
            limit=limit + 1,
            reason=query.text("reason"),
            gateway=query.gateway(),
            since_ns=query.since_ns(),
            until_ns=query.until_ns(),
            before=query.cursor(LetterPlace),
        )
        last = found[limit - 1].place if len(found) > limit else None
        letters = [_letter(stored) for stored in found[:limit]]
        return _json({"dead_letters": letters, "next_cursor": last and cursor_of(last)})

    async def rollups(self, request: Request) -> Response:
        query = Query(request.query_params, ROLLUP_PARAMETERS)
        limit = query.limit()
        found = await run_in_threadpool(self._data.rollups, rollups_asked_for(query), limit=limit + 1)
        rollups = [_rollup(one) for one in found[:limit]]
        return _json({"rollups": rollups, "next_cursor": next_rollups(found, limit)})

    async def evidence(self, request: Request) -> Response:
        gateway = Query(request.query_params, ("gateway",)).gateway()
        evidence_id = request.path_params["evidence_id"]
        found = await run_in_threadpool(self._data.evidence, evidence_id, gateway) if is_key(evidence_id) else None
        if found is None:
            return problem(404, "no such evidence: it has not come yet, or retention has removed it")
        return _evidence(evidence_id, found[1])

    async def openapi(self, request: Request) -> Response:
        Query(request.query_params, ())
        return Response(_openapi(), media_type="application/json")

    def _one_gateway(self, wanted: str) -> Json | None:
        if GATEWAY_ID.fullmatch(wanted) is None:
            return None
        states = [state for state in self._data.gateways() if state.gateway == wanted]
        if not states:
            return None
        return {
            **_gateway(states[0]),
            "pipelines": [_pipeline(state) for state in self._data.pipelines(wanted)],
            "streams": [_stream(stream) for stream in self._data.streams() if stream.key.gateway == wanted],
        }


def next_before(found: Sequence[StoredEvent | StoredRecord], limit: int) -> int | None:
    """Return where the next page begins, when one row more than wanted was found."""
    return found[limit - 1].id if len(found) > limit else None


def rollups_asked_for(query: Query) -> RollupFilter:
    """Make a filter of the parameters ROLLUP_PARAMETERS."""
    grain, since_ns, until_ns = query.grain_seconds(), query.since_ns(), query.until_ns()
    return RollupFilter(
        grain,
        gateway=query.gateway(),
        pipeline=query.pipeline(),
        label=query.text("label"),
        since_s=None if since_ns is None else since_ns // _NS_PER_SECOND // grain * grain,
        until_s=None if until_ns is None else -(-until_ns // _NS_PER_SECOND),
        before=query.cursor(RollupPlace),
    )


def next_rollups(found: Sequence[Rollup], limit: int) -> str | None:
    """Return the cursor of the next page, when one row more than wanted was found."""
    if len(found) <= limit:
        return None
    last = found[limit - 1]
    return cursor_of(RollupPlace(last.start_s, last.gateway, last.pipeline, last.label))


@cache
def _openapi() -> bytes:
    return files("cloud_bridge.console").joinpath("openapi.json").read_bytes()


def _json(content: Json) -> Response:
    return Response(msgspec.json.encode(content), media_type="application/json")


def _evidence(evidence_id: str, content: bytes) -> Response:
    """Serve bytes from a device: pictures as what they are, everything else only to be saved, nothing ever run."""
    name = _NOT_IN_NAMES.sub("_", evidence_id[:80])
    picture = picture_type(content)
    is_window = content.startswith(b"\x93NUMPY")
    suffix = "npy" if is_window else "bin"
    headers = {
        "Content-Disposition": "inline" if picture else f'attachment; filename="{name}.{suffix}"',
        "Content-Security-Policy": "default-src 'none'; sandbox; frame-ancestors 'none'",
        # Evidence never changes under its id, and the live page shows the same picture again and again.
        "Cache-Control": "private, max-age=3600, immutable",
    }
    return Response(content, headers=headers, media_type=picture or (NPY if is_window else UNKNOWN))


def _gateway(state: GatewayState) -> Json:
    return {
        "gateway": state.gateway,
        "state": state.state,
        "at": state.at,
        "version": state.version,
        "seen_at": rfc3339(state.seen_at_ns),
        "seen_at_ns": state.seen_at_ns,
    }


def _pipeline(state: PipelineState) -> Json:
    return {
        "gateway": state.gateway,
        "received_at": rfc3339(state.received_at_ns),
        "received_at_ns": state.received_at_ns,
        "status": state.status,
    }


def _event(stored: StoredEvent) -> Json:
    return {
        "id": stored.id,
        "received_at": rfc3339(stored.received_at_ns),
        "received_at_ns": stored.received_at_ns,
        "updated_at_ns": stored.updated_at_ns,
        "event": stored.event,
    }


def _record(row: StoredRecord) -> Json:
    return {
        "id": row.id,
        "gateway": row.key.gateway,
        "epoch": row.key.epoch,
        "class": row.key.record_class,
        "seq": row.seq,
        "kind": row.kind,
        "pipeline": row.pipeline,
        "recorded_at_ns": row.recorded_at_ns,
        "received_at_ns": row.received_at_ns,
        "body": _body(row.body),
    }


def _body(body: bytes) -> object:
    """Return a body as it was sent; as text if a device managed to send something that is not quite JSON."""
    try:
        body.decode("utf-8")
        msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return body.decode("utf-8", errors="replace")
    return msgspec.Raw(body)


def _stream(stream: Stream) -> Json:
    return {
        "gateway": stream.key.gateway,
        "epoch": stream.key.epoch,
        "class": stream.key.record_class,
        "mark": stream.mark,
        "last": stream.last,
        "records": stream.records,
        "duplicates": stream.duplicates,
        "last_received_at_ns": stream.last_received_at_ns,
        "marked_at_ns": stream.marked_at_ns,
    }


def _gap(gap: Gap) -> Json:
    return {
        "gateway": gap.key.gateway,
        "epoch": gap.key.epoch,
        "class": gap.key.record_class,
        "first": gap.first,
        "last": gap.last,
        "source": gap.source,
        "reason": gap.reason,
        "noted_at_ns": gap.noted_at_ns,
        "is_open": gap.is_open,
    }


def _rollup(one: Rollup) -> Json:
    return {
        "start_s": one.start_s,
        "seconds": one.grain_seconds,
        "gateway": one.gateway,
        "pipeline": one.pipeline,
        "label": one.label,
        "events": one.events,
        "updates": one.updates,
        "score": _spread(one.score),
        "measures": one.measures,
        "inferences": one.inferences,
        "findings": one.findings,
        "level": _spread(one.level),
        "latency_ms": _spread(one.latency_ms),
        "dropped": one.dropped,
        "raw_bytes": one.raw_bytes,
        "sent_bytes": one.sent_bytes,
    }


def _spread(spread: Spread) -> Json:
    return {"count": spread.size, "min": spread.minimum, "mean": spread.mean, "max": spread.maximum}


def _letter(stored: StoredLetter) -> Json:
    letter = stored.letter
    return {
        "id": stored.id,
        "reason": letter.reason,
        "topic": letter.topic,
        "detail": letter.detail,
        "payload_bytes": letter.payload_bytes,
        "payload_start": letter.payload[:LETTER_PREVIEW_BYTES],  # travels as base64
        "gateway": None if letter.key is None else letter.key.gateway,
        "class": None if letter.key is None else letter.key.record_class,
        "seq": letter.seq,
        "count": stored.count,
        "first_at_ns": stored.first_at_ns,
        "last_at_ns": stored.last_at_ns,
    }
