"""What publishing makes, what it refuses, and what a client of the repository sees of it."""

import errno
import json
import os
import threading
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from cloud_bridge.registry.errors import (
    DistrustedError,
    NotFoundError,
    Problem,
    RefusedReleaseError,
    RegistryError,
    StorageError,
)
from cloud_bridge.registry.packing import Patch, apply, unpack
from cloud_bridge.registry.publishing import bases_for
from cloud_bridge.registry.storage import Storage
from gateway.vault.container import opened, read_header
from tests.cloud_bridge.registry.kit import Site, client, listed, release, sha256, weights
from tests.simulators.workshop import WorkshopSimulator


def opened_file(site: Site, path: str, version: str) -> bytes:
    entry = site.registry.entry("detector", version)
    file = next(file for file in entry.files if file.path.endswith(path))
    return opened(site.registry.read(file.place), site.identities.keys.find(entry.key_name).key)


def test_a_client_of_another_make_fetches_what_was_published(site: Site, tmp_path: Path) -> None:
    content = weights(1)
    entry = site.publish(release(tmp_path, content=content), hardware=("coral",)).entry
    updater = client(tmp_path / "client", site.registry.storage, site.registry.keys.root_file.read_bytes())
    custom = listed(updater)
    manifest_path = "models/detector/1.0.0/manifest.json"
    assert custom[manifest_path] == {
        "kind": "manifest",
        "name": "detector",
        "version": "1.0.0",
        "token": 1,
        "hardware": ["coral"],
    }
    info = updater.get_targetinfo(manifest_path)
    assert info is not None
    manifest = Path(updater.download_target(info)).read_bytes()
    assert json.loads(manifest)["deployment_token"] == entry.token == 1
    assert sha256(manifest) == entry.digest
    artefact = custom["models/detector/1.0.0/model.tflite.sealed"]
    assert artefact == {
        "kind": "artefact",
        "target": "cpu-int8",
        "packed": "zstd",
        "sha256": sha256(content),
        "size_bytes": len(content),
    }
    sealed = site.registry.read(next(file.place for file in entry.files if file.path.endswith(".sealed")))
    header, _ = read_header(sealed)
    assert (header.release, header.file) == (entry.digest, "model.tflite.zst")
    assert content[:64] not in sealed, "weights must not travel in clear"
    packed = opened_file(site, "model.tflite.sealed", "1.0.0")
    assert unpack("zstd", packed, len(content)) == content


def test_the_content_key_is_granted_under_the_digest_of_the_manifest(site: Site, tmp_path: Path) -> None:
    entry = site.publish(release(tmp_path)).entry
    [key] = site.identities.keys.all()
    assert (key.release, key.digest) == ("detector@1.0.0", entry.digest)


def test_publishing_the_same_again_changes_nothing(site: Site, tmp_path: Path) -> None:
    directory = release(tmp_path)
    first = site.publish(directory)
    timestamp = site.registry.read("metadata/timestamp.json")
    again = site.publish(directory)
    assert (first.is_new, again.is_new) == (True, False)
    assert again.entry == first.entry
    assert site.registry.read("metadata/timestamp.json") == timestamp


def test_a_version_is_never_changed(site: Site, tmp_path: Path) -> None:
    site.publish(release(tmp_path))
    with pytest.raises(RegistryError, match="a version is never changed"):
        site.publish(release(tmp_path / "other", content=weights(2)))


def test_a_lower_version_is_refused_and_a_higher_one_gets_a_higher_token(site: Site, tmp_path: Path) -> None:
    site.publish(release(tmp_path, "1.10.0"))
    assert site.publish(release(tmp_path, "1.0.0", name="other")).entry.token == 2
    assert site.publish(release(tmp_path, "1.11.0")).entry.token == 3
    with pytest.raises(RefusedReleaseError, match=r"1\.9\.0 does not follow 1\.11\.0"):
        site.publish(release(tmp_path, "1.9.0"))
    with pytest.raises(RefusedReleaseError, match="does not follow"):
        site.publish(release(tmp_path, "1.11.0-rc.1"))


