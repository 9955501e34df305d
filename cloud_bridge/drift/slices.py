"""Measures summed up by device, model and slice of time. Pure but for the reading of records."""

from collections.abc import Iterable, Mapping
from typing import Final, NamedTuple

import msgspec

from cloud_bridge.drift.statistics import MOST_COUNT, merged
from cloud_bridge.store.rolling import is_text
from cloud_bridge.values import StoredRecord
from gateway.wire.errors import MalformedMessageError
from gateway.wire.histogram import Histogram
from gateway.wire.manifest import Baseline
from gateway.wire.messages import Measure, decode

_NS_PER_SECOND: Final = 1_000_000_000
SCORE: Final = "score"

# One device must not be able to stop the watch over all others with a number or a name that a database refuses.
_MOST_EDGES: Final = 512
_MOST_STATISTICS: Final = 256

Statistics = Mapping[str, Histogram]
"""Histograms by name: `score`, and the inputs as `Measure.inputs` names them."""


class Device(NamedTuple):
    """One model at work: a release on a pipeline of a gateway."""

    model: str
    version: str
    gateway: str
    pipeline: str

    @property
    def subject(self) -> str:
        """The place, as people write it."""
        return f"{self.gateway}/{self.pipeline}"


class SliceKey(NamedTuple):
    """A device and the second at which a slice of its time begins."""

    device: Device
    start_s: int


_decoder: Final = msgspec.json.Decoder(dict[str, Histogram])


def statistics_to_json(statistics: Statistics) -> str:
    """Put statistics for a column."""
    return msgspec.json.encode(statistics).decode()


def statistics_of_json(text: str) -> dict[str, Histogram]:
    """Read a column; nothing where it holds what no histogram may: one slice is no reason to look at none."""
    try:
        return _decoder.decode(text)
    except msgspec.DecodeError:
        return {}


def statistics_of_measure(measure: Measure) -> dict[str, Histogram]:
    """Return the distributions in a measure."""
    found = dict(measure.inputs)
    if measure.scores is not None:
        found[SCORE] = measure.scores
    return found


def statistics_of_baseline(baseline: Baseline) -> dict[str, Histogram]:
    """Return the distributions in a manifest."""
    found = dict(baseline.inputs)
    if baseline.score is not None:
        found[SCORE] = baseline.score
    return found


def fold(records: Iterable[StoredRecord], slice_seconds: int) -> dict[SliceKey, dict[str, Histogram]]:
    """Sum up the measures among records, by device and slice of the time of capture.

    A clock that is ahead must not write into the future: what was captured after it was received counts then. What
    has no model or no histograms, as from an older gateway, is left out, and so is what has names that no database
    takes, or more edges than anything that is measured.
    """
    gathered: dict[SliceKey, dict[str, list[Histogram]]] = {}
    for record in records:
        try:
            measure = decode(record.body, Measure)
        except MalformedMessageError:  # the store keeps what it cannot read; it is no measure of anything
            continue
        found = {name: one for name, one in statistics_of_measure(measure).items() if _is_sane(name, one)}
        if measure.model is None or not found or len(found) > _MOST_STATISTICS:
            continue
        if not is_text(measure.model.name, measure.model.version, measure.pipeline):
            continue
        device = Device(measure.model.name, measure.model.version, record.key.gateway, measure.pipeline)
        at_s = min(measure.captured_to_ns, record.received_at_ns) // _NS_PER_SECOND
        slot = gathered.setdefault(SliceKey(device, at_s - at_s % slice_seconds), {})
        for name, histogram in found.items():
            slot.setdefault(name, []).append(histogram)
    return {key: summed(parts) for key, parts in gathered.items()}


def _is_sane(name: str, histogram: Histogram) -> bool:
    return is_text(name) and len(histogram.edges) <= _MOST_EDGES and max(histogram.counts) <= MOST_COUNT


def summed(parts: Mapping[str, Iterable[Histogram]]) -> dict[str, Histogram]:
    """Add up histograms by name; those that cannot be added up are left out."""
    sums = {name: merged(list(histograms)) for name, histograms in parts.items()}
    return {name: histogram for name, histogram in sums.items() if histogram is not None}


def joined(several: Iterable[Statistics]) -> dict[str, Histogram]:
    """Add up statistics."""
    parts: dict[str, list[Histogram]] = {}
    for statistics in several:
        for name, histogram in statistics.items():
            parts.setdefault(name, []).append(histogram)
    return summed(parts)
