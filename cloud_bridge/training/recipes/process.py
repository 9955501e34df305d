"""`process-anomaly`: a slow value (temperature, pressure, flow, load) does not behave as it did.

Each channel by itself: 32 samples, in spreads of that channel's own slow baseline. The network was shown troubled
series and asked for the healthy ones; what it answers is what a healthy source would have shown, and the largest
difference to what is seen is the score, in spreads.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from cloud_bridge.training import judge, network, release
from cloud_bridge.training.baseline import baseline_of, squashed, window_statistics
from cloud_bridge.training.card import Prose, card
from cloud_bridge.training.features import against, baselines, standardised, windows_of
from cloud_bridge.training.flatbuffer import dense_network
from cloud_bridge.training.quantize import to_int8
from cloud_bridge.training.recipes.field import FIELD_FALSE, FIELD_RECALL, prose_for, provenance
from cloud_bridge.training.recipes.recipe import NO_FIELD, Field, Figures, Order, Recipe, Recording
from cloud_bridge.training.runner import Runner
from cloud_bridge.training.synth import loops
from gateway.wire.manifest import (
    Baseline,
    Constraints,
    Lineage,
    ModelManifest,
    Quality,
    Reconstruction,
    Standardised,
    WindowInput,
)

NAME: Final = "process-anomaly"
VERSION: Final = "1.0.0"
SUMMARY: Final = "Anomalies in slow values, each channel by itself: temperature, pressure, flow, load"
RELEASED_AT: Final = "2026-11-21T00:00:00Z"
FILE: Final = "process-anomaly-int8.tflite"

WINDOW: Final = 32
HOP: Final = 8
FEATURES: Final = Standardised(baseline_windows=128, floor=0.2, clip=8.0)

HIDDEN: Final = (64, 12, 64)
EPOCHS: Final = 40
SEED: Final = 20261121
FALSE_ALARMS: Final = 0.0005
MARGIN: Final = 1.1

SAMPLES: Final = 2400
TRAIN_SERIES, VALIDATION_SERIES, TEST_SERIES = 250, 200, 200
TROUBLED_SAMPLES: Final = 1500
TROUBLED_SEEN, TROUBLED_HELD = 900, 360
STRENGTH: Final = (5.0, 14.0)  # spreads of the baseline
TELLING: Final = 3.0  # a window is anomalous when its worst sample is so many spreads off
_TRAIN, _VALIDATION, _TEST, _TROUBLED_SEEN, _TROUBLED_HELD = range(5)

FIVE_MINUTES_A_DAY: Final = 288
Array = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Episode:
    """The windows of one channel around something wrong."""

    kind: loops.Trouble
    seen: Array  # (windows, 32)
    clean: Array  # what would have been seen, against the same baselines
    telling: NDArray[np.bool_]  # (windows,)


def make(order: Order) -> release.Release:
    """Make the release."""
    share, field = order.share, order.field
    rows = _weighed(np.concatenate(normal(_TRAIN, _count(TRAIN_SERIES, share))), _rows(field.train, field.train))
    episodes = troubled(_TROUBLED_SEEN, _count(TROUBLED_SEEN, share))
    seen = np.concatenate([rows, *(episode.seen for episode in episodes)])
    wanted = np.concatenate([rows, *(episode.clean for episode in episodes)])
    layers = network.train_restorer(seen, wanted, hidden=HIDDEN, epochs=EPOCHS, seed=SEED)
    float_model = dense_network(layers, f"{NAME} {order.version}")
    whole_range = np.random.default_rng(SEED).uniform(-FEATURES.clip, FEATURES.clip, (100, WINDOW)).astype(np.float32)
    calibration = np.concatenate([rows[::100], seen[len(rows) :: 30], whole_range])
    int8_model = to_int8(float_model, "features", [row[None] for row in calibration])
    validation = np.concatenate(
        [*normal(_VALIDATION, _count(VALIDATION_SERIES, share)), _rows(field.validation, field.train)]
    )
    thresholds = [
        judge.threshold_for(score(Runner(model), validation), FALSE_ALARMS, MARGIN)
        for model in (float_model, int8_model)
    ]
    held = _Held(share, field)
    figures = [held.figures(model, at) for model, at in zip((float_model, int8_model), thresholds, strict=True)]
    made = _release(int8_model, round(thresholds[1], 4), figures, held=held, trained_on=seen, order=order)
    if share == 1:  # with less data, chance alone moves a figure by more
        release.require_quality(made.manifest.quality)
    return made


def evaluate(model: bytes, manifest: ModelManifest, share: float, field: Field = NO_FIELD) -> Figures:
    """Judge a model on the held-back series at the manifest's threshold."""
    assert isinstance(manifest.output, Reconstruction)
    return _Held(share, field).figures(model, manifest.output.threshold)


