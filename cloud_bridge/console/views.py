"""What each page shows: read from the data, put together for a template. Every function blocks."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from cloud_bridge.console.pictures import EvidenceKey, Pictures, picture_type
from cloud_bridge.console.plots import HEIGHT, WIDTH, Line, UnreadableEvidenceError, lines_of
from cloud_bridge.console.rendering import Context
from cloud_bridge.store.base import ConsoleReader
from cloud_bridge.values import GatewayState, PipelineState, Rollup, StoredEvent, StoredLetter, Stream

OVERVIEW_FRAGMENTS: Final = ("headline", "newest", "fleet", "anomalies", "pipelines", "delivery")
GATEWAY_FRAGMENTS: Final = ("gateway", "pipelines", "anomalies", "streams")
DELIVERY_FRAGMENTS: Final = ("delivery", "streams", "gaps", "letters")

_NEWEST: Final = 15
_SHOWN_GAPS: Final = 100
_SHOWN_LETTERS: Final = 100
_PREVIEW_BYTES: Final = 96
_UNPRINTABLE: Final = re.compile(rb"[^\x20-\x7e]")


@dataclass(frozen=True, slots=True)
class FleetRow:
    """A gateway and what runs on it, in short."""

    state: GatewayState
    pipelines: int
    troubled: tuple[str, ...]  # names of pipelines that do not run


@dataclass(frozen=True, slots=True)
class LetterRow:
    """A dead letter with the beginning of its payload, readable."""

    stored: StoredLetter
    preview: str


@dataclass(frozen=True, slots=True)
class Proof:
    """The evidence of an event: a picture, lines, or why there is neither."""

    evidence_id: str
    is_picture: bool = False
    lines: tuple[Line, ...] = ()
    remark: str = ""
    size_bytes: int = 0
    width: int = WIDTH
    height: int = HEIGHT


class Views:
    """Puts the pages' contents together."""

    def __init__(self, data: ConsoleReader) -> None:
        self._data = data
        self._pictures = Pictures(data)

    def overview(self) -> Context:
        """Everything at a glance."""
        gateways, pipelines = self._data.gateways(), self._data.pipelines()
        events = self._data.events(limit=_NEWEST)
        silent = _silent(gateways)
        heard = [state for state in pipelines if state.gateway not in silent]
        return {
            **self._events(events),
            **self._delivery(),
            "newest": events[0] if events else None,
            "open_events": sum(state.status.open_events for state in heard),
            "fleet": _fleet(gateways, pipelines),
            "online": sum(state.state == "online" for state in gateways),
            "pipelines": pipelines,
            "troubled": sum(_is_troubled(state) for state in pipelines),
            "rate": sum(state.status.inferences_per_second for state in heard),
            "silent": silent,
            "with_gateway": True,
        }

    def gateway(self, gateway: str) -> Context | None:
        """One gateway; None if it was never heard of."""
        states = [state for state in self._data.gateways() if state.gateway == gateway]
        if not states:
            return None
        return {
            **self._events(self._data.events(limit=_NEWEST, gateway=gateway)),
            "gateway": states[0],
            "pipelines": self._data.pipelines(gateway),
            "silent": _silent(states),
            "streams": [stream for stream in self._data.streams() if stream.key.gateway == gateway],
            "with_gateway": False,
        }

    def delivery(self) -> Context:
        """Streams, gaps and dead letters."""
        return {
            **self._delivery(),
            "gap_rows": self._data.gaps(limit=_SHOWN_GAPS),
            "letters": [_letter(stored) for stored in self._data.dead_letters(limit=_SHOWN_LETTERS)],
            "with_gateway": True,
        }

    def events(self, events: Sequence[StoredEvent]) -> Context:
        """A list of events, with the names to filter by."""
        pipelines = self._data.pipelines()
        return {
            **self._events(events),
            "gateway_names": [state.gateway for state in self._data.gateways()],
            "pipeline_names": sorted({state.status.pipeline for state in pipelines}),
            "with_gateway": True,
        }

    def rollups(self, rollups: Sequence[Rollup]) -> Context:
        """A list of rollups, with the names to filter by and bars that compare them with the largest."""
        pipelines = self._data.pipelines()
        largest = max((max(one.events, one.findings) for one in rollups), default=0)
        return {
            "rollups": rollups,
            "largest": largest or 1,
            "gateway_names": [state.gateway for state in self._data.gateways()],
            "pipeline_names": sorted({state.status.pipeline for state in pipelines}),
        }

    def event(self, event_id: str, gateway: str | None) -> Context | None:
        """One event with its evidence; None if there is no such event."""
        stored = self._data.event(event_id, gateway)
        if stored is None:
            return None
        return {"stored": stored, "event": stored.event, "proof": self._proof(stored)}

    def _events(self, events: Sequence[StoredEvent]) -> Context:
        pictures: frozenset[EvidenceKey] = self._pictures.among(events)
        return {"events": events, "pictures": pictures}

    def _delivery(self) -> Context:
        streams = self._data.streams()
        return {
            "counts": self._data.counts(),
            "streams": streams,
            "waiting": sum(_waiting(stream) for stream in streams),
        }

    def _proof(self, stored: StoredEvent) -> Proof | None:
        link = stored.event.evidence
        if link is None:
            return None
        found = self._data.evidence(link.evidence_id, stored.event.gateway)
        if found is None:
            return Proof(link.evidence_id, remark="It has not come yet, or retention has removed it.")
        content = found[1]
        if picture_type(content):
            return Proof(link.evidence_id, is_picture=True, size_bytes=len(content))
        try:
            return Proof(link.evidence_id, lines=lines_of(content), size_bytes=len(content))
        except UnreadableEvidenceError as error:
            return Proof(link.evidence_id, remark=f"It cannot be shown here: {error}.", size_bytes=len(content))


def _fleet(gateways: Sequence[GatewayState], pipelines: Sequence[PipelineState]) -> list[FleetRow]:
    rows = []
    for state in gateways:
        own = [pipeline for pipeline in pipelines if pipeline.gateway == state.gateway]
        troubled = tuple(pipeline.status.pipeline for pipeline in own if _is_troubled(pipeline))
        rows.append(FleetRow(state, len(own), troubled))
    return rows


def _silent(gateways: Sequence[GatewayState]) -> frozenset[str]:
    """Return the gateways that are away: what their pipelines told last is no longer how they are."""
    return frozenset(state.gateway for state in gateways if state.state in ("offline", "stopped"))


def _is_troubled(state: PipelineState) -> bool:
    return state.status.state in ("degraded", "failed") or state.status.source_state in ("lost", "frozen")


def _waiting(stream: Stream) -> int:
    """Rows that came, or are known to exist, beyond the first number that is missing."""
    return max(0, stream.last - stream.mark)


def _letter(stored: StoredLetter) -> LetterRow:
    start = stored.letter.payload[:_PREVIEW_BYTES]
    cut = "…" if stored.letter.payload_bytes > len(start) else ""
    return LetterRow(stored, _UNPRINTABLE.sub(b".", start).decode("ascii") + cut)
