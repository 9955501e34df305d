"""Training again: what it takes, what it makes, and what it refuses."""

from dataclasses import replace

import msgspec
import pytest

from cloud_bridge.training import release
from cloud_bridge.training.errors import TrainingError
from cloud_bridge.training.recipes import vibration
from cloud_bridge.training.recipes.field import FIELD_FALSE
from cloud_bridge.training.recipes.recipe import Field, Recording
from cloud_bridge.training.retrain import next_version, retrain, worse
from tests.cloud_bridge.training.field import vibration_windows

SHARE = 0.15


def recordings(seconds: int, seed: int, *, gain: float = 1.0, fault: float = 0.0) -> tuple[Recording, ...]:
    cut = vibration_windows(seconds, seed, gain=gain, fault=fault)
    return tuple(Recording(window, "gw/motor") for window in cut)


@pytest.fixture(scope="module")
def parent() -> release.Release:
    """Made with the same share of the recipe's data as its successor: the gate compares like with like."""
    return vibration.RECIPE.train(SHARE)


@pytest.fixture(scope="module")
def field() -> Field:
    """A machine whose sensor has another gain, so that the parent takes all of it for an anomaly."""
    seen = recordings(60, 1, gain=2.2)
    return Field(seen[:36], seen[36:48], seen[48:], recordings(6, 1, gain=2.2, fault=0.8))


def test_the_next_version_is_one_that_is_free() -> None:
    assert next_version("1.0.0") == "1.0.1"
    assert next_version("1.2.9-rc.1", frozenset({"1.2.10", "1.2.11"})) == "1.2.12"


def test_too_little_from_the_field_is_refused_with_what_to_do(parent: release.Release) -> None:
    with pytest.raises(TrainingError, match=r"3 healthy windows came .*training label"):
        retrain(parent, Field(recordings(3, 1)), version="1.0.1", share=SHARE, released_at="")


def test_a_model_without_a_recipe_is_refused(parent: release.Release) -> None:
    other = replace(parent, manifest=msgspec.structs.replace(parent.manifest, name="person-detector"))
    with pytest.raises(TrainingError, match="no recipe"):
        retrain(other, Field(), version="1.0.1", share=SHARE, released_at="")


def test_a_figure_below_the_parents_is_named_and_false_alarms_in_the_field_may_not_rise() -> None:
    before = {"AUC": 0.99, "F1": 0.9, "false alarms per 1000 healthy windows": 1.0, FIELD_FALSE: 10.0}
    assert worse({**before, "AUC": 0.985, "false alarms per 1000 healthy windows": 5.0}, before) == []
    problems = worse({"AUC": 0.97, "F1": 0.9, "false alarms per 1000 healthy windows": 9.0, FIELD_FALSE: 11.0}, before)
    assert [problem.partition(":")[0] for problem in problems] == [
        "AUC",
        "false alarms per 1000 healthy windows",
        FIELD_FALSE,
    ]
    assert worse({}, {"AUC": 0.9}) == ["AUC: not there any more"]


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_what_the_field_taught_is_known_and_the_same_input_makes_the_same_release(
    parent: release.Release, field: Field
) -> None:
    done = retrain(parent, field, version="1.0.1", share=SHARE, released_at="2027-01-01T00:00:00Z")
    assert done.parent_figures[FIELD_FALSE] > 500, "control: the parent did not know this machine"
    assert done.figures[FIELD_FALSE] < 100
    manifest = done.made.manifest
    assert (manifest.version, manifest.released_at) == ("1.0.1", "2027-01-01T00:00:00Z")
    assert manifest.lineage is not None
    assert manifest.lineage.parent == "vibration-anomaly 1.0.0"
    assert "36 windows from the field" in manifest.lineage.data
    assert manifest.baseline is not None
    assert b"Trained again from vibration-anomaly 1.0.0" in done.made.files[release.CARD_FILE]
    again = retrain(parent, field, version="1.0.1", share=SHARE, released_at="2027-01-01T00:00:00Z")
    assert again.made == done.made


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_faults_taught_as_healthy_make_a_worse_model_which_is_refused(parent: release.Release) -> None:
    wrong = tuple(one for seed in range(8) for one in recordings(8, seed, fault=0.8))
    with pytest.raises(TrainingError, match=r"not as good as vibration-anomaly 1\.0\.0|less than 98% is left"):
        retrain(parent, Field(wrong[:40], wrong[40:52], wrong[52:]), version="1.0.1", share=SHARE, released_at="")
