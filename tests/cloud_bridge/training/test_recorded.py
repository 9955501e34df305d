"""The figures of the cards on measured data, which lies beside the repository where it may be had."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from cloud_bridge.training import judge, release
from cloud_bridge.training.__main__ import SHIPPED
from cloud_bridge.training.features import log_bands, scaled
from cloud_bridge.training.flatbuffer import dense_network
from cloud_bridge.training.network import train_restorer
from cloud_bridge.training.quantize import to_int8
from cloud_bridge.training.recipes import process, vibration
from cloud_bridge.training.runner import Runner
from gateway.wire.manifest import LogBands, Reconstruction

DATA = Path(__file__).resolve().parents[4] / "shared" / "data"


def need(path: Path) -> Path:
    if not path.exists():
        pytest.skip(f"{path} is not here: the recordings are not part of the repository")
    return path


@pytest.mark.parametrize(
    ("name", "expected_hits", "events", "most_false_alarms"),
    [("machine_temperature_system_failure", 2, 4, 14), ("ambient_temperature_system_failure", 1, 2, 1)],
)
def test_the_card_tells_how_process_anomaly_does_on_nab(
    name: str, expected_hits: int, events: int, most_false_alarms: int
) -> None:
    with need(DATA / "nab" / f"{name}.csv").open(newline="") as file:
        times, values = zip(*list(csv.reader(file))[1:], strict=True)
    labels = json.loads((DATA / "nab" / "labels_windows.json").read_text())[f"realKnownCause/{name}.csv"]
    intervals = [
        (float(np.searchsorted(times, start[:19])), float(np.searchsorted(times, end[:19]))) for start, end in labels
    ]
    shipped = release.read(SHIPPED / process.NAME / process.VERSION)
    assert isinstance(shipped.manifest.output, Reconstruction)
    scores = process.score(Runner(shipped.model), process.windows(np.array(values, float)))
    alarms = [
        (first * process.HOP, last * process.HOP + process.WINDOW)
        for first, last in judge.alarms(scores, shipped.manifest.output.threshold)
    ]
    hits = sum(any(judge.overlaps(alarm, [interval]) for alarm in alarms) for interval in intervals)
    assert len(intervals) == events
    assert hits == expected_hits
    assert sum(not judge.overlaps(alarm, intervals) for alarm in alarms) <= most_false_alarms


@pytest.mark.slow
def test_the_card_tells_how_the_vibration_architecture_does_on_a_real_fan() -> None:
    recorded = np.load(need(DATA / "fan-vibration" / "fan_vibration_i16.npz"), allow_pickle=False)

    def raw(kind: str, speed: str) -> np.ndarray:
        samples = recorded[f"fan_0_{speed}_{kind}_weight"].astype(float) / 2048
        return log_bands(samples, 200.0, bands=32, low_hz=1.0, high_hz=100.0)

    speeds = ("high", "low", "med")
    normal = [raw("0", speed) for speed in speeds]
    train = np.concatenate([part[: int(0.6 * len(part))] for part in normal])
    test = np.concatenate([part[int(0.7 * len(part)) :] for part in normal])
    weighted = np.concatenate([raw("1", speed) for speed in speeds])
    features = LogBands(
        bands=32, low_hz=1.0, high_hz=100.0, mean=tuple(train.mean(0)), scale=tuple(train.std(0)), clip=6.0
    )
    random = np.random.default_rng(1)
    rows = scaled(train, features)
    noisy = rows + random.normal(0, vibration.NOISE, rows.shape).astype(np.float32)
    layers = train_restorer(
        np.concatenate([noisy, *(vibration.humped(rows, random) for _ in range(vibration.HUMPS))]),
        np.concatenate([rows] * (1 + vibration.HUMPS)),
        hidden=vibration.HIDDEN,
        epochs=vibration.EPOCHS,
        seed=1,
    )
    float_model = dense_network(layers, "fan")
    whole_range = random.uniform(-6, 6, (200, 96)).astype(np.float32)
    int8_model = to_int8(float_model, "features", [row[None] for row in np.concatenate([rows[::10], whole_range])])
    found = [
        judge.auc(vibration.score(runner, scaled(test, features)), vibration.score(runner, scaled(weighted, features)))
        for runner in (Runner(float_model), Runner(int8_model))
    ]
    assert found[0] == pytest.approx(0.851, abs=0.03)
    assert found[1] >= 0.98 * found[0]
