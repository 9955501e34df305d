"""From inferences to decisions, for one pipeline.

There is one event at a time for each rule, label and sensor channel: it says that something is there, with
the most seen at once as its `count`. Two people in a zone are one event with `count` 2.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import tzinfo

import msgspec

from gateway.config import Pipeline, Rule, Zone
from gateway.decide.episodes import SECOND, Episode
from gateway.decide.zones import contains, is_active
from gateway.values import Decision, Entry, Finding, Inference, SnapshotWish
from gateway.wire.messages import Event, Mode
from gateway.wire.times import rfc3339

Key = tuple[str, str, int | None]
"""Rule, label, sensor channel."""


@dataclass(frozen=True, slots=True)
class Origin:
    """Who decides."""

    gateway: str
    pipeline: str
    time_zone: tzinfo


@dataclass(slots=True)
class _Track:
    episode: Episode
    event: Event | None = None


class Decider:
    """Applies the rules of one pipeline. Not thread-safe: one inference thread owns it."""

    def __init__(self, origin: Origin, settings: Pipeline, new_id: Callable[[int], str]) -> None:
        """Take the rules, and a maker of event ids that is given the capture time in nanoseconds."""
        self._origin = origin
        self._settings = settings
        self._new_id = new_id
        self._zones: dict[str, Zone] = {zone.name: zone for zone in settings.zones}
        self._tracks: dict[Key, _Track] = {}
        self._unsure_told_ns: dict[tuple[str, int | None], int] = {}
        self._last_captured_ns = 0

    @property
    def open_events(self) -> int:
        """How many events are open now."""
        return sum(track.event is not None for track in self._tracks.values())

    def step(self, inference: Inference, mode: Mode = "A") -> Decision:
        """Decide on one inference."""
        now_ns = inference.received_ns
        self._last_captured_ns = max(self._last_captured_ns, inference.captured_at_ns)
        entries: list[Entry] = []
        wishes: list[SnapshotWish] = []
        claimed: set[int] = set()
        seen: set[Key] = set()
        for rule in self._settings.rules:
            for key, found in self._matching(rule, inference):
                seen.add(key)
                claimed.update(id(finding) for finding in found if finding.score >= rule.min_score)
                track = self._tracks.setdefault(key, _Track(Episode(rule)))
                told = track.episode.see(found[0].score, now_ns)
                if track.event is not None:
                    self._follow(track, track.event, found)
                elif told == "open":
                    wish = self._open(track, found, inference, mode)
                    wishes.extend([wish] if wish else [])
                if track.event is not None and told == "update":
                    track.event = _revised(track.event, found[0], inference, mode)
                if track.event is not None and told is not None:
                    entries.append(Entry(rule.record_class, "event", track.event, inference.captured_at_ns))
        for key, track in self._tracks.items():
            if key not in seen:
                track.episode.miss()
        self._end_gone(now_ns, inference.captured_at_ns, entries)
        self._unsure(inference, mode, claimed, entries)
        return Decision(tuple(entries), tuple(wishes))

    def tick(self, now_ns: int, wall_ns: int) -> Decision:
        """Let time pass without a sample, so that an event also ends when its source is lost."""
        entries: list[Entry] = []
        self._end_gone(now_ns, wall_ns, entries)
        return Decision(tuple(entries))

    def finish(self, wall_ns: int) -> Decision:
        """End all that is open: the pipeline stops."""
        entries: list[Entry] = []
        for track in self._tracks.values():
            if track.event is not None:
                track.episode.end(track.episode.seen_ns)
                self._end(track, wall_ns, entries)
        return Decision(tuple(entries))

    def _matching(self, rule: Rule, inference: Inference) -> Iterable[tuple[Key, list[Finding]]]:
        """Group the findings that a rule speaks of, the best first."""
        if not is_active(rule.active, inference.captured_at_ns, self._origin.time_zone):
            return ()
        groups: dict[Key, list[Finding]] = {}
        zone = self._zones.get(rule.zone) if rule.zone else None
        for finding in inference.findings:
            if rule.labels is not None and finding.label not in rule.labels:
                continue
            if zone is not None and (finding.box is None or not contains(zone, finding.box)):
                continue
            groups.setdefault((rule.name, finding.label, finding.channel), []).append(finding)
        for found in groups.values():
            found.sort(key=lambda finding: -finding.score)
        return groups.items()

    def _open(self, track: _Track, found: list[Finding], inference: Inference, mode: Mode) -> SnapshotWish | None:
        rule, best = track.episode.rule, found[0]
        event = self._new_event(inference, best, rule.name, mode)
        track.event = msgspec.structs.replace(event, count=_together(rule, found), zone=rule.zone)
        if not rule.snapshot:
            return None
        return SnapshotWish(self._new_id(inference.captured_at_ns), event.event_id, best.box)

    def _follow(self, track: _Track, event: Event, found: list[Finding]) -> None:
        """Keep the peak and the largest count of an open event."""
        best, count = found[0], _together(track.episode.rule, found)
        if best.score > event.peak_score or count > event.count:
            track.event = msgspec.structs.replace(
                event, peak_score=max(best.score, event.peak_score), count=max(count, event.count)
            )

    def _end_gone(self, now_ns: int, wall_ns: int, entries: list[Entry]) -> None:
        for track in self._tracks.values():
            if track.event is not None and track.episode.is_over(now_ns):
                gone_ns = now_ns - track.episode.seen_ns
                track.episode.end(now_ns)
                self._end(track, wall_ns, entries, gone_ns)

    def _end(self, track: _Track, wall_ns: int, entries: list[Entry], gone_ns: int = 0) -> None:
        event = track.event
        if event is None:
            return
        ended_ns = max(wall_ns - gone_ns, 0)
        ended = msgspec.structs.replace(
            event,
            phase="end",
            at=rfc3339(wall_ns),
            ended_at=max(rfc3339(ended_ns), event.started_at),
            captured_at_ns=wall_ns,
            revision=event.revision + 1,
        )
        track.event = None
        entries.append(Entry(track.episode.rule.record_class, "event", ended, wall_ns))

    def _unsure(self, inference: Inference, mode: Mode, claimed: set[int], entries: list[Entry]) -> None:
        """Send what the model is unsure of, once in a while: it is what the next training needs."""
        band = self._settings.interest.low_confidence
        if band is None:
            return
        pause_ns = self._settings.interest.low_confidence_every_seconds * SECOND
        for finding in inference.findings:
            if id(finding) in claimed or not band[0] <= finding.score < band[1]:
                continue
            key = (finding.label, finding.channel)
            told_ns = self._unsure_told_ns.get(key)
            if told_ns is not None and inference.received_ns - told_ns < pause_ns:
                continue
            self._unsure_told_ns[key] = inference.received_ns
            event = self._new_event(inference, finding, "low-confidence", mode)
            event = msgspec.structs.replace(event, reason="low-confidence", ended_at=event.started_at)
            entries.append(Entry("event", "event", event, inference.captured_at_ns))

    def _new_event(self, inference: Inference, finding: Finding, rule: str, mode: Mode) -> Event:
        at = rfc3339(inference.captured_at_ns)
        return Event(
            phase="new",
            event_id=self._new_id(inference.captured_at_ns),
            gateway=self._origin.gateway,
            pipeline=self._origin.pipeline,
            source=inference.source,
            rule=rule,
            label=finding.label,
            score=finding.score,
            peak_score=finding.score,
            model=inference.model,
            mode=mode,
            at=at,
            started_at=at,
            captured_at_ns=inference.captured_at_ns,
            raw_score=finding.raw_score,
            threshold=finding.threshold,
            box=_corners(finding),
            channel=finding.channel,
        )


def _together(rule: Rule, found: list[Finding]) -> int:
    """Count what is seen at once."""
    return max(1, sum(finding.score >= rule.min_score - rule.hysteresis for finding in found))


def _revised(event: Event, best: Finding, inference: Inference, mode: Mode) -> Event:
    return msgspec.structs.replace(
        event,
        phase="update",
        at=rfc3339(inference.captured_at_ns),
        captured_at_ns=inference.captured_at_ns,
        revision=event.revision + 1,
        score=best.score,
        raw_score=best.raw_score,
        box=_corners(best),
        model=inference.model,
        mode=mode,
    )


def _corners(finding: Finding) -> tuple[float, float, float, float] | None:
    box = finding.box
    return None if box is None else (box.left, box.top, box.right, box.bottom)
