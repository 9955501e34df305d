"""The releases that ship are what their manifests say, and the gateway runs them as training judged them."""

import time
from pathlib import Path

import msgspec
import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema

from cloud_bridge.training import release
from cloud_bridge.training.__main__ import SHIPPED, TOLERANCE
from cloud_bridge.training.errors import TrainingError
from cloud_bridge.training.features import log_bands, scaled, windows_of
from cloud_bridge.training.recipes import RECIPES, process, vibration
from cloud_bridge.training.recipes.recipe import NO_FIELD, Recipe
from cloud_bridge.training.runner import Runner
from cloud_bridge.training.synth import loops, machine
from gateway.inference.bundle import ReleaseStore
from gateway.inference.litert import LiteRtBackend
from gateway.inference.model import Model, open_model
from gateway.inference.plain import open_plain
from gateway.preprocess.preparation import preparation_for
from gateway.values import Window
from gateway.wire.manifest import LogBands, Reconstruction, WindowInput

recipes = pytest.mark.parametrize("recipe", RECIPES.values(), ids=list(RECIPES))


def place_of(recipe: Recipe) -> Path:
    return SHIPPED / recipe.name / recipe.version


def scrambled(model: bytes) -> bytes:
    """The same file with the weights of every layer in another order."""
    content = bytearray(model)
    parsed = schema.Model.GetRootAs(model, 0)
    random = np.random.default_rng(1)
    graph = parsed.Subgraphs(0)
    for at in range(graph.OperatorsLength()):
        weights = parsed.Buffers(graph.Tensors(graph.Operators(at).Inputs(1)).Buffer()).DataAsNumpy()
        start = model.index(weights.tobytes())
        content[start : start + len(weights)] = random.permutation(weights).tobytes()
    return bytes(content)


@recipes
def test_a_shipped_release_is_intact_and_answers_its_golden_inputs(recipe: Recipe) -> None:
    shipped = release.read(place_of(recipe))
    assert (shipped.manifest.name, shipped.manifest.version) == (recipe.name, recipe.version)
    assert len(shipped.manifest.golden) == 2
    release.check_golden(shipped)


@recipes
def test_a_shipped_release_keeps_98_percent_and_says_where_it_comes_from(recipe: Recipe) -> None:
    shipped = release.read(place_of(recipe))
    release.require_quality(shipped.manifest.quality)
    assert shipped.manifest.lineage is not None
    assert shipped.manifest.lineage.licence == "Apache-2.0"
    assert shipped.artefact.size_bytes < 64 * 1024
    card = (place_of(recipe) / release.CARD_FILE).read_text()
    assert shipped.artefact.sha256 in card
    assert all(figure.metric in card for figure in shipped.manifest.quality)


@pytest.mark.slow
@pytest.mark.timeout(300)
@recipes
def test_a_shipped_model_holds_its_figures_on_the_held_back_split(recipe: Recipe) -> None:
    shipped = release.read(place_of(recipe))
    figures = recipe.evaluate(shipped.model, shipped.manifest, 1.0, NO_FIELD)
    for said in shipped.manifest.quality:
        assert figures[said.metric] == pytest.approx(said.shipped_value, abs=TOLERANCE), said.metric


@recipes
def test_a_scrambled_model_fails_its_golden_inputs_and_holds_no_figure(recipe: Recipe) -> None:
    """The control of the tests above."""
    shipped = release.read(place_of(recipe))
    broken = scrambled(shipped.model)
    with pytest.raises(TrainingError, match="the answer is off"):
        release.check_golden(release.Release(shipped.manifest, {**shipped.files, shipped.artefact.file: broken}))
    figures = recipe.evaluate(broken, shipped.manifest, 0.05, NO_FIELD)
    said = {figure.metric: figure.shipped_value for figure in shipped.manifest.quality}
    false_alarms = "false alarms per 1000 healthy windows"
    assert figures[false_alarms] > 10 * (said[false_alarms] + 1)


