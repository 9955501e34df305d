"""Bundles in the repository of the models: published, found by a client, taken back."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from cloud_bridge.osbundles.known import ModelsAndSystems
from cloud_bridge.osbundles.publishing import BundleShelf
from cloud_bridge.registry.errors import NotFoundError, RegistryError
from cloud_bridge.registry.roles import Signed
from cloud_bridge.registry.storage import Storage
from cloud_bridge.rollout.releases import Release
from tests.cloud_bridge.registry.kit import Site, client, listed, release
from tests.cloud_bridge.rollout.kit import Registered
from tests.simulators.os_bundle import Signer, bundle

SIGNER = Signer.make()
NAME = "sluice-uefi-amd64"


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    site = Site(tmp_path / "site").begin()
    yield site
    site.db.close()


@pytest.fixture
def shelf(site: Site) -> BundleShelf:
    return BundleShelf(site.registry.repository, site.registry.ledger, site.identities.database, site.clock)


def made(directory: Path, version: str = "1.1.0", **parts: object) -> Path:
    return bundle(directory / f"{version}.raucb", SIGNER, version=version, **parts)  # type: ignore[arg-type]


def test_a_published_bundle_is_a_signed_target_that_the_listener_gives_out(
    tmp_path: Path, site: Site, shelf: BundleShelf
) -> None:
    file = made(tmp_path, floor="1.0.0")
    published = shelf.publish(file)
    assert published.is_new
    assert not published.waiting
    entry = published.entry
    assert site.registry.read(entry.place) == file.read_bytes()
    says = listed(client(tmp_path / "client", site.registry.storage, site.registry.read("metadata/1.root.json")))
    assert says[entry.path]["kind"] == "os"
    assert says[entry.path]["floor"] == "1.0.0"
    assert says[entry.path]["token"] == entry.token


def test_the_same_bundle_again_does_nothing_and_another_of_the_version_is_refused(
    tmp_path: Path, shelf: BundleShelf
) -> None:
    file = made(tmp_path)
    assert shelf.publish(file).is_new
    assert not shelf.publish(file).is_new
    with pytest.raises(RegistryError, match="never changed"):
        shelf.publish(bundle(tmp_path / "other.raucb", SIGNER, version="1.1.0", payload=b"other" * 100))


def test_what_was_expected_and_is_not_so_is_refused_before_anything_is_written(
    tmp_path: Path, shelf: BundleShelf
) -> None:
    with pytest.raises(RegistryError, match="its version is"):
        shelf.publish(made(tmp_path), expected={"version": "1.2.0"})
    assert shelf.ledger.bundles() == []


def test_a_bundle_that_was_taken_back_is_not_listed_and_its_version_stays_taken(
    tmp_path: Path, site: Site, shelf: BundleShelf
) -> None:
    file = made(tmp_path)
    shelf.publish(file)
    entry = shelf.yank(NAME, "1.1.0", "it does not boot")
    assert entry.state == "yanked"
    says = listed(client(tmp_path / "client", site.registry.storage, site.registry.read("metadata/1.root.json")))
    assert entry.path not in says
    with pytest.raises(RegistryError, match="it does not boot"):
        shelf.publish(file)
    with pytest.raises(NotFoundError):
        shelf.yank(NAME, "9.9.9", "there is none")


def test_a_look_at_the_bundles_takes_back_none_that_is_published_meanwhile(
    tmp_path: Path, site: Site, shelf: BundleShelf
) -> None:
    other = Site(tmp_path / "site", clock=site.clock)  # of another process
    read = other.registry.repository.load
    first = []

    def load() -> Signed:
        first.append(read())
        if len(first) == 1:
            shelf.publish(made(tmp_path))
        return first[-1]

    vars(other.registry.repository)["load"] = load
    looking = BundleShelf(other.registry.repository, other.registry.ledger, other.identities.database, site.clock)
    looking.settle()
    assert [one.state for one in shelf.ledger.bundles()] == ["published"]
    shelf.ledger.settle(first[0].targets.signed.targets)  # the control: by what was read first
    assert [one.state for one in shelf.ledger.bundles()] == ["yanked"]
    other.db.close()


def test_models_and_bundles_are_published_beside_each_other_and_exported_together(
    tmp_path: Path, site: Site, shelf: BundleShelf
) -> None:
    shelf.publish(made(tmp_path))
    site.publish(release(tmp_path))
    entry = shelf.ledger.entry(NAME, "1.1.0")
    assert entry.state == "published"
    assert [one.name for one in site.registry.releases()] == ["detector"]
    site.registry.export(tmp_path / "stick")
    says = listed(
        client(tmp_path / "client", Storage(str(tmp_path / "stick")), site.registry.read("metadata/1.root.json"))
    )
    assert entry.path in says
    assert (tmp_path / "stick" / entry.place).read_bytes() == (tmp_path / "1.1.0.raucb").read_bytes()


def test_with_the_key_of_the_targets_elsewhere_a_bundle_waits(tmp_path: Path, site: Site, shelf: BundleShelf) -> None:
    for key in site.registry.keys.online.glob("targets*"):
        key.rename(tmp_path / key.name)
    published = shelf.publish(made(tmp_path))
    assert published.waiting
    assert published.entry.state == "unpublished"


def test_rollouts_know_bundles_by_what_they_are_for(tmp_path: Path, shelf: BundleShelf) -> None:
    models = Registered({Release("detector", "1.0.0"): "approved"})
    known = ModelsAndSystems(models, shelf.ledger)
    assert known.state_of(Release("detector", "1.0.0")) == "approved"
    assert known.state_of(Release(NAME, "1.1.0")) == "unknown"
    for version in ("1.1.0", "1.2.0", "1.3.0"):
        shelf.publish(made(tmp_path, version))
    shelf.yank(NAME, "1.2.0", "bad")
    assert known.state_of(Release(NAME, "1.3.0")) == "approved"
    assert known.state_of(Release(NAME, "1.2.0")) == "yanked"
    assert known.state_of(Release(NAME, "7.0.0")) == "unknown"
    assert known.before(Release(NAME, "1.3.0")) == Release(NAME, "1.1.0")