def baseline(model: bytes, manifest: ModelManifest, share: float, field: Field = NO_FIELD) -> Baseline:
    """Describe the healthy series of the validation split, and what a model answers to them.

    Without the RMS: the model takes values of any unit, so no RMS is that of the training.
    """
    assert isinstance(manifest.output, Reconstruction)
    series = [_healthy(_VALIDATION, number) for number in range(_count(VALIDATION_SERIES, share))]
    cut = [windows_of(one[:, None], WINDOW, HOP) for one in series]
    cut += [one.samples[None, :, [channel]] for one in field.validation for channel in _channels(one)]
    rows = np.concatenate([*(windows(one) for one in series), _rows(field.validation, field.train)])
    scores = squashed(score(Runner(model), rows), manifest.output.threshold)
    statistics = window_statistics(np.concatenate(cut))
    del statistics["rms"]
    return baseline_of(scores.tolist(), {name: values.tolist() for name, values in statistics.items()})


def score(runner: Runner, rows: Array) -> judge.Scores:
    """Return the anomaly score of each row: the largest difference, in spreads."""
    worst: judge.Scores = np.abs(rows.astype(np.float64) - runner.rows(rows)).max(axis=1)
    return worst


def windows(series: NDArray[np.float64]) -> Array:
    """Return what the model sees of one channel (n,), from its first sample on."""
    return standardised(series, WINDOW, HOP, FEATURES)


def normal(stream: int, count: int) -> list[Array]:
    """Return the windows of healthy series, of all kinds in turn; the start with a short baseline is part of it."""
    return [windows(_healthy(stream, number)) for number in range(count)]


def _healthy(stream: int, number: int) -> NDArray[np.float64]:
    return loops.KINDS[number % len(loops.KINDS)](SAMPLES, np.random.default_rng([SEED, stream, number]))


def _rows(recordings: Sequence[Recording], usual: Sequence[Recording]) -> Array:
    """Return what the model sees of windows from the field, (windows, 32).

    What was before a window did not travel with it. Its baseline is made of the healthy windows in `usual` from the
    same channel of the same place, or of itself where there are none.
    """
    by_place: dict[tuple[str, int], list[NDArray[np.float64]]] = {}
    for one in usual:
        for channel in _channels(one):
            by_place.setdefault((one.origin, channel), []).append(one.samples[:, channel])
    rows = []
    for one in recordings:
        for channel in _channels(one):
            seen = one.samples[:, channel]
            before = np.concatenate(by_place.get((one.origin, channel), [seen]))
            median = float(np.median(before))
            spread = max(1.4826 * float(np.median(np.abs(before - median))), FEATURES.floor)
            rows.append(np.clip((seen - median) / spread, -FEATURES.clip, FEATURES.clip))
    return np.asarray(rows, np.float32).reshape(-1, WINDOW)


def _channels(one: Recording) -> range:
    return range(one.samples.shape[1]) if one.channel is None else range(one.channel, one.channel + 1)