@pytest.mark.parametrize(
    ("quality", "code"),
    [
        ([], "no-quality"),
        ([{"metric": "AUC", "float_value": 0.99, "shipped_value": 0.9, "split": "test"}], "quality"),
        ([{"metric": "AUC", "float_value": 0.99, "shipped_value": 0.98, "split": "test"}], None),
        ([{"metric": "false alarms per day", "float_value": 9.0, "shipped_value": 0.1, "split": "test"}], None),
    ],
)
def test_what_ships_must_keep_its_share_of_the_float_models_quality(
    site: Site, tmp_path: Path, quality: list[object], code: str | None
) -> None:
    made = release(tmp_path, quality=quality)
    if code is None:
        assert site.registry.publish(made, accept=frozenset({"no-golden"})).published_ns
        return
    with pytest.raises(RefusedReleaseError) as refused:
        site.registry.publish(made, accept=frozenset({"no-golden"}))
    assert [problem.code for problem in refused.value.problems] == [code]
    entry = site.registry.publish(made, accept=frozenset({"no-golden", code}))
    assert set(entry.accepted) == {"no-golden", code}


def artefact(name: str, target: str, content: bytes) -> dict[str, object]:
    return {"target": target, "file": name, "sha256": sha256(content), "size_bytes": len(content)}


@pytest.mark.parametrize(
    "other",
    ["model.tflite", "model.tflite.zst", "model.tflite.sealed", "model.tflite.zst.sealed", "model.tflite.from-1"],
)
def test_parts_that_would_overwrite_each_other_on_their_way_are_refused(site: Site, tmp_path: Path, other: str) -> None:
    content = weights(1)
    parts = [artefact("model.tflite", "cpu-int8", content), artefact(other, "cpu-float", weights(2))]
    made = release(tmp_path, content=content, artefacts=parts)
    (made / other).write_bytes(weights(2) if other != "model.tflite" else content)
    with pytest.raises(RefusedReleaseError) as refused:
        site.publish(made)
    assert {problem.code for problem in refused.value.problems} == {"name-twice"}
    golden = {"target": "cpu-int8", "input": other, "output": "out.bin", "tolerance": 0}
    golden |= {"input_sha256": sha256(b""), "output_sha256": sha256(b"")}
    made = release(tmp_path / "golden", content=content, golden=[golden])
    with pytest.raises(RefusedReleaseError, match="name-twice"):
        site.publish(made)


def test_parts_with_names_of_their_own_are_published(site: Site, tmp_path: Path) -> None:
    """The control."""
    content = weights(1)
    parts = [artefact("model.tflite", "cpu-int8", content), artefact("model-float.tflite", "cpu-float", weights(2))]
    made = release(tmp_path, content=content, artefacts=parts)
    (made / "model-float.tflite").write_bytes(weights(2))
    site.publish(made)
    for name, plain in (("model.tflite", content), ("model-float.tflite", weights(2))):
        assert unpack("zstd", opened_file(site, f"{name}.sealed", "1.0.0"), len(plain)) == plain


def test_a_typing_error_in_a_version_is_taken_out_of_the_order_by_taking_it_back(site: Site, tmp_path: Path) -> None:
    site.publish(release(tmp_path, "1.0.0"))
    site.publish(release(tmp_path, "1100.0.0"), candidate=True)
    with pytest.raises(RefusedReleaseError, match=r"typing error, `cloud-bridge model yank detector@1100\.0\.0`"):
        site.publish(release(tmp_path, "1.1.0"))
    site.registry.yank("detector", "1100.0.0", "a typing error")
    site.running[("detector", "1100.0.0")] = 1
    with pytest.raises(RefusedReleaseError, match=r"follow 1100\.0\.0, which was taken back, but runs on devices"):
        site.publish(release(tmp_path / "again", "1.1.0"))
    site.running.clear()
    assert site.publish(release(tmp_path / "at-last", "1.1.0")).entry.token == 3, "the order that devices follow"
    with pytest.raises(RegistryError, match="a version that was yanked stays so"):
        site.publish(tmp_path / "made" / "detector" / "1100.0.0")


