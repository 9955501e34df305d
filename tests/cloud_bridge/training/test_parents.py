"""What can be trained again, and as which version: what is published first, read and verified as it was signed."""

import json
import threading
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from cloud_bridge.cli import main
from cloud_bridge.configload import load
from cloud_bridge.drift import book
from cloud_bridge.drift.retrainer import Retrainer
from cloud_bridge.drift.watch import open_database
from cloud_bridge.errors import ConfigError
from cloud_bridge.registry.errors import DistrustedError, RefusedReleaseError
from cloud_bridge.store.sqlite import SqliteStore
from cloud_bridge.training.errors import TrainingError
from cloud_bridge.training.parents import Parents
from cloud_bridge.values import Intake
from gateway.wire.manifest import read_manifest
from tests.cloud_bridge.registry.kit import Site, release, sha256, weights
from tests.simulators.releases import write_release

SHIPPED = Path(__file__).resolve().parents[3] / "gateway" / "models" / "process-anomaly" / "1.0.0"
NAME = "process-anomaly"


@pytest.fixture
def site(tmp_path: Path) -> Site:
    """A registry with three versions of a release, of which the last is taken back; 1.0.0 lies in clear, too."""
    site = Site(tmp_path / "site").begin()
    golden = b"what goes in", b"what comes out"
    entry = {
        "target": "cpu-int8",
        "input": "in.bin",
        "output": "out.bin",
        "input_sha256": sha256(golden[0]),
        "output_sha256": sha256(golden[1]),
        "tolerance": 0.0,
    }
    for at, version in enumerate(("1.0.0", "1.1.0", "1.2.0")):
        made = release(tmp_path, version, weights(1, 0.01 * at), golden=[entry])
        (made / "in.bin").write_bytes(golden[0])
        (made / "out.bin").write_bytes(golden[1])
        site.publish(made)
    site.registry.yank("detector", "1.2.0", "too eager")
    write_release(tmp_path / "clear", "detector", "0.9.0")
    write_release(tmp_path / "clear", "detector", "1.0.1")
    return site


def parents_of(site: Site, tmp_path: Path) -> Parents:
    return Parents([tmp_path / "clear"], site.registry)


def test_a_parent_is_the_newest_published_release_in_clear_as_it_was_signed(site: Site, tmp_path: Path) -> None:
    found = parents_of(site, tmp_path).release("detector")
    assert found.manifest.version == "1.1.0", "1.2.0 was taken back"
    assert found.model == weights(1, 0.01)
    assert found.files["in.bin"] == b"what goes in"
    assert found.manifest == site.registry.entry("detector", "1.1.0").manifest
    assert parents_of(site, tmp_path).manifest("detector") == found.manifest
    assert not list(site.registry.keys.work.iterdir()), "nothing is left in clear"


def test_any_published_version_can_be_named_and_what_is_not_published_is_looked_for_in_directories(
    site: Site, tmp_path: Path
) -> None:
    parents = parents_of(site, tmp_path)
    assert parents.release("detector", "1.0.0").model == weights(1, 0.0)
    assert parents.release("detector", "0.9.0").model == b"weights"
    with pytest.raises(ConfigError, match=r"1\.2\.0 is not published, and lies in none of .*model list"):
        parents.release("detector", "1.2.0")
    assert Parents([tmp_path / "clear"]).release("detector").manifest.version == "1.0.1", "without a registry"


def test_a_successor_comes_above_all_that_was_published_and_another_version_is_refused_beforehand(
    site: Site, tmp_path: Path
) -> None:
    parents = parents_of(site, tmp_path)
    parent = parents.manifest("detector", "1.0.0")
    assert parents.version(parent) == "1.1.1", "1.2.0 was taken back, and no device runs it"
    site.running[("detector", "1.2.0")] = 1
    assert parents.version(parent) == "1.2.1"
    parents.require_publishable(parent, "1.2.1")
    with pytest.raises(RefusedReleaseError, match=r"1\.0\.1 does not follow 1\.2\.0, which was taken back, but runs"):
        parents.require_publishable(parent, "1.0.1")
    write_release(tmp_path / "clear", "detector", "1.2.1")
    assert parents.version(parent) == "1.2.2", "that lies here already"
    assert parents.version(parent, "2.0.0-rc.1") == "2.0.0-rc.1"
    with pytest.raises(ConfigError, match="no semantic version"):
        parents.version(parent, "../2.0.0")
    unsigned = Parents([tmp_path / "clear"])
    assert unsigned.version(parent) == "1.0.2"
    unsigned.require_publishable(parent, "1.0.1")