def _weighed(own: Array, field: Array) -> Array:
    """Put field data beside the recipe's own, repeated until they are about a third: few windows must still count."""
    if not len(field):
        return own
    return np.concatenate([own, np.tile(field, (min(max(len(own) // (2 * len(field)), 1), 50), 1))])


def troubled(stream: int, count: int) -> list[Episode]:
    """Return series of a plant with something wrong in each, of all kinds in turn."""
    return [_episode(stream, number) for number in range(count)]


def _episode(stream: int, number: int) -> Episode:
    random = np.random.default_rng([SEED, stream, number])
    source = loops.PLANT[number % len(loops.PLANT)]
    kind = loops.TROUBLES[number // len(loops.PLANT) % len(loops.TROUBLES)]
    series = source(TROUBLED_SAMPLES, random)
    at = int(random.integers(1000, TROUBLED_SAMPLES - 150))
    before = series[at - 900 : at]
    spread = max(1.4826 * float(np.median(np.abs(before - np.median(before)))), FEATURES.floor)
    wrong = loops.trouble(series, kind, at, spread=spread, strength=random.uniform(*STRENGTH), random=random)
    baseline = baselines(wrong.series, WINDOW, HOP, FEATURES)
    seen = against(wrong.series, baseline, WINDOW, HOP, FEATURES)
    clean = against(wrong.clean, baseline, WINDOW, HOP, FEATURES)
    around = slice(max((at - WINDOW) // HOP, 0), wrong.end // HOP + 1)
    telling = np.abs(seen - clean).max(axis=1) >= TELLING
    return Episode(kind, seen[around], clean[around], telling[around])


class _Held:
    """The held-back split, made once."""

    def __init__(self, share: float, field: Field) -> None:
        self.field = _rows(field.held, field.train)
        self.field_anomalous = _rows(field.anomalous, field.train)
        self.normal = normal(_TEST, _count(TEST_SERIES, share))
        self.episodes = troubled(_TROUBLED_HELD, _count(TROUBLED_HELD, share))

    def figures(self, model: bytes, threshold: float) -> Figures:
        runner = Runner(model)
        healthy = [score(runner, rows) for rows in self.normal]
        scores = [score(runner, episode.seen) for episode in self.episodes]
        telling = [s[episode.telling] for s, episode in zip(scores, self.episodes, strict=True)]
        everything = judge.judge(np.concatenate(healthy), np.concatenate(telling), threshold)
        false = sum(len(judge.alarms(s, threshold)) for s in healthy)
        days = sum(len(s) for s in healthy) * HOP / FIVE_MINUTES_A_DAY
        figures = {
            "AUC, windows": everything.auc,
            "F1, windows": everything.f1,
            "recall, windows": everything.recall,
            "false alarms per 1000 healthy windows": 1000 * everything.false_alarm_rate,
            "false alarms per day and channel, a reading in five minutes": false / days,
        }
        for kind in loops.TROUBLES:
            of_kind = [s for s, episode in zip(scores, self.episodes, strict=True) if episode.kind == kind]
            found = [bool((s >= threshold).any()) for s in of_kind]
            figures[f"episodes found, {kind}"] = sum(found) / max(len(found), 1)
        if len(self.field):
            figures[FIELD_FALSE] = 1000 * float((score(runner, self.field) >= threshold).mean())
        if len(self.field_anomalous):
            figures[FIELD_RECALL] = float((score(runner, self.field_anomalous) >= threshold).mean())
        return figures


def _release(
    model: bytes, threshold: float, figures: list[Figures], *, held: _Held, trained_on: Array, order: Order
) -> release.Release:
    count = sum(len(rows) for rows in held.normal)
    split = f"{count} healthy windows of {len(held.normal)} series and {len(held.episodes)} troubled series"
    quality = tuple(
        Quality(metric=name, float_value=round(value, 4), shipped_value=round(figures[1][name], 4), split=split)
        for name, value in figures[0].items()
        if order.share == 1 or not name.startswith("episodes")  # of so few that one is more than what may be lost
    )
    shifted = next(e for e in held.episodes if e.kind == "level-shift" and e.telling.any())
    golden, files = release.golden_of(
        model, {"healthy": held.normal[0][50:51], "level-shift": shifted.seen[shifted.telling][:1]}, tolerance=2
    )
    manifest = ModelManifest(
        name=NAME,
        version=order.version,
        summary=SUMMARY,
        released_at=order.released_at or RELEASED_AT,
        artefacts=(release.artefact_of(FILE, model),),
        input=WindowInput(samples=WINDOW, hop_samples=HOP, rate_hz=1.0, features=FEATURES, per_channel=True),
        output=Reconstruction(threshold=threshold, error="max"),
        golden=golden,
        quality=quality,
        constraints=Constraints(memory_bytes=1 << 20, latency_target_ms=5.0),
        lineage=Lineage(
            recipe="cloud_bridge/training/recipes/process.py",
            data=provenance("synthetic process loops and computers, cloud_bridge/training/synth/loops.py", order.field),
            data_sha256=release.digest(trained_on.astype("<f4").tobytes()),
            parent=order.parent,
            licence="Apache-2.0",
        ),
    )
    manifest = msgspec.structs.replace(manifest, baseline=baseline(model, manifest, order.share, order.field))
    prose = prose_for(_PROSE, order)
    return release.Release(manifest, {FILE: model, **files, release.CARD_FILE: card(manifest, prose)})


def _count(full: int, share: float) -> int:
    return max(round(full * share), 36)


_PROSE: Final = Prose(
    what=(
        "Tells whether a slow value behaves as it did in the hours before: spikes, level shifts, drifts, oscillations "
        "and bursts of noise. It looks at each channel by itself and knows nothing of its unit or its usual level."
    ),
    use=(
        "Any number of channels at any even rate from ten readings a second to one in several minutes. A window is 32 "
        "readings; the baseline is the 1,040 readings before it (three and a half days at one in five minutes, a "
        "quarter of an hour at one a second), so it should cover at least one cycle of what repeats. Spreads below 0.2 "
        "are taken as 0.2, so give values in a unit in which 0.2 is unimportant: °C, percent, kPa rather than bar. On "
        "the machine's own load for each core that means an alarm for near-full load after idling, not for every job."
    ),
    data=(
        "Made by the recipe: temperatures, pressures and flows with daily cycles, set point steps through a lag, AR(1) "
        "and sensor noise, coarse steps; loads with bursts of jobs through the kernel's exponential average; memory "
        "that creeps, jumps and is collected. Troubles are put into the plant's series at 5 to 14 spreads of the "
        "baseline. Every series is drawn anew; no series is in two splits. Nothing was downloaded and nothing "
        "measured was used."
    ),
    training=(
        "Dense network 32-64-12-64-32 with scikit-learn, seed fixed, trained to answer the healthy series when shown "
        "the troubled one (healthy windows answer themselves); the score is the largest difference, in spreads. "
        "Written as TFLite by the project's own writer; full int8 with litert-quantizer, calibrated over the whole "
        "range. The threshold is the score that 0.05 % of the healthy validation windows reach, times 1.1, for float "
        "and int8 each on their own scores. Windows with a short baseline after the start are part of all splits."
    ),
    limits=(
        "A stuck sensor is not seen (episodes found: next to 0): a flat line is what many healthy coarse sensors "
        "show. The source's own check for silence is there for that.",
        "A change of set point far outside of the baseline is an alarm: the model cannot know that it was wanted.",
        "After a level shift the alarm lasts until the new level is more than half of the baseline.",
        "A drift slower than the baseline is followed, not reported.",
        "What repeats more slowly than the baseline (a week, a batch) looks like a drift.",
    ),
    beside=(
        "The int8 model as shipped on recordings that had no part in its making (Numenta Anomaly Benchmark, MIT):\n\n"
        "* machine temperature, 79 days at a reading in five minutes: 2 of the 4 labelled events found, 12 alarms "
        "outside of them (0.15 a day; NAB's labels are known to be incomplete);\n"
        "* ambient temperature, 303 days at a reading an hour: 1 of 2 found, none outside.\n\n"
        "On a computer of two cores under changing test jobs, 56 minutes at a reading a second: the load gave 2 "
        "alarms, each when the machine went from idling to full load; memory gave none."
    ),
    reproduce=(
        "`OMP_NUM_THREADS=1 python -m cloud_bridge.training train process-anomaly --out DIR`, then "
        "`python -m cloud_bridge.training evaluate process-anomaly`. The float weights depend in their last bits on "
        "the processor's linear algebra, so the digest is the same only on the same kind of processor; the figures "
        "agree within a few thousandths."
    ),
)

RECIPE: Final = Recipe(NAME, VERSION, SUMMARY, make, evaluate, baseline)
