"""Releases side by side, as an A/B rollout has them in the field."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from cloud_bridge.rollout.figures import Figures
from cloud_bridge.rollout.plan import Member
from cloud_bridge.rollout.releases import Release
from cloud_bridge.rollout.statistics import BINS, Stratum, distance, quantile
from cloud_bridge.rollout.telemetry import Records, Watch
from cloud_bridge.store.base import RecordFilter


@dataclass(frozen=True, slots=True)
class ArmSummary:
    """What one release did on its devices since they got it. None where nothing was measured."""

    release: Release
    devices: int
    events: int
    hours: float
    mean_score: float | None
    latency_p50_ms: float | None
    latency_p95_ms: float | None
    error_share: float | None


@dataclass(frozen=True, slots=True)
class Comparison:
    """All releases of a rollout; `distances` are KS distances of the scores against the first one.

    They are of different devices: they describe, and prove nothing about the releases alone.
    """

    arms: tuple[ArmSummary, ...]
    distances: tuple[float | None, ...]


def compare(records: Records, pipeline: str, members: Iterable[Member], since_ns: int) -> Comparison:
    """Read what devices have sent since a time, and sum it up by release.

    Raises:
        StoreError: the store cannot be read now.
    """
    found = [one for one in members if not one.returned]
    first = records.records(RecordFilter(after_id=0, since_ns=since_ns), limit=1)
    watch = Watch(records, pipeline, {one.gateway: one for one in found}, first[0].id - 1 if first else 0, 0.0)
    while first and not watch.read():
        pass
    releases = sorted({one.release for one in found})
    by_release = {
        release: [
            watch.figures[one.gateway] for one in found if one.release == release and one.gateway in watch.figures
        ]
        for release in releases
    }
    counts = {release: sum(1 for one in found if one.release == release) for release in releases}
    arms = tuple(_summary(release, counts[release], by_release[release]) for release in releases)
    return Comparison(arms, tuple(_distance(by_release[releases[0]], by_release[one]) for one in releases[1:]))


def _summary(release: Release, devices: int, figures: Sequence[Figures]) -> ArmSummary:
    news = [one.new for one in figures]
    scores = [score for one in news for score in one.scores]
    samples = sum(one.inferences + one.errors for one in news)
    merged: dict[tuple[float, ...], list[int]] = {}
    for one in news:
        for edges, counts in one.latencies.items():
            sums = merged.setdefault(edges, [0] * len(counts))
            for at, count in enumerate(counts):
                sums[at] += count
    main = max(merged.items(), key=lambda item: sum(item[1]), default=None)
    return ArmSummary(
        release,
        devices,
        sum(one.events for one in news),
        sum(one.hours for one in news),
        (sum(scores) / len(scores) + 0.5) / BINS if scores else None,
        quantile(*main, 0.5) if main else None,
        quantile(*main, 0.95) if main else None,
        sum(one.errors for one in news) / samples if samples else None,
    )


def _distance(one: Sequence[Figures], other: Sequence[Figures]) -> float | None:
    old, new = Figures().old.scores, Figures().new.scores
    for figures in one:
        old.extend(figures.new.scores)
    for figures in other:
        new.extend(figures.new.scores)
    found = distance([Stratum(old, new)])
    return None if found is None else found.value
