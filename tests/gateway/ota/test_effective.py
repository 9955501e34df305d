"""What checks of a configuration look at: the release that really runs, which may have come over the air."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway.config import Config
from gateway.configload import read
from gateway.doctor.models import check_models
from gateway.wire.manifest import Regression
from tests.gateway.ota.releases import release, scorer
from tests.gateway.ota.rig import Device
from tests.simulators.release_repository import ReleaseRepository

HOT = Regression(threshold=1.0, label="hot")


@pytest.fixture
def device(tmp_path: Path) -> Iterator[Device]:
    """A device that runs 2.0.0 from the air, which says `hot`; its own 1.0.0 says `anomaly`."""
    made = Device(tmp_path / "device", ReleaseRepository(tmp_path / "repository"))
    release(made.releases, "1.0.0", scorer(1.0))
    made.repository.publish(release(tmp_path / "plain", "2.0.0", scorer(1.0), output=HOT))
    made.sensor.value = 0.1  # nothing out of the ordinary: both say nothing
    made.start()
    made.desire("2.0.0", token=1)
    made.reaches("running", "2.0.0")
    made.stop()
    yield made
    made.stop()


def written(device: Device, *, over_the_air: bool = True) -> Path:
    """Write a configuration with a rule for the label of the new release."""
    root = device.root / "root.json"
    root.write_text("{}")
    document = {
        "gateway": {"id": "gw", "state_directory": str(device.state)},
        "models": {"directories": [str(device.releases)]},
        "vault": {"level": "software"},
        "sources": {"sensor": {"type": "mqtt", "topic": "a", "rate_hz": 100.0}},
        "local": {"broker": {"url": "mqtt://127.0.0.1:1883"}},
        "pipelines": {"motor": {"source": "sensor", "model": "probe", "rules": [{"name": "heat", "labels": ["hot"]}]}},
        **({"ota": {"root_file": str(root)}} if over_the_air else {}),
    }
    file = device.root / "gateway.yaml"
    file.write_text(json.dumps(document))
    return file


def problems(file: Path) -> list[str]:
    """Return what `gateway config validate` says about labels and models."""
    reading = read(file, take_stock=True)
    return [f"{one.path}: {one.message}" for one in reading.problems if one.path.startswith("pipelines.")]


def diagnosed(file: Path) -> list[tuple[str, str]]:
    """Return what `gateway doctor` says about the models."""
    config: Config | None = read(file).config
    assert config is not None
    return [(one.check, one.verdict) for one in check_models(config)]


def test_the_rules_are_held_against_the_release_that_was_assigned(device: Device) -> None:
    file = written(device)
    assert problems(file) == []
    assert diagnosed(file) == [("model probe@2.0.0", "ok")]


def test_without_updates_over_the_air_it_is_the_configured_one_the_control(device: Device) -> None:
    file = written(device, over_the_air=False)
    (one,) = problems(file)
    assert "never says `hot`" in one
    assert ("pipelines.motor, rule heat", "failed") in diagnosed(file)


def test_where_only_a_release_from_the_air_is_left_that_is_what_counts(device: Device) -> None:
    shutil.rmtree(device.releases)
    device.releases.mkdir()
    shutil.rmtree(device.state / "models" / "probe" / "1.0.0")  # its own, sealed
    file = written(device)
    assert problems(file) == []
    device.journal_file.unlink()
    assert problems(file) == []
    assert diagnosed(file) == [("model probe@2.0.0", "ok")]
    assert not list(device.journal_file.parent.glob("*.damaged")), "who only looks changes nothing"
