"""The vault survives being killed in front of every sync and rename, at level software.

The experiment C23 does the same with a TPM, and in front of every other call that changes the disk.
"""

import os
import shutil
import subprocess
from functools import partial
from pathlib import Path

import pytest
from nacl.public import PublicKey, SealedBox

from gateway.config import Vault as VaultSettings
from gateway.vault.damage import damage_of
from gateway.vault.errors import KeyMissingError
from gateway.vault.store import read_release
from gateway.vault.vault import Vault
from gateway.wire.manifest import Artefact
from tests.gateway.vault import kills
from tests.gateway.vault.device import NEVER, Clock, plain_release

pytestmark = pytest.mark.skipif(bool(kills.missing()), reason=kills.missing())

HERE = ("fsync", "rename")
WEIGHTS = bytes(range(256)) * 300
NOW_NS = Clock().now_ns


def open_vault(root: Path) -> Vault:
    return Vault.open(VaultSettings(level="software"), root / "device", now_ns=Clock(), appliance_marker=NEVER)


@pytest.fixture
def artefact(tmp_path: Path) -> Artefact:
    _, artefacts = plain_release(tmp_path / "plain", {"model.tflite": WEIGHTS})
    return artefacts[0]


def opens(vault: Vault, root: Path, artefact: Artefact) -> None:
    with vault.open_weights(root / "device/models/probe/1.0.0", artefact) as weights:
        assert bytes(weights.view) == WEIGHTS


@pytest.mark.parametrize("change", ["rotate", "reseal"])
def test_killed_anywhere_in_a_change_of_keys_all_releases_still_open(
    tmp_path: Path, artefact: Artefact, change: str
) -> None:
    vault = open_vault(tmp_path)
    vault.initialise()
    vault.import_release(tmp_path / "plain/probe/1.0.0")
    points = 0
    for point in kills.kill_points(kills.victim(change, tmp_path), HERE):
        after = open_vault(tmp_path)
        after.check()
        opens(after, tmp_path, artefact)
        points += 1
        assert after.status().generation is not None, point
    assert points >= 12
    # What the killed ones have left is gone after one that got through.
    assert len(list((tmp_path / "device/vault/generations").iterdir())) == 1
    assert list((tmp_path / "device").rglob("*.part")) == []


def test_killed_anywhere_in_making_it_it_is_made_by_trying_again(tmp_path: Path) -> None:
    points = 0
    for _ in kills.kill_points(kills.victim("init", tmp_path), HERE):
        after = open_vault(tmp_path)
        if after.status().initialised:
            after.check()
        after.initialise()
        after.check()
        shutil.rmtree(tmp_path / "device")
        points += 1
    assert points >= 12


def test_killed_anywhere_in_beginning_anew_there_is_the_old_vault_or_a_new_one(
    tmp_path: Path, artefact: Artefact
) -> None:
    points, kept = 0, 0
    open_vault(tmp_path).initialise()
    open_vault(tmp_path).import_release(tmp_path / "plain/probe/1.0.0")
    shutil.copytree(tmp_path / "device", tmp_path / "before")

    def as_before() -> None:
        shutil.rmtree(tmp_path / "device")
        shutil.copytree(tmp_path / "before", tmp_path / "device")

    for _ in kills.kill_points(kills.victim("anew", tmp_path), HERE, prepare=as_before):
        after = open_vault(tmp_path)
        after.initialise()  # as every start of the gateway does
        try:
            opens(after, tmp_path, artefact)
            kept += 1
        except KeyMissingError:
            after.check()  # it has begun anew
        after.import_release(tmp_path / "plain/probe/1.0.0")
        opens(after, tmp_path, artefact)
        points += 1
    assert points >= 12
    assert kept >= 1


