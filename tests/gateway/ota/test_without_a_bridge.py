"""A device without a cloud: a stick with the repository, one with the release in clear, and no bridge anywhere."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from gateway.commands.ota_fetch import import_command
from gateway.commands.vault import command as vault_command
from gateway.config import Ota
from gateway.ota.fetch import Repository
from gateway.ota.fetch_budget import Unmetered
from gateway.ota.ways import DirectoryWay
from tests.cloud_bridge.registry.kit import Site
from tests.gateway.ota.releases import release, scorer
from tests.gateway.ota.rig import NAME, Device, installed
from tests.simulators.waiting import wait_for


@pytest.fixture
def site(tmp_path: Path) -> Site:
    """A bridge far away, which has published a release and written both sticks."""
    made = Site(tmp_path / "site").begin()
    made.publish(release(tmp_path / "made", "1.0.0", scorer(1.0)))
    made.registry.export(tmp_path / "stick")
    made.registry.extract(made.registry.entry(NAME, "1.0.0"), tmp_path / "clear")
    return made


@pytest.fixture
def device(tmp_path: Path, site: Site) -> Iterator[Device]:
    """A device with neither release nor way, in front of its first stick."""
    root_file = tmp_path / "root.json"
    root_file.write_bytes(site.registry.read("metadata/1.root.json"))
    state = tmp_path / "device/state"
    nowhere = tmp_path / "nowhere"
    nowhere.mkdir()
    repository = Repository(
        Ota(root_file=root_file),
        state,
        DirectoryWay(nowhere),
        meter=Unmetered(),
        now_ns=site.clock,
        monotonic_ns=site.clock,
    )
    made = Device(tmp_path / "device", repository)  # type: ignore[arg-type]  # a real one has no knobs
    made.grants = False
    config = tmp_path / "gateway.yaml"
    config.write_text(
        f"gateway: {{id: dock-7, state_directory: {state}}}\n"
        "vault: {level: software}\n"
        "sources: {own: {type: health}}\n"
        f"pipelines: {{own: {{source: own, model: {NAME}}}}}\n"
        f"ota: {{root_file: {root_file}}}\n"
    )
    yield made
    made.stop()


def brought(tmp_path: Path) -> list[bool]:
    """Import the stick; return of each release whether it waits for its key."""
    arguments = [str(tmp_path / "stick"), "--json", "--config", str(tmp_path / "gateway.yaml")]
    result = CliRunner().invoke(import_command, arguments)
    assert result.exit_code == 0, result.output
    return [each["waits_for_key"] for each in json.loads(result.output)]


def test_from_a_stick_and_the_release_in_clear_it_is_installed_and_runs(device: Device, tmp_path: Path) -> None:
    assert brought(tmp_path) == [True]
    device.begin()
    device.agent.install("motor", installed("1.0.0"))
    device.reaches("waiting", "1.0.0", "key")  # the control: what lies on the stick alone does not do
    clear = tmp_path / f"clear/{NAME}/1.0.0"
    sealed = CliRunner().invoke(vault_command, ["import", str(clear), "--config", str(tmp_path / "gateway.yaml")])
    assert sealed.exit_code == 0, sealed.output
    shutil.rmtree(clear)
    assert brought(tmp_path) == [False]
    device.agent.install("motor", installed("1.0.0"))
    device.reaches("running", "1.0.0")
    wait_for(lambda: device.serving == "1.0.0")


def test_what_was_published_has_another_manifest_and_is_not_taken_for_the_release(
    device: Device, tmp_path: Path
) -> None:
    """The bridge writes its token into the manifest, so the directory of the publisher brings no key."""
    assert brought(tmp_path) == [True]
    published = tmp_path / f"made/{NAME}/1.0.0"
    sealed = CliRunner().invoke(vault_command, ["import", str(published), "--config", str(tmp_path / "gateway.yaml")])
    assert sealed.exit_code == 0, sealed.output
    assert brought(tmp_path) == [True]
