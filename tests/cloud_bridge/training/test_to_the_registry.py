"""From windows of the field to a release that devices are given: the real registry, the real checks, both ways."""

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from cloud_bridge.cli import main
from cloud_bridge.store.sqlite import SqliteStore
from cloud_bridge.training import release
from cloud_bridge.training.recipes import vibration
from cloud_bridge.values import Intake
from gateway.wire.messages import Availability, ModelRef
from tests.cloud_bridge.training.field import AT_NS, FieldGateway, npy, vibration_windows
from tests.simulators.reports import report
from tests.simulators.samples import AT

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]

NAME = "vibration-anomaly"
SHARE = 0.15
WINDOWS = 90


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bridge with a registry, a parent, and a device whose sensor has another gain and which is unsure of all."""
    place = tmp_path_factory.mktemp("site")
    release.write(vibration.RECIPE.train(SHARE), place / "releases")
    write_settings(place, "propose")
    store = SqliteStore(place / "bridge.db")
    gateway = FieldGateway(store, "plant")
    for window in vibration_windows(WINDOWS, 1, gain=2.2):
        gateway.send(npy(window), 0.45, low_confidence=True)
    model = ModelRef(name=NAME, version="1.0.0")
    online = (("plant", Availability(state="online", at=AT)),)
    store.ingest(Intake(AT_NS, availability=online, seen=frozenset({"plant"})))
    store.close()
    report(place, "plant", "motor", model)
    answer(place, "registry", "init")
    return place


def write_settings(place: Path, retrain: str) -> None:
    settings = {
        "store": {"url": f"sqlite:///{place}/bridge.db"},
        "identity": {"trust_domain": "sluice.test", "directory": str(place / "identity")},
        "registry": {"url": str(place / "repository"), "keys": str(place / "keys")},
        "drift": {"retrain": retrain, "releases": [str(place / "releases")]},
    }
    (place / "bridge.yaml").write_text(json.dumps(settings))


def run(place: Path, *words: str) -> Result:
    return CliRunner().invoke(main, [*words, "--config", str(place / "bridge.yaml")])


def answer(place: Path, *words: str) -> Any:
    result = run(place, *words, "--json")
    assert result.exit_code == 0, result.output
    lines = [json.loads(line) for line in result.stdout.splitlines() if line.startswith("{")]
    return lines[0] if len(lines) == 1 else lines


def test_a_retrained_release_waits_for_a_person_or_begins_a_canary_as_configured(site: Path) -> None:
    made = answer(site, "training", "retrain", NAME, "--share", str(SHARE))
    assert (made["version"], made["state"], made["rollouts"]) == ("1.0.1", "candidate", [])
    shown = answer(site, "model", "show", NAME)
    assert (shown["state"], shown["manifest"]["lineage"]["parent"]) == ("candidate", f"{NAME} 1.0.0")
    assert "windows from the field" in shown["manifest"]["lineage"]["data"]
    assert {one["kind"] for one in shown["files"]} >= {"artefact", "golden", "manifest"}

    given = ("rollout", "create", "--model", f"{NAME}@1.0.1", "--pipeline", "motor")
    refused = run(site, *given)
    assert refused.exit_code != 0, "the control: nobody has approved it, so nobody gets it"
    assert "candidate that nobody has approved" in refused.output
    answer(site, "model", "approve", f"{NAME}@1.0.1", "--who", "mara")
    begun = answer(site, *given)
    assert begun["phase"] == "running"
    assert run(site, "rollout", "abort", begun["id"]).exit_code == 0

    write_settings(site, "canary")
    again = answer(site, "training", "retrain", NAME, "--share", str(SHARE))
    assert (again["version"], again["state"]) == ("1.0.2", "candidate")
    assert again["lineage"]["parent"] == f"{NAME} 1.0.1", "the newest that is published, opened again"
    (rollout,) = again["rollouts"]
    status = answer(site, "rollout", "status", rollout)
    assert (status["release"], status["pipeline"], status["phase"]) == (f"{NAME}@1.0.2", "motor", "running")
    assert status["waves"][0]["wave"] == "1", "one device first"
    assert [line["who"] for line in status["history"]] == ["retraining"]
    kinds = [event["kind"] for event in answer(site, "drift", "history")]
    assert kinds == ["retrained", "retrained"]