@pytest.mark.parametrize("version", [f"{'9' * 19}.0.0", f"1.0.0-{'a' * 59}", "1.0.\N{ARABIC-INDIC DIGIT ONE}"])
def test_a_version_under_which_nothing_could_be_fetched_is_refused(site: Site, tmp_path: Path, version: str) -> None:
    with pytest.raises(RefusedReleaseError, match="no name of a file that devices ask for"):
        site.publish(release(tmp_path, version))
    site.publish(release(tmp_path, f"1.0.0-{'a' * 58}"))  # the control


def test_what_does_not_run_cannot_be_overruled(site: Site, tmp_path: Path) -> None:
    site.workshop.problems = [Problem("does-not-run", "model.tflite", "no model", "make one")]
    with pytest.raises(RefusedReleaseError, match=r"model\.tflite: no model \[does-not-run\]: make one"):
        site.publish(release(tmp_path), accept=frozenset({"does-not-run"}))
    assert site.registry.releases() == []
    assert site.identities.keys.all() == []


def test_fields_of_a_manifest_that_are_not_known_here_are_kept(site: Site, tmp_path: Path) -> None:
    entry = site.publish(release(tmp_path, future={"a": 1})).entry
    manifest = next(file for file in entry.files if file.custom["kind"] == "manifest")
    assert json.loads(site.registry.read(manifest.place))["future"] == {"a": 1}


def test_patches_lead_from_what_the_fleet_runs(site: Site, tmp_path: Path) -> None:
    for minor, share in enumerate((0.0, 0.02, 0.05)):
        site.publish(release(tmp_path, f"1.{minor}.0", weights(1, share)))
    site.running.update({("detector", "1.0.0"): 3, ("detector", "1.1.0"): 5})
    entry = site.publish(release(tmp_path, "1.3.0", weights(1, 0.1))).entry
    patches = {file.custom["base_version"]: file for file in entry.files if file.custom["kind"] == "patch"}
    assert set(patches) == {"1.0.0", "1.1.0"}
    full = next(file for file in entry.files if file.custom["kind"] == "artefact")
    for version, share in (("1.0.0", 0.0), ("1.1.0", 0.02)):
        file = patches[version]
        base = weights(1, share)
        assert file.path == f"models/detector/1.3.0/model.tflite.from-{version}.patch.sealed"
        assert file.custom["base_sha256"] == sha256(base)
        assert file.size_bytes < full.size_bytes / 4
        patch = Patch(file.custom["method"], opened_file(site, file.path, "1.3.0"))
        assert apply(patch, base, file.custom["size_bytes"]) == weights(1, 0.1)
    for version in ("1.1.0", "1.2.0"):  # nothing ran then: from the newest before
        files = site.registry.entry("detector", version).files
        assert sum(1 for file in files if file.custom["kind"] == "patch") == 1


def test_no_patch_is_made_that_saves_next_to_nothing(site: Site, tmp_path: Path) -> None:
    site.publish(release(tmp_path, "1.0.0", weights(1)))
    entry = site.publish(release(tmp_path, "1.1.0", weights(2))).entry
    assert [file for file in entry.files if file.custom["kind"] == "patch"] == []


def test_the_very_same_weights_travel_as_next_to_nothing(site: Site, tmp_path: Path) -> None:
    """As where a threshold alone is another."""
    site.publish(release(tmp_path, "1.0.0", weights(1)))
    entry = site.publish(release(tmp_path, "1.1.0", weights(1))).entry
    (file,) = [file for file in entry.files if file.custom["kind"] == "patch"]
    assert file.custom["base_sha256"] == file.custom["sha256"]
    assert file.size_bytes < 1000
    patch = Patch(file.custom["method"], opened_file(site, file.path, "1.1.0"))
    assert apply(patch, weights(1), file.custom["size_bytes"]) == weights(1)


