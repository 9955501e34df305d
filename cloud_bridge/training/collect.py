"""Interesting samples from the store: windows that came as evidence, and what people or rules say of them.

Gateways send what they were unsure of and what they found, within the byte budget and the privacy filter of each
pipeline; so what is here is no fair sample of what they see, and is only ever put beside a recipe's own data.
"""

import hashlib
import io
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from cloud_bridge.store.base import Reader, RecordFilter
from cloud_bridge.training.recipes.recipe import Field, Recording
from gateway.wire.errors import MalformedMessageError
from gateway.wire.manifest import ModelManifest, WindowInput
from gateway.wire.messages import Event, Evidence, decode

NPY: Final = "application/x-npy"
NORMAL: Final = "normal"
MAX_SAMPLES: Final = 20_000
_PAGE: Final = 100
_TRAIN, _VALIDATION = 0.6, 0.8
"""Shares of healthy windows; what is left is held back."""

Verdict = Literal["normal", "anomalous", "unknown"]
By = Literal["person", "rule", "nobody"]


@dataclass(frozen=True, slots=True)
class Sample:
    """A window with its event."""

    gateway: str
    event_id: str
    evidence_id: str
    at: str
    label: str  # what the model said
    score: float
    verdict: Verdict
    by: By
    recording: Recording


@dataclass(frozen=True, slots=True)
class Collection:
    """What was found, in the order of receipt, and what could not be used, by reason."""

    samples: tuple[Sample, ...]
    left_out: Mapping[str, int]

    def counts(self) -> dict[str, int]:
        """Count the samples by verdict and by who gave it."""
        return dict(sorted(Counter(f"{one.verdict}, by {one.by}" for one in self.samples).items()))


def collect(
    reader: Reader,
    manifest: ModelManifest,
    labels: Mapping[tuple[str, str], str],
    *,
    since_ns: int | None = None,
    versions: frozenset[str] = frozenset(),
    limit: int = MAX_SAMPLES,
) -> Collection:
    """Read the samples of a model.

    Args:
        reader: the store.
        manifest: of the release to be trained again: samples must fit its input.
        labels: what people have said, by gateway and event: `normal`, or anything else for an anomaly.
        since_ns: received since then.
        versions: of the model that answered; empty: any.
        limit: the first so many.

    Raises:
        StoreError: the store cannot be read now.
    """
    left_out: Counter[str] = Counter()
    samples: list[Sample] = []
    for gateway, evidence, blob in _evidence(reader, since_ns):
        stored = reader.event(evidence.event_id, gateway)
        if stored is None:
            left_out["its event is not there"] += 1
            continue
        event = stored.event
        if event.model.name != manifest.name or (versions and event.model.version not in versions):
            continue
        if len(samples) >= limit:
            left_out["more than can be used"] += 1
            continue
        window = _window(evidence, blob, manifest)
        if window is None:
            left_out["no window that fits the model"] += 1
            continue
        verdict, by = judged(event, labels.get((gateway, event.event_id)))
        recording = Recording(window, f"{gateway}/{event.pipeline}", event.channel)
        found = (gateway, event.event_id, evidence.evidence_id, event.at, event.label, event.peak_score)
        samples.append(Sample(*found, verdict, by, recording))
    return Collection(tuple(samples), dict(left_out))


def judged(event: Event, label: str | None) -> tuple[Verdict, By]:
    """Say what a window is.

    Without the word of a person, what stayed below the threshold is taken as healthy; what the model has found is not
    used at all: a detector that learns its own alarms goes blind.
    """
    if label is not None:
        return ("normal" if label == NORMAL else "anomalous"), "person"
    if event.reason == "low-confidence" and event.peak_score < 0.5:
        return "normal", "rule"
    return "unknown", "nobody"


def field_of(samples: tuple[Sample, ...]) -> Field:
    """Share out samples: the same ones always go to the same part, whatever else is there."""
    parts: dict[str, list[Recording]] = {"train": [], "validation": [], "held": [], "anomalous": []}
    for one in sorted(samples, key=lambda sample: (sample.gateway, sample.evidence_id)):
        if one.verdict == "anomalous":
            parts["anomalous"].append(one.recording)
        elif one.verdict == "normal":
            at = _draw(one)
            part = "train" if at < _TRAIN else "validation" if at < _VALIDATION else "held"
            parts[part].append(one.recording)
    return Field(**{name: tuple(recordings) for name, recordings in parts.items()})


def _draw(sample: Sample) -> float:
    """Return a number 0..1 that depends on the event alone: two pictures of one event never stand in two parts."""
    digest = hashlib.sha256(f"{sample.gateway} {sample.event_id}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def _evidence(reader: Reader, since_ns: int | None) -> Iterator[tuple[str, Evidence, bytes]]:
    after = 0
    while True:
        wanted = RecordFilter(kind="evidence", since_ns=since_ns, after_id=after)
        page = reader.records(wanted, limit=_PAGE, with_blobs=True)
        if not page:
            return
        after = page[-1].id
        for record in page:
            try:
                evidence = decode(record.body, Evidence)
            except MalformedMessageError:  # a dead letter's business, not ours
                continue
            if evidence.content_type == NPY:
                yield record.key.gateway, evidence, record.blob


def _window(evidence: Evidence, blob: bytes, manifest: ModelManifest) -> NDArray[np.float64] | None:
    """Read a window (samples, channels); None if it is none, or none of this model."""
    spec = manifest.input
    if not isinstance(spec, WindowInput) or evidence.content_type != NPY:
        return None
    try:
        values = np.load(io.BytesIO(blob), allow_pickle=False, max_header_size=1024)
        window = np.asarray(values, np.float64)
    except (ValueError, OSError, EOFError, TypeError, MemoryError):  # a header may announce any size
        return None
    fits = window.ndim == 2 and len(window) == spec.samples and (spec.per_channel or window.shape[1] == spec.channels)
    return window if fits and window.size and bool(np.isfinite(window).all()) else None
