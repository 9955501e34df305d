"""Content keys, boot states, and files that are private from the first moment."""

import os
from pathlib import Path

import pytest
from nacl.public import PrivateKey, SealedBox

from cloud_bridge.identity.contentkeys import ContentKeys
from cloud_bridge.identity.errors import IdentityError, RefusedError
from cloud_bridge.identity.files import create_file, read_private, write_file
from cloud_bridge.identity.states import BootState, matching, read_pcrs
from tests.cloud_bridge.identity.kit import Desk

DIGEST = "ab" * 32
A, B, C = (bytes([n]) * 32 for n in (1, 2, 3))


def test_a_content_key_is_made_once_and_kept_encrypted(desk: Desk, tmp_path: Path) -> None:
    key = desk.keys.create("person/1", DIGEST)
    assert desk.keys.find("person/1") == key
    assert key.key not in (tmp_path / "identity.db").read_bytes() + (tmp_path / "identity.db-wal").read_bytes()
    assert key.key.hex() not in repr(key)
    with pytest.raises(IdentityError, match="already"):
        desk.keys.create("person/1", DIGEST)
    with pytest.raises(IdentityError, match="no content key"):
        desk.keys.find("person/2")


def test_a_copy_of_the_database_without_the_key_file_opens_nothing(desk: Desk, tmp_path: Path) -> None:
    desk.keys.create("person/1", DIGEST)
    thief = ContentKeys(desk.db, tmp_path / "other.key", lease_seconds=60, clock=desk.clock)
    with pytest.raises(IdentityError, match="cannot be decrypted"):
        thief.all()
    # The control: with the key file beside it the copy opens, so it is that file which must not be copied.
    with_key = ContentKeys(desk.db, tmp_path / "content-keys.key", lease_seconds=60, clock=desk.clock)
    assert [key.release for key in with_key.all()] == ["person/1"]


def test_a_sealed_key_cannot_be_put_under_another_release_or_digest(desk: Desk) -> None:
    desk.keys.create("person/1", DIGEST)
    with desk.db.transaction() as tx:
        tx.change("UPDATE identity_keys SET release = 'harmless/1'")
    with pytest.raises(IdentityError, match="cannot be decrypted"):
        desk.keys.all()


def test_a_device_that_comes_again_gets_the_boxes_that_were_made_for_it(desk: Desk, tmp_path: Path) -> None:
    desk.keys.create("person/1", DIGEST)
    desk.keys.create("person/2", DIGEST, ["dock-8"])
    dock_7, dock_8 = PrivateKey.generate(), PrivateKey.generate()

    def boxes(keys: ContentKeys, gateway: str, device: PrivateKey) -> dict[str, bytes]:
        grants = keys.wrap_for(gateway, bytes(device.public_key), keys.all())
        for each in grants:
            assert SealedBox(device).decrypt(each.wrapped_key) == keys.find(each.release).key
        return {each.release: each.wrapped_key for each in grants}

    first = boxes(desk.keys, "dock-7", dock_7)
    assert list(first) == ["person/1"]
    assert boxes(desk.keys, "dock-7", dock_7) == first
    others = boxes(desk.keys, "dock-8", dock_8)
    assert list(others) == ["person/1", "person/2"]
    # Controls: another recipient of the same device; one that remembers only one, and so makes all anew.
    assert boxes(desk.keys, "dock-7", PrivateKey.generate()) != first
    forgetful = ContentKeys(desk.db, tmp_path / "content-keys.key", lease_seconds=60, clock=desk.clock, max_boxes=1)
    assert boxes(forgetful, "dock-8", dock_8).keys() == others.keys()
    assert boxes(forgetful, "dock-8", dock_8) != boxes(forgetful, "dock-8", dock_8)
    # A key that was taken back goes to nobody, remembered or not.
    desk.keys.revoke("person/1")
    assert boxes(desk.keys, "dock-7", dock_7) == {}


@pytest.mark.parametrize(("release", "digest"), [("", DIGEST), ("a b", DIGEST), ("x" * 200, DIGEST), ("a", "AB" * 32)])
def test_names_and_digests_are_checked(desk: Desk, release: str, digest: str) -> None:
    with pytest.raises(IdentityError):
        desk.keys.create(release, digest)


def test_a_key_file_that_is_damaged_or_open_to_others_is_refused(desk: Desk, tmp_path: Path) -> None:
    file = tmp_path / "content-keys.key"
    file.chmod(0o640)
    with pytest.raises(IdentityError, match="0640"):
        ContentKeys(desk.db, file, lease_seconds=60, clock=desk.clock)
    file.chmod(0o600)
    file.write_bytes(b"short")
    with pytest.raises(IdentityError, match="32 bytes"):
        ContentKeys(desk.db, file, lease_seconds=60, clock=desk.clock)


def test_the_state_that_matches_is_found_and_else_the_nearest_is_named() -> None:
    states = [BootState("new", {7: A, 11: B}), BootState("old", {7: A, 11: C})]
    assert matching(states, {4: A, 7: A, 11: C}).name == "old"
    with pytest.raises(RefusedError, match="PCR 7: not as in 'new'") as caught:
        matching(states, {4: A, 7: C, 11: B})
    assert caught.value.pcrs == (7,)
    assert caught.value.evidence == {"4": A.hex(), "7": C.hex(), "11": B.hex()}


def test_a_register_that_was_not_quoted_never_matches() -> None:
    with pytest.raises(RefusedError) as caught:
        matching([BootState("one", {7: A, 11: B})], {7: A})
    assert caught.value.pcrs == (11,)


def test_registers_are_read_from_both_forms_of_the_file() -> None:
    text = A.hex()
    assert read_pcrs(f'{{"pcrs":{{"11":"{text}","7":"0x{text}"}}}}'.encode()) == {7: A, 11: A}
    assert read_pcrs(f'{{"11":"{text}"}}'.encode()) == {11: A}


@pytest.mark.parametrize(
    "document", ["", "[]", "{}", '{"pcrs":{}}', '{"24":"' + "00" * 32 + '"}', '{"1":"00"}', '{"1":"' + "zz" * 32 + '"}']
)
def test_a_file_without_usable_registers_is_an_error(document: str) -> None:
    with pytest.raises(IdentityError):
        read_pcrs(document.encode())


def test_a_private_file_is_made_once_whole_and_for_its_owner_alone(tmp_path: Path) -> None:
    file = tmp_path / "sub" / "key"
    old = os.umask(0)
    try:
        assert create_file(file, b"one")
        assert not create_file(file, b"two")
    finally:
        os.umask(old)
    assert read_private(file) == b"one"
    assert file.stat().st_mode & 0o777 == 0o600
    assert file.parent.stat().st_mode & 0o777 == 0o700
    write_file(file, b"three", 0o600)
    assert read_private(file) == b"three"
    assert [one.name for one in file.parent.iterdir()] == ["key"]


def test_a_place_where_nothing_can_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(IdentityError, match="file"):
        write_file(tmp_path / "file" / "key", b"", 0o600)
    with pytest.raises(IdentityError, match="nowhere"):
        read_private(tmp_path / "nowhere")