def test_a_base_that_cannot_be_opened_costs_the_patch_only(site: Site, tmp_path: Path) -> None:
    first = site.publish(release(tmp_path, "1.0.0", weights(1))).entry
    sealed = next(file for file in first.files if file.custom["kind"] == "artefact")
    site.registry.storage.remove(sealed.place)
    entry = site.publish(release(tmp_path, "1.1.0", weights(1, 0.1))).entry
    assert entry.published_ns
    assert [file for file in entry.files if file.custom["kind"] == "patch"] == []


def test_what_runs_most_is_patched_first(site: Site, tmp_path: Path) -> None:
    for minor in range(4):
        site.publish(release(tmp_path, f"1.{minor}.0", weights(minor)))
    releases = site.registry.releases()
    running = {("detector", "1.0.0"): 9, ("detector", "1.2.0"): 1, ("other", "1.3.0"): 50}
    assert [one.version for one in bases_for("detector", releases, running, 3)] == ["1.0.0", "1.2.0"]
    assert [one.version for one in bases_for("detector", releases, running, 1)] == ["1.0.0"]
    assert [one.version for one in bases_for("detector", releases, {}, 3)] == ["1.3.0"]


def test_a_yanked_release_is_offered_no_more_and_never_comes_back(site: Site, tmp_path: Path) -> None:
    directory = release(tmp_path)
    site.publish(directory)
    site.publish(release(tmp_path, name="other"))
    entry = site.registry.yank("detector", "1.0.0", "it sees ghosts")
    assert (entry.is_offered, entry.yanked_why) == (False, "it sees ghosts")
    updater = client(tmp_path / "client", site.registry.storage, site.registry.keys.root_file.read_bytes())
    assert {path.split("/")[1] for path in listed(updater)} == {"other"}
    with pytest.raises(RegistryError, match="it sees ghosts"):
        site.publish(directory)
    with pytest.raises(NotFoundError):
        site.registry.yank("detector", "9.9.9", "no")


def test_a_candidate_waits_for_approval(site: Site, tmp_path: Path) -> None:
    assert site.publish(release(tmp_path), candidate=True).entry.state == "candidate"
    entry = site.registry.approve("detector", "1.0.0", who="mara")
    assert (entry.state, entry.approved_by) == ("approved", "mara")
    again = site.registry.approve("detector", "1.0.0", who="other")
    assert again == entry