@pytest.mark.parametrize("name", ["in.bin", "model.tflite.sealed", "manifest.json"])
def test_a_published_file_that_is_not_the_signed_one_is_never_trained_from(
    site: Site, tmp_path: Path, name: str
) -> None:
    entry = site.registry.entry("detector", "1.1.0")
    (file,) = [one for one in entry.files if one.path.endswith(f"/{name}")]
    stored = tmp_path / "site" / "repository" / file.place
    stored.write_bytes(stored.read_bytes()[:-1] + b"x")
    with pytest.raises(DistrustedError, match="not the file that was signed"):
        parents_of(site, tmp_path).release("detector")


def test_a_directory_with_another_file_than_its_manifest_names_is_refused(tmp_path: Path) -> None:
    made = write_release(tmp_path / "clear", "detector", "1.0.0")
    (made / "model.tflite").write_bytes(b"another")
    with pytest.raises(TrainingError, match="not the file of the manifest"):
        Parents([tmp_path / "clear"]).release("detector")


def run(place: Path, *words: str) -> Result:
    return CliRunner().invoke(main, [*words, "--config", str(place / "bridge.yaml")])


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bridge whose registry has 1.1.0 and 1.2.0 of a shipped release; no directory has them any more."""
    place = tmp_path_factory.mktemp("published")
    settings = {
        "store": {"url": f"sqlite:///{place}/bridge.db"},
        "identity": {"trust_domain": "sluice.test", "directory": str(place / "identity")},
        "registry": {"url": str(place / "repository"), "keys": str(place / "keys")},
    }
    (place / "bridge.yaml").write_text(json.dumps(settings))
    store = SqliteStore(place / "bridge.db")
    store.ingest(Intake(1, seen=frozenset({"plant"})))
    store.close()
    assert run(place, "registry", "init").exit_code == 0
    for version in ("1.1.0", "1.2.0"):
        made = place / version
        made.mkdir()
        for file in SHIPPED.iterdir():
            (made / file.name).write_bytes(file.read_bytes())
        document = json.loads((SHIPPED / "manifest.json").read_bytes())
        (made / "manifest.json").write_text(json.dumps(document | {"version": version}))
        read_manifest((made / "manifest.json").read_bytes())
        result = run(place, "model", "publish", str(made))
        assert result.exit_code == 0, result.output
        for file in made.iterdir():
            file.unlink()
    return place


@pytest.mark.slow
def test_the_command_begins_with_the_newest_published_release_and_numbers_above_it(published: Path) -> None:
    def dry(*words: str) -> Result:
        return run(published, "training", "retrain", NAME, "--dry-run", *words)

    newest, chosen = dry(), dry("--from", "1.1.0")
    assert f"{NAME} 1.2.1 would be trained from 1.2.0" in newest.stdout, newest.output
    assert f"{NAME} 1.2.1 would be trained from 1.1.0" in chosen.stdout, chosen.output
    refused = dry("--version", "1.0.1")
    assert refused.exit_code == 1
    assert "1.0.1 does not follow 1.2.0" in refused.stderr
    alone = dry("--version", "1.0.1", "--no-publish")
    assert alone.exit_code == 0, "the control: what is not published may have any version"


@pytest.mark.slow
def test_what_an_alarm_begins_finds_the_published_release_that_drifted(published: Path) -> None:
    database = open_database(load(published / "bridge.yaml"))
    try:
        for version, said in (("1.1.0", "0 healthy windows came from the field"), ("7.0.0", "is not published")):
            with database.transaction() as tx:
                proposal = book.propose(tx, NAME, version, "drift", 1)
            assert proposal is not None
            Retrainer(load(published / "bridge.yaml"), database).retrain(proposal, threading.Event())
            with database.transaction() as tx:
                (settled,) = [one for one in book.proposals(tx) if one.id == proposal.id]
            assert settled.state == "failed"
            assert said in settled.detail, "the control is a version that was never published"
    finally:
        database.close()
