"""One look at everything: which comparisons are made, and what they say. Pure."""

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from cloud_bridge.config import Drift
from cloud_bridge.drift.book import Finding, FindingKey, Reference
from cloud_bridge.drift.judging import Basis, Level, Standing, level_of, next_standing
from cloud_bridge.drift.slices import SCORE, Device, Statistics, joined, statistics_of_baseline
from cloud_bridge.drift.statistics import compare, effective_samples, total
from gateway.wire.histogram import Histogram
from gateway.wire.manifest import Baseline

MIN_DEVICES: Final = 3
"""A cohort of fewer says little that its devices do not say themselves, and how they differ cannot be told."""

ACCEPTED: Final = "operator"
"""The origin of a reference that a person has chosen."""

_MOST: Final = 1_000_000_000

Slices = Sequence[tuple[int, Statistics]]
"""Of one device: the second at which each begins, and its sums."""

Expected = Mapping[str, tuple[Histogram, float]]
"""What is expected of each statistic, and how many independent samples that rests on."""


@dataclass(frozen=True, slots=True)
class Window:
    """The time that is looked at, in seconds since 1970."""

    now_s: int
    seconds: int
    slice_seconds: int

    @property
    def since_s(self) -> int:
        """The first second of the first slice in it."""
        since = self.now_s - self.seconds
        return since - since % self.slice_seconds


@dataclass(frozen=True, slots=True)
class Known:
    """What is there before a look. `labels` gives the labels of a gateway."""

    baseline: Callable[[str, str], Baseline | None]
    references: Mapping[Device, Reference]
    findings: Mapping[FindingKey, Finding]
    labels: Callable[[str], Mapping[str, str]]


@dataclass(slots=True)
class Look:
    """What one look has found; `changed` holds what has another level now, with the standing before."""

    findings: list[Finding] = field(default_factory=list)
    changed: list[tuple[Finding, Standing]] = field(default_factory=list)
    learned: list[Reference] = field(default_factory=list)


def evaluate(
    devices: Iterable[tuple[Device, Slices]], known: Known, settings: Drift, window: Window, now_ns: int
) -> Look:
    """Compare every device and every cohort with what is expected of them.

    Args:
        devices: by model and version; the slices of each in order of time, from one before the window on.
        known: baselines, references, labels, and what was found before.
        settings: thresholds.
        window: what is looked at.
        now_ns: what is written as the time of the look, UTC.
    """
    examination = _Examination(known, settings, now_ns)
    for (model, version), group in itertools.groupby(devices, key=lambda one: (one[0].model, one[0].version)):
        baseline = known.baseline(model, version)
        trained: Expected = {}
        if baseline is not None:
            trained = {name: (one, float(total(one))) for name, one in statistics_of_baseline(baseline).items()}
        cohorts: dict[str, list[tuple[Statistics, int]]] = {}
        for device, slices in group:
            recent = [statistics for start_s, statistics in slices if start_s >= window.since_s]
            if not recent:
                continue
            newest = newest_of(slices[-1])
            levels = examination.device(device, recent, trained, newest)
            # The slice before the window shows that the window is whole, and not a part of the first day.
            if device not in known.references and slices[0][0] < window.since_s and "alarm" not in levels:
                examination.learn(device, recent)
            for name in ("all", *(f"{name}={value}" for name, value in sorted(known.labels(device.gateway).items()))):
                cohorts.setdefault(name, []).append((joined(recent), newest))
        for name, members in sorted(cohorts.items()):
            if len(members) >= MIN_DEVICES:
                blocks, latest = [sums for sums, _ in members], max(newest for _, newest in members)
                examination.compare((model, version, "cohort", name), blocks, {"shape": trained}, latest)
    return examination.look


class _Examination:
    """Gathers what is found."""

    def __init__(self, known: Known, settings: Drift, now_ns: int) -> None:
        self.look = Look()
        self._known = known
        self._settings = settings
        self._now_ns = now_ns

    def device(self, device: Device, recent: Sequence[Statistics], trained: Expected, newest: int) -> list[Level]:
        """Hold a device against the range of the training data, and against its own usual shape."""
        by_basis: dict[Basis, Expected] = {"range": trained}
        reference = self._known.references.get(device)
        if reference is not None:
            if reference.origin == ACCEPTED:
                by_basis = {}  # a person has looked: what training has seen does not matter there any more
            by_basis["shape"] = {
                name: (one, reference.effective.get(name, 1.0)) for name, one in reference.statistics.items()
            }
        return self.compare((device.model, device.version, "device", device.subject), recent, by_basis, newest)

    def compare(
        self,
        where: tuple[str, str, str, str],
        blocks: Sequence[Statistics],
        by_basis: Mapping[Basis, Expected],
        newest: int,
    ) -> list[Level]:
        """Make all comparisons of one device or cohort; return what each says by itself."""
        seen = joined(blocks)
        pairs = [(basis, name) for basis, expected in by_basis.items() for name in expected if name in seen]
        said = []
        for basis, name in pairs:
            histogram, reference_effective = by_basis[basis][name]
            effective = effective_samples([block[name] for block in blocks if name in block])
            found = compare(histogram, seen[name], reference_effective=reference_effective, effective=effective)
            key = FindingKey(*where, name, basis)
            known = self._known.findings.get(key)
            before = known.standing if known is not None else Standing(since_ns=self._now_ns)
            level = level_of(found, basis, self._settings, looks=len(pairs), held=before.level)
            standing = next_standing(before, level, newest, self._now_ns)
            finding = Finding(key, standing, self._now_ns, found)
            self.look.findings.append(finding)
            if standing.level != before.level:
                self.look.changed.append((finding, before))
            said.append(level)
        return said

    def learn(self, device: Device, blocks: Sequence[Statistics]) -> None:
        """Take the first whole window of a device as what it is held against in shape from then on."""
        reference = reference_of(device, blocks, self._settings.min_samples, self._now_ns, "first-window")
        if SCORE in reference.statistics:
            self.look.learned.append(reference)


def newest_of(latest: tuple[int, Statistics]) -> int:
    """Return a number that is another one when more has come: of the latest slice, its time and how much is in it."""
    start_s, statistics = latest
    return start_s * _MOST + min(sum(map(total, statistics.values())), _MOST - 1)


def reference_of(device: Device, blocks: Sequence[Statistics], min_samples: int, now_ns: int, origin: str) -> Reference:
    """Make a reference of what a device showed in some slices; statistics with too few samples are left out."""
    enough = {name: one for name, one in joined(blocks).items() if total(one) >= min_samples}
    effective = {name: effective_samples([block[name] for block in blocks if name in block]) for name in enough}
    return Reference(device, now_ns, origin, enough, effective)
