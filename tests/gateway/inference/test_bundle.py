"""Releases on disk."""

import json
import random
from pathlib import Path

import pytest

from gateway.errors import ModelError
from gateway.inference.bundle import ReleaseStore, version_key
from gateway.inference.plain import open_plain
from gateway.wire.manifest import MANIFEST_FILE, Plain, Regression, WindowInput
from tests.gateway.inference.manifests import write_release

INPUT = WindowInput(samples=4, hop_samples=4, rate_hz=1, features=Plain())
OUTPUT = Regression(threshold=1.0)


def release(directory: Path, version: str, name: str = "pump", content: bytes = b"weights") -> Path:
    return write_release(directory, {"cpu-int8": content}, INPUT, OUTPUT, name=name, version=version)


def store(*directories: Path) -> ReleaseStore:
    return ReleaseStore(directories[:-1], packaged=directories[-1])


def test_versions_are_ordered_semantically() -> None:
    ordered = ["0.9.9", "1.0.0-alpha", "1.0.0-alpha.1", "1.0.0-rc.2", "1.0.0-rc.10", "1.0.0", "1.2.0", "1.10.0"]
    mixed = ordered.copy()
    random.Random(1).shuffle(mixed)
    assert sorted(mixed, key=lambda version: version_key(version) or ()) == ordered
    assert version_key("latest") is None


def test_a_name_alone_is_the_newest_version(tmp_path: Path) -> None:
    for version in ("1.2.0", "1.10.0", "1.9.9"):
        release(tmp_path, version)
    assert store(tmp_path).find("pump").manifest.version == "1.10.0"
    assert store(tmp_path).find("pump@1.9.9").manifest.version == "1.9.9"


def test_the_newest_may_lie_in_any_directory_and_the_first_wins_a_tie(tmp_path: Path) -> None:
    release(tmp_path / "site", "1.0.0")
    release(tmp_path / "site", "2.0.0", content=b"from the site")
    release(tmp_path / "shipped", "2.0.0", content=b"shipped")
    release(tmp_path / "shipped", "1.5.0")
    found = store(tmp_path / "site", tmp_path / "shipped").find("pump")
    assert found.directory == tmp_path / "site" / "pump" / "2.0.0"


def test_a_release_that_is_not_there_is_told_with_what_is(tmp_path: Path) -> None:
    release(tmp_path, "1.0.0")
    release(tmp_path, "1.1.0", name="fan")
    for wanted in ("motor", "pump@3.0.0"):
        with pytest.raises(ModelError, match=rf"'{wanted}': not found; there is fan@1\.1\.0, pump@1\.0\.0") as told:
            store(tmp_path).find(wanted)
        assert str(tmp_path) in str(told.value)
        assert "models.directories" in str(told.value)


def test_an_empty_or_missing_directory_has_nothing(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="there is nothing"):
        store(tmp_path / "absent").find("pump")


def test_what_is_no_release_is_passed_by(tmp_path: Path) -> None:
    release(tmp_path, "1.0.0")
    (tmp_path / "pump" / "2.0.0").mkdir()  # no manifest yet: a download under way
    (tmp_path / "pump" / "notes").mkdir()
    (tmp_path / "pump" / "notes" / MANIFEST_FILE).write_text("{}")
    assert [listed.version for listed in store(tmp_path).releases()] == ["1.0.0"]


def test_a_broken_manifest_names_the_file_and_the_place(tmp_path: Path) -> None:
    manifest = release(tmp_path, "1.0.0") / MANIFEST_FILE
    content = json.loads(manifest.read_bytes())
    content["artefacts"][0]["size_bytes"] = "many"
    manifest.write_text(json.dumps(content))
    with pytest.raises(ModelError, match=r"manifest\.json: manifest: .*size_bytes"):
        store(tmp_path).find("pump")


def test_a_manifest_in_the_wrong_directory_is_refused(tmp_path: Path) -> None:
    release(tmp_path, "1.0.0").rename(tmp_path / "pump" / "1.0.1")
    with pytest.raises(ModelError, match=r"is the manifest of pump 1\.0\.0: it lies in the wrong directory"):
        store(tmp_path).find("pump")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"weighty", "is not the file of this release"),
        (b"weight", "should have 7 bytes and has 6"),
        (b"weights and more", "should have 7 bytes and has more"),
    ],
)
def test_an_artefact_that_was_changed_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    folder = release(tmp_path, "1.0.0")
    (folder / "cpu-int8.tflite").write_bytes(content)
    found = store(tmp_path).find("pump")
    with pytest.raises(ModelError, match=message):
        found.verify(found.manifest.artefacts[0])


def test_a_missing_artefact_is_named(tmp_path: Path) -> None:
    folder = release(tmp_path, "1.0.0")
    (folder / "cpu-int8.tflite").unlink()
    found = store(tmp_path).find("pump")
    with pytest.raises(ModelError, match=r"cpu-int8\.tflite cannot be read: No such file"):
        found.verify(found.manifest.artefacts[0])


def test_an_untouched_artefact_is_opened_whole(tmp_path: Path) -> None:
    release(tmp_path, "1.0.0")
    found = store(tmp_path).find("pump")
    found.verify(found.manifest.artefacts[0])
    weights = open_plain(found, found.manifest.artefacts[0])
    assert Path(weights.path).read_bytes() == b"weights"
    weights.close()
    weights.close()


def sealed(directory: Path, plain: Path) -> Path:
    """Do to the store what sealing does, as far as it can be seen from here."""
    folder = directory / plain.parent.name / plain.name
    folder.mkdir(parents=True)
    (folder / MANIFEST_FILE).write_bytes((plain / MANIFEST_FILE).read_bytes())
    return folder


def test_of_a_release_that_lies_sealed_too_the_sealed_one_is_taken(tmp_path: Path) -> None:
    plain = release(tmp_path / "site", "1.0.0")
    releases = ReleaseStore([tmp_path / "site"], packaged=tmp_path / "none", sealed=tmp_path / "sealed")
    assert releases.find("pump").directory == plain
    twin = sealed(tmp_path / "sealed", plain)
    assert releases.find("pump").directory == twin


def test_another_release_under_the_same_version_is_not_hidden_by_the_sealed_one(tmp_path: Path) -> None:
    sealed(tmp_path / "sealed", release(tmp_path / "before", "1.0.0"))
    changed = release(tmp_path / "site", "1.0.0", content=b"trained again")
    releases = ReleaseStore([tmp_path / "site"], packaged=tmp_path / "none", sealed=tmp_path / "sealed")
    assert releases.find("pump").directory == changed


def test_a_release_that_lies_sealed_alone_is_found(tmp_path: Path) -> None:
    twin = sealed(tmp_path / "sealed", release(tmp_path / "before", "1.0.0"))
    releases = ReleaseStore(packaged=tmp_path / "none", sealed=tmp_path / "sealed")
    assert releases.find("pump").directory == twin


def test_what_is_being_sealed_is_no_release_yet(tmp_path: Path) -> None:
    sealed(tmp_path / "sealed", release(tmp_path / "before", "1.0.0-rc.1"))
    begun = sealed(tmp_path / "sealed", release(tmp_path / "before", "1.0.0-rc.2"))
    begun.rename(begun.with_name("1.0.0-rc.2.partial"))
    releases = ReleaseStore(packaged=tmp_path / "none", sealed=tmp_path / "sealed")
    assert [listed.version for listed in releases.releases()] == ["1.0.0-rc.1"]