def test_publishers_at_the_same_time_lose_nothing_of_each_other(site: Site, tmp_path: Path) -> None:
    made = [release(tmp_path, name=f"model-{number}") for number in range(4)]
    sites = [Site(tmp_path, clock=site.clock) for _ in made]
    failures: list[BaseException] = []

    def publish(one: Site, directory: Path) -> None:
        try:
            one.publish(directory)
        except BaseException as error:  # noqa: BLE001  # shown by the assertion
            failures.append(error)

    threads = [threading.Thread(target=publish, args=pair) for pair in zip(sites, made, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    for one in sites:
        one.db.close()
    assert failures == []
    assert sorted(one.token for one in site.registry.releases()) == [1, 2, 3, 4]
    updater = client(tmp_path / "client", site.registry.storage, site.registry.keys.root_file.read_bytes())
    assert {path.split("/")[1] for path in listed(updater)} == {f"model-{number}" for number in range(4)}


@dataclass
class _Meeting(WorkshopSimulator):
    """Seals once all publishers have got so far."""

    meeting: threading.Barrier = field(default_factory=lambda: threading.Barrier(3))

    def seal(self, directory: Path, manifest: Path, key: bytes, out: Path) -> None:
        self.meeting.wait(60)
        super().seal(directory, manifest, key, out)


def test_the_same_release_published_three_times_at_once_is_published_once(site: Site, tmp_path: Path) -> None:
    made = release(tmp_path)
    workshop = _Meeting()
    sites = [Site(tmp_path, clock=site.clock, workshop=workshop) for _ in range(workshop.meeting.parties)]
    came: list[bool | BaseException] = []

    def publish(one: Site) -> None:
        try:
            came.append(one.publish(made).is_new)
        except BaseException as error:  # noqa: BLE001  # shown by the assertion
            came.append(error)

    threads = [threading.Thread(target=publish, args=(one,)) for one in sites]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    for one in sites:
        one.db.close()
    assert sorted(map(str, came)) == ["False", "False", "True"]
    entry = site.registry.entry("detector", "1.0.0")
    there = site.registry.storage.files("targets/models/detector/1.0.0")
    assert set(there) == {file.place for file in entry.files}, "what the others had sealed is not left lying"
    updater = client(tmp_path / "client", site.registry.storage, site.registry.keys.root_file.read_bytes())
    info = updater.get_targetinfo("models/detector/1.0.0/model.tflite.sealed")
    assert info is not None
    assert Path(updater.download_target(info)).is_file()


def test_a_pipe_instead_of_a_manifest_is_refused_at_once(site: Site, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "manifest.json")
    with pytest.raises(RegistryError, match=r"manifest\.json: is no plain file"):
        site.publish(tmp_path)


def test_a_pipe_instead_of_an_artefact_is_refused_at_once(site: Site, tmp_path: Path) -> None:
    made = release(tmp_path)
    (made / "model.tflite").unlink()
    os.mkfifo(made / "model.tflite")
    with pytest.raises(RegistryError, match=r"model\.tflite: is no plain file"):
        site.publish(made)


class _Full(WorkshopSimulator):
    """A disk that takes no more while a release is sealed."""

    def seal(self, directory: Path, manifest: Path, key: bytes, out: Path) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(out / "model.tflite.sealed"))


def test_a_full_disk_is_told_with_its_place_and_leaves_nothing(tmp_path: Path) -> None:
    site = Site(tmp_path, workshop=_Full()).begin()
    made = release(tmp_path)
    with pytest.raises(
        StorageError, match=r"model\.tflite\.sealed: No space left on device; .*work a release is copied"
    ):
        site.publish(made)
    assert list(site.registry.keys.work.iterdir()) == []
    site.db.close()
    again = Site(tmp_path)
    assert again.publish(made).is_new, "the control: with room it is published"
    again.db.close()


@pytest.mark.parametrize(("name", "limit"), [("manifest.json", 1 << 20), ("model.tflite", 2 << 30)])
def test_a_file_that_is_too_large_is_refused_before_it_is_read(
    site: Site, tmp_path: Path, name: str, limit: int
) -> None:
    made = release(tmp_path)
    os.truncate(made / name, limit + 1)
    with pytest.raises(RegistryError, match=rf"{name}: has {limit + 1:,} bytes; at most {limit:,} are taken"):
        site.publish(made)


@pytest.mark.parametrize("content", [b"", b"{", b"[]"])
@pytest.mark.parametrize("role", ["timestamp", "snapshot", "targets"])
def test_damaged_metadata_are_told_with_their_place_and_what_to_do(
    site: Site, tmp_path: Path, role: str, content: bytes
) -> None:
    site.publish(release(tmp_path))
    [*_, file] = sorted((tmp_path / "repository" / "metadata").glob(f"*{role}.json"))
    file.write_bytes(content)
    with pytest.raises(DistrustedError) as refused:
        site.registry.refresh()
    assert str(file) in str(refused.value)
    assert "restore this file from a backup" in str(refused.value)


def test_nothing_in_clear_is_left_on_the_publishers_disk(site: Site, tmp_path: Path) -> None:
    leftover = site.registry.keys.work / "dead"
    leftover.mkdir(parents=True)
    (leftover / "model.tflite").write_bytes(b"in clear")
    site.publish(release(tmp_path))
    assert list(site.registry.keys.work.iterdir()) == []


def test_an_object_store_serves_as_well_as_a_directory(tmp_path: Path) -> None:
    site = Site(tmp_path, knobs={"url": f"memory://{tmp_path.name}/registry"}).begin()
    try:
        site.publish(release(tmp_path, "1.0.0", weights(1)))
        site.publish(release(tmp_path, "1.1.0", weights(1, 0.1)))
        assert not (tmp_path / "repository").exists()
        updater = client(tmp_path / "client", Storage(site.settings.url), site.registry.keys.root_file.read_bytes())
        assert any(path.endswith(".patch.sealed") for path in listed(updater))
    finally:
        site.db.close()