def test_killed_anywhere_in_an_import_the_release_is_there_whole_or_not_at_all(
    tmp_path: Path, artefact: Artefact
) -> None:
    vault = open_vault(tmp_path)
    vault.initialise()
    points = 0
    for _ in kills.kill_points(kills.victim("import", tmp_path), HERE):
        after = open_vault(tmp_path)
        for release in after.releases.releases():
            assert release.is_sealed
            opens(after, tmp_path, artefact)
        after.import_release(tmp_path / "plain/probe/1.0.0")
        opens(after, tmp_path, artefact)
        shutil.rmtree(tmp_path / "device/models")
        for key in (tmp_path / "device/vault/generations").glob("*/keys/*.json"):
            key.unlink()
        points += 1
    assert points >= 8


def test_what_an_import_that_was_killed_has_left_is_gone_after_the_next_start(tmp_path: Path) -> None:
    plain_release(tmp_path / "plain", {"model.tflite": WEIGHTS})
    vault = open_vault(tmp_path)
    vault.initialise()
    models = tmp_path / "device/models"
    sizes = []
    for call in ("fsync", "rename"):
        for number in range(1, 20):
            if not kills.run_killed_at(kills.victim("import", tmp_path), call, number):
                break
            sizes += [file.stat().st_size for file in models.rglob("*.partial/*")]
            open_vault(tmp_path).initialise()  # as every start of the gateway does
            assert list(models.rglob("*.partial")) == []
            shutil.rmtree(models, ignore_errors=True)
    assert max(sizes) > len(WEIGHTS)  # something that takes room was there to be removed


def test_killed_anywhere_in_mending_a_damaged_release_the_next_start_ends_it(tmp_path: Path) -> None:
    _, (artefact,) = plain_release(tmp_path / "plain", {"model.tflite": WEIGHTS})
    vault = open_vault(tmp_path)
    vault.initialise()
    stored = vault.import_release(tmp_path / "plain/probe/1.0.0").directory
    (stored / "manifest.json").write_bytes(b"")
    for _ in kills.kill_points(kills.victim("import", tmp_path), ("rename", "fsync")):
        # The damaged one, or none, or the new one whole: never anything that only looks like it.
        assert not stored.exists() or not (stored / "manifest.json").read_bytes() or damage_of(stored) == ""
        again = open_vault(tmp_path)
        again.initialise()  # as every start of the gateway does
        with again.open_weights(again.import_release(tmp_path / "plain/probe/1.0.0").directory, artefact) as opened:
            assert bytes(opened.view) == WEIGHTS
        (stored / "manifest.json").write_bytes(b"")


def test_killed_anywhere_in_taking_a_grant_the_old_or_the_new_key_is_there(tmp_path: Path) -> None:
    vault = open_vault(tmp_path)
    vault.initialise()
    wrapped = bytes(SealedBox(PublicKey(vault.recipient())).encrypt(bytes(32)))
    (tmp_path / "grant").write_text(f"{'0' * 64} {wrapped.hex()}")
    short, long = NOW_NS + 10**15, NOW_NS + 90 * 86_400 * 10**9
    seen = []
    again = partial(vault.accept_grant, "0" * 64, wrapped, short)
    for _ in kills.kill_points(kills.victim("grant", tmp_path), HERE, prepare=again):
        open_vault(tmp_path).check()
        (key,) = open_vault(tmp_path).status().keys
        seen.append(key.lease_until_ns)
    assert len(seen) >= 3
    assert set(seen) == {short, long}


def test_a_vault_that_replaced_its_key_in_place_would_be_caught(tmp_path: Path, artefact: Artefact) -> None:
    """The control: a change of keys without generations, killed between the vault key and the content keys."""
    vault = open_vault(tmp_path)
    vault.initialise()
    vault.import_release(tmp_path / "plain/probe/1.0.0")
    here = tmp_path / "device/vault/generations/1"
    other = tmp_path / "other"
    shutil.copytree(tmp_path / "device", other / "device")
    subprocess.run(
        kills.victim("rotate", other),
        check=True,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])},
    )
    shutil.copy(other / "device/vault/generations/2/vault.key", here / "vault.key")
    with pytest.raises(Exception, match="was changed or is damaged"):
        open_vault(tmp_path).check()
    assert read_release(tmp_path / "device/models/probe/1.0.0").is_sealed
