"""Keys: thresholds, changes, keys that are elsewhere, and what a thief can and cannot do."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from tuf.api.exceptions import BadVersionNumberError, ExpiredMetadataError, RepositoryError
from tuf.api.metadata import Metadata, Root, Targets

from cloud_bridge.errors import BridgeError
from cloud_bridge.registry import ceremony
from cloud_bridge.registry.errors import DistrustedError, NotInitialisedError, RegistryError, SignatureMissingError
from cloud_bridge.registry.keys import load_signer, make_key, public_file
from cloud_bridge.registry.repository import TIMESTAMP_FILE
from cloud_bridge.registry.roles import RoleName
from tests.cloud_bridge.registry.kit import Site, client, listed, release, weights


def names(site: Site, memory: Path, root: bytes | None = None) -> set[str]:
    """Which models a client is offered."""
    updater = client(memory, site.registry.storage, root or site.registry.read("metadata/1.root.json"))
    return {path.split("/")[1] for path in listed(updater)}


def test_without_a_repository_every_deed_says_what_to_do(tmp_path: Path) -> None:
    site = Site(tmp_path)
    for deed in (
        lambda: site.publish(release(tmp_path)),
        site.registry.refresh,
        lambda: ceremony.status(site.registry, site.clock),
    ):
        with pytest.raises(NotInitialisedError, match="registry init"):
            deed()
    site.db.close()


def test_a_repository_is_begun_once(site: Site) -> None:
    with pytest.raises(RegistryError, match="begun already"):
        site.begin()


@pytest.mark.parametrize(
    ("answers", "complaint"),
    [({"threshold": 4}, "threshold of 4 does not fit 3"), ({"threshold": 1, "root_keys": 0}, "does not fit 0")],
)
def test_thresholds_that_cannot_be_met_are_refused(tmp_path: Path, answers: dict[str, int], complaint: str) -> None:
    site = Site(tmp_path)
    with pytest.raises(RegistryError, match=complaint):
        site.begin(**answers)
    assert not (tmp_path / "keys" / "root.json").exists()
    site.db.close()


def test_private_keys_are_private_and_may_have_a_passphrase(tmp_path: Path) -> None:
    site = Site(tmp_path).begin(passphrase=b"correct horse")
    [first, *_] = site.root_keys()
    assert first.stat().st_mode & 0o777 == 0o600
    assert b"ENCRYPTED" in first.read_bytes()
    with pytest.raises(RegistryError, match="passphrase"):
        load_signer(first)
    with pytest.raises(RegistryError, match="passphrase"):
        load_signer(first, b"battery staple")
    load_signer(first, b"correct horse")
    first.chmod(0o644)
    with pytest.raises(BridgeError, match="others may read"):
        load_signer(first, b"correct horse")
    site.db.close()


@pytest.mark.parametrize("role", ["timestamp", "snapshot", "targets"])
def test_a_key_can_be_changed_and_clients_follow(site: Site, tmp_path: Path, role: RoleName) -> None:
    site.publish(release(tmp_path, name="before"))
    assert names(site, tmp_path / "old") == {"before"}
    [old] = site.registry.repository.root().signed.roles[role].keyids
    state = ceremony.rotate_key(site.registry, role, site.clock, root_keys=site.root_keys()[:2])
    assert state.keyid != old
    site.publish(release(tmp_path, name="after"))
    assert names(site, tmp_path / "old") == {"before", "after"}
    assert names(site, tmp_path / "new") == {"before", "after"}
    [now] = site.registry.repository.root().signed.roles[role].keyids
    assert now == state.keyid


def test_a_key_that_was_changed_signs_nothing_more(site: Site, tmp_path: Path) -> None:
    stolen = tmp_path / "stolen"
    shutil.copytree(site.registry.keys.online, stolen)
    ceremony.rotate_key(site.registry, "targets", site.clock, root_keys=site.root_keys()[:2])
    for file in site.registry.keys.online.glob("targets-*.pem*"):
        file.unlink()
    shutil.copy(stolen / "targets-1.pem", site.registry.keys.online)
    waiting = site.publish(release(tmp_path)).waiting
    assert "targets version" in waiting
    assert names(site, tmp_path / "client") == set()


def test_a_root_key_can_be_changed_and_clients_follow(site: Site, tmp_path: Path) -> None:
    site.publish(release(tmp_path))
    assert names(site, tmp_path / "old") == {"detector"}
    root = site.registry.repository.root().signed
    gone = load_signer(site.root_keys()[2]).public_key.keyid
    ceremony.rotate_key(site.registry, "root", site.clock, root_keys=site.root_keys()[:2], old=gone[:12])
    newer = site.registry.repository.root().signed
    assert newer.version == root.version + 1
    assert gone not in newer.roles["root"].keyids
    assert names(site, tmp_path / "old") == names(site, tmp_path / "new") == {"detector"}


def test_too_few_root_keys_change_nothing_and_the_others_can_sign_elsewhere(site: Site, tmp_path: Path) -> None:
    first, second, _ = site.root_keys()
    before = site.registry.read(TIMESTAMP_FILE)
    with pytest.raises(SignatureMissingError, match="root version 2 needs 1 more"):
        ceremony.rotate_key(site.registry, "timestamp", site.clock, root_keys=[first])
    assert site.registry.read(TIMESTAMP_FILE) == before
    assert ceremony.status(site.registry, site.clock).waiting == {"root": 1}
    [document] = ceremony.export_staged(site.registry, tmp_path / "carried")
    assert ceremony.import_signed(site.registry, [document]) == {"root": 1}
    assert ceremony.sign_file(document, second, None) == ("root", 2)
    assert ceremony.import_signed(site.registry, [document]) == {"root": 0}
    assert site.registry.repository.root().signed.version == 2
    assert names(site, tmp_path / "client") == set()
    assert ceremony.status(site.registry, site.clock).waiting == {}


def test_one_root_key_of_three_is_not_believed(site: Site, tmp_path: Path) -> None:
    """The control of the threshold: a root with one good signature is in the store, and nobody follows it."""
    forged = Metadata[Root].from_bytes(site.registry.read("metadata/1.root.json"))
    forged.signed.version = 2
    forged.signatures.clear()
    forged.sign(load_signer(site.root_keys()[0]))
    site.registry.storage.write("metadata/2.root.json", forged.to_bytes())
    with pytest.raises(RepositoryError):
        names(site, tmp_path / "client")
    with pytest.raises(DistrustedError, match=r"2\.root\.json"):
        site.registry.refresh()


def test_a_key_that_is_brought_to_begin_is_not_kept(tmp_path: Path) -> None:
    offline = tmp_path / "safe" / "targets.pem"
    key = make_key(offline)
    site = Site(tmp_path).begin(targets_keys=(offline,))
    assert site.registry.repository.root().signed.roles["targets"].keyids == [key.keyid]
    assert key.keyid not in site.registry.keys.signers()
    assert site.publish(release(tmp_path)).waiting
    assert names(site, tmp_path / "client") == set()
    site.db.close()


def begun_with_offline_targets(tmp_path: Path) -> tuple[Site, Path]:
    offline = tmp_path / "safe" / "targets.pem"
    make_key(offline)
    site = Site(tmp_path).begin()
    with pytest.raises(SignatureMissingError):
        ceremony.rotate_key(
            site.registry, "targets", site.clock, root_keys=site.root_keys()[:2], new_public=public_file(offline)
        )
    carried = ceremony.export_staged(site.registry, tmp_path / "carried")
    for document in carried:
        if document.name == "targets.json":
            ceremony.sign_file(document, offline, None)
    assert not any(ceremony.import_signed(site.registry, carried).values())
    return site, offline


def test_a_release_waits_for_a_key_that_is_elsewhere(tmp_path: Path) -> None:
    site, offline = begun_with_offline_targets(tmp_path)
    one = site.publish(release(tmp_path, "1.0.0", weights(1)))
    two = site.publish(release(tmp_path, "1.1.0", weights(1, 0.1)))
    assert "targets version" in one.waiting
    assert "targets version" in two.waiting
    assert site.registry.releases() == []
    assert [entry.version for entry in site.registry.unsigned()] == ["1.0.0", "1.1.0"]
    assert names(site, tmp_path / "client") == set()
    [document] = ceremony.export_staged(site.registry, tmp_path / "carried")
    ceremony.sign_file(document, offline, None)
    assert ceremony.import_signed(site.registry, [document]) == {"targets": 0}
    assert [entry.version for entry in site.registry.releases()] == ["1.0.0", "1.1.0"]
    assert names(site, tmp_path / "client") == {"detector"}
    site.clock.pass_days(20)
    site.registry.refresh()  # snapshot and timestamp need no key that is elsewhere
    site.db.close()


def signed(site: Site, offline: Path, to: Path) -> None:
    """Carry what waits to the key, and back."""
    [document] = ceremony.export_staged(site.registry, to)
    ceremony.sign_file(document, offline, None)
    assert ceremony.import_signed(site.registry, [document]) == {"targets": 0}


def test_what_a_killed_publisher_has_left_to_sign_takes_nothing_back(tmp_path: Path) -> None:
    """The list counted already when it was killed, and an older one still lay there to be signed."""
    site, offline = begun_with_offline_targets(tmp_path)
    site.publish(release(tmp_path, "1.0.0", weights(1)))
    waits = site.registry.keys.staged / "targets.json"
    older = waits.read_bytes()
    site.publish(release(tmp_path, "1.1.0", weights(1, 0.1)))
    signed(site, offline, tmp_path / "first")
    waits.write_bytes(older)
    assert "1.1.0" not in older.decode(), "the control: what is made of this lacks a release"
    assert ceremony.status(site.registry, site.clock).waiting == {}
    with pytest.raises(RegistryError, match="nothing waits"):
        ceremony.export_staged(site.registry, tmp_path / "none")
    site.publish(release(tmp_path, "1.2.0", weights(1, 0.2)))
    signed(site, offline, tmp_path / "second")
    assert [(one.version, one.yanked_ns) for one in site.registry.releases()] == [
        ("1.0.0", None), ("1.1.0", None), ("1.2.0", None)
    ]  # fmt: skip
    site.db.close()


def test_a_change_of_the_root_that_counts_already_stands_in_no_ones_way(site: Site, tmp_path: Path) -> None:
    first, second, _ = site.root_keys()
    with pytest.raises(SignatureMissingError):
        ceremony.rotate_key(site.registry, "timestamp", site.clock, root_keys=[first])
    waits = site.registry.keys.staged / "root.json"
    left = waits.read_bytes()
    with pytest.raises(RegistryError, match="another change of keys waits"):  # the control: this one does wait
        ceremony.rotate_key(site.registry, "snapshot", site.clock, root_keys=[first, second])
    [document] = ceremony.export_staged(site.registry, tmp_path / "carried")
    ceremony.sign_file(document, second, None)
    assert ceremony.import_signed(site.registry, [document]) == {"root": 0}
    waits.write_bytes(left)
    ceremony.rotate_key(site.registry, "snapshot", site.clock, root_keys=[first, second])
    assert site.registry.repository.root().signed.version == 3


def test_a_document_that_was_changed_on_the_way_is_refused(tmp_path: Path) -> None:
    site, offline = begun_with_offline_targets(tmp_path)
    site.publish(release(tmp_path))
    [document] = ceremony.export_staged(site.registry, tmp_path / "carried")
    changed = Metadata[Targets].from_bytes(document.read_bytes())
    changed.signed.targets.clear()
    changed.to_file(str(document))
    ceremony.sign_file(document, offline, None)
    with pytest.raises(RegistryError, match="not the targets document that waits"):
        ceremony.import_signed(site.registry, [document])
    site.db.close()


def test_metadata_is_renewed_before_it_ends(site: Site, tmp_path: Path) -> None:
    site.publish(release(tmp_path))
    assert not site.registry.refresh().renewed
    site.clock.pass_days(4)
    done = site.registry.refresh()
    assert done.renewed
    assert done.signed.timestamp.signed.expires.timestamp() > site.clock.now_ns / 1e9 + 6 * 86_400
    assert not site.registry.refresh().renewed


def test_the_list_of_targets_is_renewed_while_its_key_is_here(site: Site) -> None:
    site.clock.pass_days(200)
    done = site.registry.refresh()
    assert done.signed.targets.signed.expires.timestamp() > site.clock.now_ns / 1e9 + 360 * 86_400
    assert not site.registry.refresh().renewed


def test_the_list_of_targets_waits_for_a_person_where_its_key_is_elsewhere(tmp_path: Path) -> None:
    site, offline = begun_with_offline_targets(tmp_path)
    site.clock.pass_days(200)
    version = site.registry.refresh().signed.targets.signed.version
    assert not site.registry.refresh().renewed, "the bridge does not try in vain again and again"
    with pytest.raises(SignatureMissingError):
        site.registry.refresh(targets=True)
    [document] = ceremony.export_staged(site.registry, tmp_path / "carried")
    ceremony.sign_file(document, offline, None)
    ceremony.import_signed(site.registry, [document])
    assert site.registry.refresh().signed.targets.signed.version > version
    site.db.close()


def test_metadata_that_nobody_renews_ends_and_clients_notice(tmp_path: Path) -> None:
    """The control of the renewal: with a clock that stood still eight days ago."""
    site = Site(tmp_path)
    site.clock.pass_days(-8)
    site.begin()
    with pytest.raises(ExpiredMetadataError):
        names(site, tmp_path / "client")
    site.clock.pass_days(8)
    site.registry.refresh()
    assert names(site, tmp_path / "client") == set()
    site.db.close()


def test_a_thief_of_the_store_cannot_have_his_release_signed(site: Site, tmp_path: Path) -> None:
    site.publish(release(tmp_path))
    version = site.registry.refresh().signed.targets.signed.version
    file = tmp_path / "repository" / "metadata" / f"{version}.targets.json"
    file.write_bytes(file.read_bytes().replace(b'"detector"', b'"d3tector"'))
    with pytest.raises(DistrustedError, match="not the one that was signed"):
        site.publish(release(tmp_path, name="other"))
    with pytest.raises(DistrustedError):
        site.registry.refresh(force=True)


def test_an_older_copy_of_the_store_is_noticed(site: Site, tmp_path: Path) -> None:
    site.publish(release(tmp_path, "1.0.0"))
    shutil.copytree(tmp_path / "repository", tmp_path / "backup")
    site.publish(release(tmp_path, "1.1.0"))
    assert names(site, tmp_path / "client") == {"detector"}
    shutil.rmtree(tmp_path / "repository")
    shutil.copytree(tmp_path / "backup", tmp_path / "repository")
    with pytest.raises(BadVersionNumberError):
        names(site, tmp_path / "client")
    made = release(tmp_path, "1.2.0")
    with pytest.raises(DistrustedError, match="--take-older"):
        site.publish(made)
    site.registry.refresh(take_older="the disk broke, this is last night's copy")
    assert names(site, tmp_path / "client") == {"detector"}, "versions go on above those that clients have seen"
    assert [entry.version for entry in site.registry.releases() if entry.is_offered] == ["1.0.0"]
    assert site.publish(made).entry.token == 3


def test_a_lost_database_is_filled_from_what_is_signed(site: Site, tmp_path: Path) -> None:
    entry = site.publish(release(tmp_path)).entry
    with site.db.transaction() as tx:
        for table in ("registry_releases", "registry_facts"):
            tx.change(f"DELETE FROM {table}")
    [adopted] = site.registry.refresh().settled
    assert (adopted.token, adopted.digest, adopted.is_offered) == (entry.token, entry.digest, True)
    assert adopted.state == "candidate", "nobody knows any more that it was approved"
    assert site.publish(release(tmp_path, name="other")).entry.token == 2


def test_status_names_the_keys_that_should_not_be_here(site: Site) -> None:
    found = ceremony.status(site.registry, site.clock)
    assert any("move" in warning for warning in found.warnings)
    for file in site.root_keys():
        file.unlink()
        public_file(file).unlink()
    found = ceremony.status(site.registry, site.clock)
    assert found.warnings == ()
    assert [key.file for key in found.keys if key.role == "root"] == [None] * 3


def test_an_exported_copy_serves_as_well(site: Site, tmp_path: Path) -> None:
    site.publish(release(tmp_path))
    stick = tmp_path / "stick"
    assert site.registry.export(stick) > 0
    other = Site(tmp_path / "elsewhere", knobs={"url": str(stick)})
    updater = client(tmp_path / "client", other.registry.storage, site.registry.read("metadata/1.root.json"))
    assert "models/detector/1.0.0/manifest.json" in listed(updater)
    other.db.close()


@pytest.mark.timeout(60)
def test_what_is_no_plain_file_or_too_large_is_not_read(site: Site, tmp_path: Path) -> None:
    pipe, huge, document = tmp_path / "pipe", tmp_path / "huge", tmp_path / "root.json"
    os.mkfifo(pipe, 0o600)
    document.write_bytes(site.registry.keys.root_file.read_bytes())
    key, *_ = site.root_keys()
    deeds: list[Callable[[Path], object]] = [
        lambda file: ceremony.sign_file(file, key, None),
        lambda file: ceremony.sign_file(document, file, None),
        lambda file: ceremony.import_signed(site.registry, [file]),
        lambda file: ceremony.rotate_key(site.registry, "timestamp", site.clock, root_keys=[file]),
        lambda file: ceremony.rotate_key(site.registry, "timestamp", site.clock, root_keys=[key], new_public=file),
    ]
    with huge.open("wb") as file:
        file.truncate(17 << 20)
    huge.chmod(0o600)
    for deed in deeds:
        with pytest.raises(BridgeError, match="pipe: is no plain file"):
            deed(pipe)
        with pytest.raises(BridgeError, match="huge: has 17,825,792 bytes; at most"):
            deed(huge)
        with pytest.raises(BridgeError, match="zero: is no plain file"):
            deed(Path("/dev/zero"))
