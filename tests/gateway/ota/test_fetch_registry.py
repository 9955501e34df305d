"""What the bridge's registry publishes is what a device takes: both real, a directory between them."""

import time
from pathlib import Path

import pytest

from gateway.config import Ota
from gateway.ota.errors import NotOfferedError
from gateway.ota.fetch import Repository
from gateway.ota.fetch_budget import Unmetered
from gateway.ota.ways import DirectoryWay
from tests.cloud_bridge.registry.kit import Site, release, weights


def device_of(site: Site, directory: Path) -> Repository:
    root_file = directory / "root.json"
    root_file.write_bytes(site.registry.read("metadata/1.root.json"))
    return Repository(
        Ota(root_file=root_file, hardware="test-board"),
        directory / "state",
        DirectoryWay(Path(site.settings.url)),
        meter=Unmetered(),
        now_ns=time.time_ns,
        monotonic_ns=time.monotonic_ns,
    )


def test_a_published_release_is_an_offer_with_artefact_and_patch(tmp_path: Path) -> None:
    site = Site(tmp_path).begin()
    site.running[("detector", "1.0.0")] = 3
    site.publish(release(tmp_path))
    site.publish(release(tmp_path, "1.0.1", weights(1, 0.02)))
    device = device_of(site, tmp_path)
    device.refresh()
    assert [each.version for each in device.listed()] == ["1.0.1", "1.0.0"]
    offer = device.offer("detector", "1.0.1")
    assert offer.manifest.deployment_token == offer.token == 2
    kinds = {file.custom["kind"] for file in offer.files}
    assert kinds == {"artefact", "patch"}
    for file in offer.files:
        assert device.fetch(file, tmp_path / "got" / file.name).stat().st_size == file.size_bytes


def test_a_yanked_release_is_not_offered(tmp_path: Path) -> None:
    site = Site(tmp_path).begin()
    site.publish(release(tmp_path))
    device = device_of(site, tmp_path)
    device.refresh()
    device.offer("detector", "1.0.0")
    site.registry.yank("detector", "1.0.0", "it was bad")
    device.refresh()
    with pytest.raises(NotOfferedError):
        device.offer("detector", "1.0.0")