def test_vibration_meets_what_it_is_shipped_for() -> None:
    said = {
        q.metric: q.shipped_value for q in release.read(SHIPPED / vibration.NAME / vibration.VERSION).manifest.quality
    }
    assert said["false alarms per 1000 healthy windows"] <= 1.0
    assert all(said[f"recall, moderate {fault}"] > 0.95 for fault in machine.FAULTS)


def test_process_meets_what_it_is_shipped_for() -> None:
    said = {q.metric: q.shipped_value for q in release.read(SHIPPED / process.NAME / process.VERSION).manifest.quality}
    assert said["false alarms per day and channel, a reading in five minutes"] < 0.05
    kinds = set(loops.TROUBLES) - {"stuck"}  # not seen, and the card says so
    assert all(said[f"episodes found, {kind}"] > 0.85 for kind in kinds)


def opened(name: str) -> Model:
    found = ReleaseStore([SHIPPED]).find(name)
    return open_model(found, found.manifest.artefacts[0], LiteRtBackend(), preparation_for, open_weights=open_plain)


def window(samples: np.ndarray, sequence: int, rate_hz: float) -> Window:
    return Window("test", sequence, time.time_ns(), time.monotonic_ns(), rate_hz, samples.astype(np.float32))


def test_the_gateway_scores_vibration_as_training_did() -> None:
    shipped = release.read(SHIPPED / vibration.NAME / vibration.VERSION)
    assert isinstance(shipped.manifest.input, WindowInput)
    features = shipped.manifest.input.features
    assert isinstance(features, LogBands)
    random = np.random.default_rng(5)
    schedule = np.zeros((6, len(machine.FAULTS)))
    schedule[3:, machine.FAULTS.index("outer-race")] = 0.8
    samples = machine.run(machine.build_machine(random), 6, random, schedule)
    windows = windows_of(samples, 3200, 3200)
    rows = scaled(log_bands(windows, machine.RATE_HZ, bands=32, low_hz=10.0, high_hz=1600.0), features)
    expected = vibration.score(Runner(shipped.model), rows)
    model = opened(vibration.NAME)
    found = [model.infer(window(cut, at, machine.RATE_HZ)).findings[0] for at, cut in enumerate(windows, start=1)]
    model.close()
    np.testing.assert_allclose([finding.raw_score or 0.0 for finding in found], expected.tolist(), rtol=0.02)
    assert [finding.score >= 0.5 for finding in found] == [False] * 3 + [True] * 3


def test_the_gateway_scores_process_values_as_training_did() -> None:
    shipped = release.read(SHIPPED / process.NAME / process.VERSION)
    assert isinstance(shipped.manifest.output, Reconstruction)
    random = np.random.default_rng(6)
    series = loops.temperature(1500, random).astype(np.float32).astype(np.float64)
    spread = 1.4826 * float(np.median(np.abs(series - np.median(series))))
    wrong = loops.trouble(series, "level-shift", 1300, spread=max(spread, 0.2), strength=9.0, random=random)
    channels = np.column_stack([series, wrong.series])
    expected = [process.score(Runner(shipped.model), process.windows(channels[:, at])) for at in range(2)]
    model = opened(process.NAME)
    windows = windows_of(channels, process.WINDOW, process.HOP)
    found = [model.infer(window(cut, at, 1.0)).findings for at, cut in enumerate(windows, start=1)]
    model.close()
    for channel in range(2):
        scores = [next(f.raw_score or 0.0 for f in row if f.channel == channel) for row in found]
        np.testing.assert_allclose(scores, expected[channel].tolist(), atol=0.15)  # a step of the input is 0.06
    threshold = shipped.manifest.output.threshold
    assert not (expected[0] >= threshold).any()
    first = np.flatnonzero(expected[1] >= threshold)[0]
    assert 1300 <= first * process.HOP + process.WINDOW <= 1300 + 3 * process.HOP


def test_manifests_read_back_as_the_wire_contract_has_them() -> None:
    for recipe in RECIPES.values():
        manifest = release.read(place_of(recipe)).manifest
        assert msgspec.json.decode(msgspec.json.encode(manifest), type=type(manifest)) == manifest
