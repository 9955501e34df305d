"""What a device believes of a repository; scenarios of the public TUF conformance suite among them, by its names.

Each protection has its control: the same act where it should be let through, or with the protection taken away.
"""

import json
import shutil
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from securesystemslib.signer import CryptoSigner

from gateway.ota.clock import BUILT_NS
from gateway.ota.errors import (
    BadReleaseError,
    ExpiredError,
    FetchError,
    IncompleteError,
    MalformedMetadataError,
    MismatchError,
    NoRootError,
    NotOfferedError,
    NotThereError,
    OtaError,
    RollbackError,
    SignatureError,
    StorageError,
    TooLongError,
    TrustError,
    WrongHardwareError,
)
from gateway.ota.floor import Floor
from gateway.ota.trust import Floors
from gateway.ota.trust_store import MetadataFiles
from gateway.ota.ways import DirectoryWay
from tests.gateway.ota.trust_rig import Device, nanoseconds
from tests.simulators.hostile_repository import SignedRepository


@pytest.fixture
def served() -> SignedRepository:
    return SignedRepository()


@pytest.fixture
def device(tmp_path: Path, served: SignedRepository) -> Device:
    (tmp_path / "state").mkdir()
    return Device(tmp_path / "state", served, tmp_path / "stick")


def versions(device: Device) -> dict[str, int | None]:
    return {role: device.version(role) for role in ("root", "timestamp", "snapshot", "targets")}


# ---- basics -------------------------------------------------------------------------------------------------


def test_basic_init_and_refresh(device: Device) -> None:
    device.refresh()
    assert versions(device) == {"root": 1, "timestamp": 1, "snapshot": 1, "targets": 1}


def test_a_refresh_leaves_plain_files_alone_and_no_link(device: Device) -> None:
    device.refresh()
    found = [file for file in device.state.rglob("*") if not file.is_dir()]
    assert not [file for file in found if file.is_symlink()]
    assert not [file for file in found if file.name.endswith(".part")]


def test_unsigned_initial_root(device: Device) -> None:
    root = json.loads(device.served.anchor)
    for signature in root["signatures"]:
        signature["sig"] = "00" * 64
    device.root_file.write_text(json.dumps(root))
    with pytest.raises(SignatureError, match="root"):
        device.refresh()


def test_invalid_initial_root(device: Device) -> None:
    anchor = device.root_file.read_bytes()
    device.served.save(device.stick)
    device.root_file.write_text("{}")
    repository = device.repository()
    with pytest.raises(MalformedMetadataError) as refused:
        repository.refresh()
    assert f"ota.root_file {device.root_file} is no root to begin with" in str(refused.value)
    device.root_file.write_bytes(anchor)
    repository.refresh()  # what is put there counts from the next refresh on


def test_without_its_root_file_nothing_is_believed_until_it_is_there(device: Device) -> None:
    anchor = device.root_file.read_bytes()
    device.served.save(device.stick)
    device.root_file.unlink()
    repository = device.repository()
    with pytest.raises(NoRootError, match="root_file"):
        repository.refresh()
    device.root_file.write_bytes(anchor)
    repository.refresh()


def test_a_cached_root_is_no_anchor(device: Device) -> None:
    """Who can write the cache must not be able to bring a root of their own."""
    device.refresh()
    (device.state / "ota/metadata/root.json").write_bytes(SignedRepository().anchor)
    device.refresh()
    assert (device.state / "ota/metadata/root.json").read_bytes() == device.served.anchor


def test_custom_fields(device: Device) -> None:
    device.served.root.unrecognized_fields["custom-field"] = "value"
    device.served.root.version += 1
    device.served.publish_root()
    device.refresh()
    assert device.version("root") == 2


def test_timestamp_eq_versions_check(device: Device) -> None:
    device.refresh()
    device.served.timestamp.snapshot_meta.version = 100
    device.served.put("timestamp")
    device.refresh()
    kept = json.loads((device.state / "ota/metadata/timestamp.json").read_bytes())
    assert kept["signed"]["meta"]["snapshot.json"]["version"] == 1


def test_max_root_rotations(device: Device) -> None:
    for _ in range(5):
        device.served.root.version += 1
        device.served.publish_root()
    device.refresh()
    assert device.version("root") == 6


# ---- arbitrary software: signatures --------------------------------------------------------------------------


def test_root_has_keys_but_not_enough_signatures(device: Device) -> None:
    device.served.root.version += 1
    one = device.served.signed("root", signers=device.served.signers["root"][:1])
    device.served.files["metadata/2.root.json"] = one
    with pytest.raises(SignatureError):
        device.refresh()
    assert device.version("root") == 1
    device.served.files["metadata/2.root.json"] = device.served.signed(
        "root", signers=device.served.signers["root"][:2]
    )
    device.refresh()  # control: two of three are enough
    assert device.version("root") == 2


def test_the_same_signature_twice_counts_once(device: Device) -> None:
    device.served.root.version += 1
    document = json.loads(device.served.signed("root", signers=device.served.signers["root"][:1]))
    document["signatures"] *= 2
    device.served.files["metadata/2.root.json"] = json.dumps(document).encode()
    with pytest.raises(TrustError):
        device.refresh()


@pytest.mark.parametrize("role", ["timestamp", "snapshot", "targets"])
@pytest.mark.parametrize("whose", ["nobody's", "a stranger's", "another role's"])
def test_a_role_signed_by_others_is_refused(device: Device, role: str, whose: str) -> None:
    device.refresh()
    other = "snapshot" if role == "timestamp" else "timestamp"
    strangers = {
        "nobody's": [],
        "a stranger's": [CryptoSigner.generate_ed25519()],
        "another role's": device.served.signers[other],
    }
    device.served.hashes = False  # else the digest in the role above catches it first
    own, device.served.signers[role] = device.served.signers[role], strangers[whose]
    device.served.publish()
    with pytest.raises(SignatureError, match=role):
        device.refresh()
    device.served.signers[role] = own
    device.served.publish()
    device.refresh()  # control: with its own key


@pytest.mark.parametrize("role", ["timestamp", "snapshot", "targets"])
@pytest.mark.parametrize("where", ["first", "signature", "signed", "last"])
def test_a_flipped_byte_in_metadata_is_refused(device: Device, role: str, where: str) -> None:
    path = "metadata/timestamp.json" if role == "timestamp" else f"metadata/1.{role}.json"
    content = bytearray(device.served.files[path])
    at = {"first": 0, "signature": content.index(b'"sig"') + 10, "signed": content.index(b'"version"') + 2, "last": -2}
    content[at[where]] ^= 0x11
    good, device.served.files[path] = device.served.files[path], bytes(content)
    with pytest.raises(TrustError):
        device.refresh()
    assert device.version(role) is None
    device.served.files[path] = good
    device.refresh()


def test_wrong_metadata_type(device: Device) -> None:
    device.served.files["metadata/timestamp.json"] = device.served.signed("snapshot")
    with pytest.raises(TrustError, match="timestamp"):
        device.refresh()


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[" * 15_000, b'{"signed": {}, "signatures": []}', b"\xff\xfe", b"9" * 10_000],
    ids=["empty", "cut", "deep", "hollow", "no text", "a large number"],
)
def test_nonsense_is_malformed_and_nothing_worse(device: Device, content: bytes) -> None:
    device.served.files["metadata/timestamp.json"] = content
    with pytest.raises(TrustError):
        device.refresh()


def test_a_dishonest_length_in_metadata_is_capped_before_it_is_parsed(device: Device) -> None:
    device.served.files["metadata/timestamp.json"] += b" " * 20_000
    with pytest.raises(TooLongError, match="16384"):
        device.refresh()
    device.served.files["metadata/timestamp.json"] = (
        device.served.files["metadata/timestamp.json"].strip() + b" " * 9_000
    )
    device.refresh()  # control: still JSON, and within the cap


# ---- rollback ------------------------------------------------------------------------------------------------


def test_new_timestamp_version_rollback(device: Device) -> None:
    old = dict(device.served.files)
    device.served.publish(targets=False, snapshot=False)
    device.refresh()
    device.served.files["metadata/timestamp.json"] = old["metadata/timestamp.json"]
    with pytest.raises(RollbackError):
        device.refresh()
    assert device.version("timestamp") == 2


@pytest.mark.parametrize("hashes", [False, True])
def test_snapshot_rollback(device: Device, hashes: bool) -> None:
    device.served.hashes = hashes
    device.served.publish(targets=False)
    device.refresh()
    device.served.snapshot.version = 0
    device.served.publish(targets=False)
    with pytest.raises(RollbackError):
        device.refresh()
    assert (device.version("timestamp"), device.version("snapshot")) == (2, 2)


@pytest.mark.parametrize("hashes", [False, True])
def test_targets_rollback(device: Device, hashes: bool) -> None:
    device.served.hashes = hashes
    device.served.publish()
    device.refresh()
    device.served.targets.version = 0
    device.served.publish()
    with pytest.raises(RollbackError):
        device.refresh()
    assert (device.version("snapshot"), device.version("targets")) == (2, 2)


def test_a_deleted_cache_does_not_make_the_device_forget(device: Device) -> None:
    old = dict(device.served.files)
    device.served.publish()
    device.refresh()
    device.forget_cache()
    device.served.files = old
    with pytest.raises(RollbackError, match="accepted before"):
        device.refresh()
    # Control: without the floors, the replayed state, which is validly signed and has not expired, is believed.
    device.forget_cache()
    (device.state / "ota/floors.json").unlink()
    device.refresh()
    assert device.version("timestamp") == 1


def test_an_older_root_is_not_believed_again_after_the_cache_is_gone(device: Device) -> None:
    """Else a key that the newer root took back would count again."""
    stolen = device.served.rotate("timestamp")
    device.served.root.version = 2
    device.served.publish_root()
    device.served.publish()
    device.refresh()
    device.forget_cache()
    device.served.files.pop("metadata/2.root.json")
    (device.stick / "metadata/2.root.json").unlink()
    device.served.signers["timestamp"] = stolen
    device.served.publish()
    with pytest.raises(RollbackError, match="root"):
        device.refresh()
    (device.state / "ota/floors.json").unlink()
    device.forget_cache()
    device.refresh()  # control: without the floors the stolen key works


def test_damaged_floors_are_put_aside_and_the_cache_still_holds_the_line(device: Device) -> None:
    old = dict(device.served.files)
    device.served.publish()
    device.refresh()
    floors = device.state / "ota/floors.json"
    floors.write_bytes(b"\0" * 100)
    device.served.files = old
    with pytest.raises(RollbackError):
        device.refresh()
    assert floors.with_name("floors.json.damaged").exists()
    assert Floor(floors).read().timestamp == 2


def test_floors_join_to_the_higher_and_never_mix_keys() -> None:
    mine = Floors(root=2, timestamp=5, snapshot=1, targets=1, keys="a", fresh_ns=9)
    assert mine.joined(Floors(root=1, timestamp=7, keys="a")).timestamp == 7
    assert mine.joined(Floors(root=3, timestamp=3, keys="b")) == Floors(root=3, timestamp=3, keys="b", fresh_ns=9)
    assert mine.joined(Floors(root=1, timestamp=9, keys="b")) == mine


# ---- recovery from fast-forward; rotation ------------------------------------------------------------------------


@pytest.mark.parametrize("role", ["timestamp", "snapshot", "targets"])
def test_fast_forward_recovery(device: Device, role: str) -> None:
    """Somebody with a stolen key has pushed a version up; new keys in the root let the numbers begin anew."""
    getattr(device.served, role).version = 99_998
    device.served.publish()
    device.refresh()
    assert device.version(role) == 99_999
    getattr(device.served, role).version = 1
    device.served.publish()
    with pytest.raises(RollbackError):
        device.refresh()
    for each in ("timestamp", "snapshot", role):
        device.served.rotate(each)
    device.served.root.version += 1
    device.served.publish_root()
    device.served.publish()
    device.refresh()
    assert device.version(role) == 3


def test_rotate_root_key_and_refuse_the_old_one(device: Device) -> None:
    old = device.served.rotate("root", 3)
    device.served.root.roles["root"].threshold = 2
    device.served.root.version = 2
    device.served.files["metadata/2.root.json"] = device.served.signed(
        "root", signers=[*old[:2], *device.served.signers["root"]]
    )
    device.refresh()
    assert device.version("root") == 2
    device.served.root.version = 3
    device.served.files["metadata/3.root.json"] = device.served.signed("root", signers=old)
    with pytest.raises(SignatureError):
        device.refresh()
    assert device.version("root") == 2


@pytest.mark.parametrize("version", [1, 3])
def test_incorrect_root_version(device: Device, version: int) -> None:
    device.served.root.version = version
    device.served.files["metadata/2.root.json"] = device.served.signed("root")
    with pytest.raises(TrustError):
        device.refresh()
    assert device.version("root") == 1


# ---- freeze, expiry, clocks ------------------------------------------------------------------------------------


def test_a_frozen_repository_is_refused_and_told_and_nothing_stops(device: Device) -> None:
    device.served.add_release("press", "1.0.0")
    device.served.publish()
    device.refresh()
    device.later(days=6)
    assert device.refresh().stale_since_ns is None  # control: the same bytes, before they expire
    device.later(days=2)
    repository = device.repository()
    with pytest.raises(ExpiredError, match="held back"):
        repository.refresh()
    assert repository.stale_since_ns is not None
    device.served.timestamp.expires = device.wall.replace(tzinfo=UTC) + timedelta(days=7)
    device.served.publish(targets=False, snapshot=False)
    assert device.refresh().stale_since_ns is None


@pytest.mark.parametrize("starts_anew", [False, True])
def test_what_has_expired_while_nobody_answers_is_stale(device: Device, *, starts_anew: bool) -> None:
    device.settings["stale_after_days"] = 30.0
    expires = device.served.timestamp.expires
    repository = device.refresh()
    shutil.rmtree(device.stick)
    if starts_anew:
        repository = device.repository()
        with pytest.raises(FetchError):
            repository.refresh()
    device.wall = expires - timedelta(seconds=1)
    assert repository.stale_since_ns is None, "the control: a second before"
    device.wall = expires + timedelta(hours=1)
    assert repository.stale_since_ns == nanoseconds(expires), "though nobody was asked"
    with pytest.raises(FetchError):
        repository.refresh()
    assert repository.stale_since_ns == nanoseconds(expires), "and though nobody answered"


def test_what_another_program_has_imported_meanwhile_ends_the_staleness(device: Device) -> None:
    gateway = device.refresh()
    shutil.rmtree(device.stick)
    device.later(days=8)
    assert gateway.stale_since_ns is not None
    device.served.timestamp.expires = device.wall.replace(tzinfo=UTC) + timedelta(days=7)
    device.served.publish(targets=False, snapshot=False)
    device.refresh()  # as `gateway ota import` does
    shutil.rmtree(device.stick)
    with pytest.raises(FetchError):
        gateway.refresh()
    assert gateway.stale_since_ns is None


def test_a_source_that_is_gone_for_long_makes_the_metadata_stale(device: Device) -> None:
    device.settings["stale_after_days"] = 2.0
    device.refresh()
    device.later(days=1)
    assert device.repository().stale_since_ns is None
    device.later(days=2)
    since = device.repository().stale_since_ns
    assert since == nanoseconds(device.wall - timedelta(days=1))


@pytest.mark.parametrize("role", ["root", "timestamp", "snapshot", "targets"])
def test_expired_metadata(device: Device, role: str) -> None:
    getattr(device.served, role).expires = device.wall.replace(tzinfo=UTC) - timedelta(seconds=1)
    if role == "root":
        device.served.root.version += 1
        device.served.publish_root()
    device.served.publish()
    with pytest.raises(ExpiredError, match=role):
        device.refresh()
    assert device.version("targets") is None
    getattr(device.served, role).expires += timedelta(days=1)
    if role == "root":
        device.served.root.version += 1
        device.served.publish_root()
    device.served.publish()
    device.refresh()


def test_a_site_off_any_network_installs_what_was_brought_for_as_long_as_it_is_granted(device: Device) -> None:
    week = device.wall.replace(tzinfo=UTC) + timedelta(days=7)
    device.served.timestamp.expires = device.served.snapshot.expires = week
    device.served.publish()
    device.refresh()
    device.later(days=40)
    with pytest.raises(ExpiredError, match=r"`ota\.offline_days`"):
        device.repository().verify()  # the control
    device.settings["offline_days"] = 60.0
    device.repository().verify()
    device.forget_cache()
    repository = device.refresh()  # the same stick again
    device.later(days=26)
    assert repository.stale_since_ns is not None, "it is told all the same"
    repository.verify()
    device.later(days=2)
    with pytest.raises(ExpiredError):
        repository.verify()


@pytest.mark.parametrize("role", ["root", "targets"])
def test_keys_and_lists_count_no_longer_than_signed_on_such_a_site_either(device: Device, role: str) -> None:
    device.settings["offline_days"] = 60.0
    test_expired_metadata(device, role)


def test_a_clock_that_woke_up_in_1970_does_not_make_the_expired_good(device: Device) -> None:
    device.refresh()
    device.later(days=6)
    device.served.publish(targets=False, snapshot=False)
    device.refresh()
    device.wall = datetime(1970, 1, 1, tzinfo=UTC)
    device.repository().verify()  # what has not expired by the floor is good
    device.served.timestamp.expires = datetime(2026, 11, 22, tzinfo=UTC)
    device.served.publish(targets=False, snapshot=False)
    with pytest.raises(ExpiredError):
        device.refresh()
    # Control: without the remembered time, 1970 believes it.
    (device.state / "ota/floors.json").unlink()
    device.forget_cache()
    device.refresh()


def test_the_age_of_the_program_is_a_floor_of_its_own(device: Device) -> None:
    device.served.timestamp.expires = datetime(2026, 1, 1, tzinfo=UTC)
    device.served.publish(targets=False, snapshot=False)
    device.served.save(device.stick)
    device.wall = datetime(1970, 1, 1, tzinfo=UTC)
    with pytest.raises(ExpiredError):
        device.repository(built_ns=BUILT_NS).refresh()
    device.repository(built_ns=0).refresh()


def test_a_clock_in_2040_refuses_and_does_no_lasting_harm(device: Device) -> None:
    device.refresh()
    device.wall = datetime(2040, 1, 1, tzinfo=UTC)
    with pytest.raises(ExpiredError, match="clock"):
        device.refresh()
    device.wall = device.served.now + timedelta(days=1)
    device.refresh()


# ---- mix and match ---------------------------------------------------------------------------------------------


def test_a_targets_list_of_another_state_is_refused(device: Device) -> None:
    """Timestamp and snapshot of today, with the list of yesterday under today's name."""
    device.served.add_release("press", "1.0.0")
    device.served.publish()
    yesterday = device.served.files["metadata/2.targets.json"]
    device.served.add_release("press", "1.1.0", token=2)
    device.served.publish()
    today = device.served.files["metadata/3.targets.json"]
    device.served.files["metadata/3.targets.json"] = yesterday
    with pytest.raises(MismatchError, match="targets"):
        device.refresh()
    assert device.version("targets") is None
    device.served.files["metadata/3.targets.json"] = today
    assert [each.version for each in device.refresh().listed()] == ["1.1.0", "1.0.0"]


@pytest.mark.parametrize("last", ["timestamp", "snapshot"])
@pytest.mark.parametrize("is_first", [True, False])
def test_a_refresh_that_was_cut_off_says_what_brings_the_rest(device: Device, last: str, *, is_first: bool) -> None:
    if not is_first:
        device.refresh()
    device.served.add_release("press", "1.0.0")
    device.served.publish()
    device.served.save(device.stick)
    for role in ("snapshot", "targets") if last == "timestamp" else ("targets",):
        (device.stick / f"metadata/2.{role}.json").unlink()
    repository = device.repository()
    with pytest.raises(NotThereError):
        repository.refresh()
    with pytest.raises(IncompleteError, match=r"the last refresh or import was cut off.*`gateway ota refresh`"):
        repository.listed()
    assert [each.version for each in device.refresh().listed()] == ["1.0.0"], "the control: with the rest"


def test_an_older_copy_of_the_repository_is_called_that(device: Device) -> None:
    device.served.save(device.stick)
    device.served.publish()
    newer = device.stick.with_name("newer")
    device.served.save(newer)
    device.repository(DirectoryWay(newer)).refresh()
    with pytest.raises(RollbackError, match="this copy of the repository is older than what this device knows"):
        device.repository().refresh()


def test_new_snapshot_version_mismatch(device: Device) -> None:
    device.served.hashes = False
    device.served.snapshot.version += 1
    device.served.files["metadata/1.snapshot.json"] = device.served.signed("snapshot")
    with pytest.raises(TrustError):
        device.refresh()
    assert (device.version("timestamp"), device.version("snapshot")) == (1, None)


# ---- releases --------------------------------------------------------------------------------------------------


def test_an_offer_has_the_manifest_as_signed_and_every_other_file(device: Device) -> None:
    device.served.add_release("press", "1.0.0", token=7)
    device.served.publish()
    offer = device.refresh().offer("press", "1.0.0")
    assert (offer.token, offer.manifest.deployment_token) == (7, 7)
    assert [file.name for file in offer.files] == ["golden-input.bin", "golden-output.bin", "model.tflite.sealed"]
    assert json.loads(offer.manifest_bytes)["name"] == "press"


def test_an_offer_needs_no_source_once_its_manifest_is_here(device: Device) -> None:
    device.served.add_release("press", "1.0.0")
    device.served.publish()
    device.refresh().offer("press", "1.0.0")
    for file in sorted(device.stick.rglob("*"), reverse=True):
        file.rmdir() if file.is_dir() else file.unlink()
    assert device.repository().offer("press", "1.0.0").version == "1.0.0"
    device.later(days=8)
    with pytest.raises(ExpiredError):
        device.repository().offer("press", "1.0.0")


def test_a_release_that_was_taken_back_is_not_offered(device: Device) -> None:
    device.served.add_release("press", "1.0.0")
    device.served.publish()
    device.refresh().offer("press", "1.0.0")
    device.served.targets.targets.clear()
    device.served.publish()
    with pytest.raises(NotOfferedError, match="taken back"):
        device.refresh().offer("press", "1.0.0")
    assert not list((device.state / "ota/manifests").iterdir())


def test_a_part_of_what_is_not_offered_any_more_is_removed(device: Device) -> None:
    imported = device.state / "ota/imported"
    imported.mkdir(parents=True)
    path = device.served.add_release("press", "1.0.0")
    device.served.publish()
    digest = device.served.targets.targets[path].hashes["sha256"]
    (imported / f".{digest}.{digest[:16]}.part").write_bytes(b"sea")
    (imported / f".{'0' * 64}.{'0' * 16}.part").write_bytes(b"old")
    device.refresh()
    assert [file.name for file in imported.iterdir()] == [f".{digest}.{digest[:16]}.part"]


def test_a_release_for_other_hardware_is_refused(device: Device) -> None:
    device.served.add_release("press", "1.0.0", hardware=("coral-devboard",))
    device.served.add_release("press", "1.0.1", hardware=("coral-devboard", "test-board"))
    device.served.publish()
    repository = device.refresh()
    with pytest.raises(WrongHardwareError, match="coral-devboard"):
        repository.offer("press", "1.0.0")
    assert repository.offer("press", "1.0.1").version == "1.0.1"


def test_a_release_that_is_too_large_is_refused_before_anything_is_fetched(device: Device) -> None:
    device.settings["max_release_bytes"] = 1000
    device.served.add_release("press", "1.0.0", sealed=bytes(1000))
    device.served.publish()
    with pytest.raises(BadReleaseError, match="max_release_bytes"):
        device.refresh().offer("press", "1.0.0")
    device.settings["max_release_bytes"] = 10_000
    device.repository().offer("press", "1.0.0")


def _wrong_token(served: SignedRepository) -> None:
    served.targets.targets["models/press/1.0.0/manifest.json"].unrecognized_fields["custom"]["token"] = 99


def _wrong_digest(served: SignedRepository) -> None:
    served.targets.targets["models/press/1.0.0/model.tflite.sealed"].unrecognized_fields["custom"]["sha256"] = "0" * 64


def _strange_custom(served: SignedRepository) -> None:
    served.targets.targets["models/press/1.0.0/model.tflite.sealed"].unrecognized_fields["custom"] = {"kind": "virus"}


def _no_custom(served: SignedRepository) -> None:
    del served.targets.targets["models/press/1.0.0/model.tflite.sealed"].unrecognized_fields["custom"]


def _nested(served: SignedRepository) -> None:
    served.add_file("models/press/1.0.0/deeper/../x", b"x", {"kind": "golden"})


def _other_golden(served: SignedRepository) -> None:
    served.add_file("models/press/1.0.0/golden-input.bin", b"\x07", {"kind": "golden"})


@pytest.mark.parametrize(
    "spoil",
    [_wrong_token, _wrong_digest, _strange_custom, _no_custom, _nested, _other_golden],
    ids=lambda f: f.__name__,
)
def test_a_release_that_contradicts_itself_is_no_offer(
    device: Device, spoil: Callable[[SignedRepository], None]
) -> None:
    device.served.add_release("press", "1.0.0")
    spoil(device.served)
    device.served.publish()
    repository = device.refresh()
    with pytest.raises(BadReleaseError):
        repository.offer("press", "1.0.0")


def test_what_is_kept_is_verified_anew_each_time(device: Device) -> None:
    device.served.add_release("press", "1.0.0")
    device.served.publish()
    repository = device.refresh()
    repository.verify()
    kept = device.state / "ota/metadata/targets.json"
    kept.write_bytes(kept.read_bytes().replace(b"press", b"bress"))
    with pytest.raises(TrustError):
        repository.verify()
    with pytest.raises(TrustError):
        repository.offer("bress", "1.0.0")


# ---- the source, the disk ----------------------------------------------------------------------------------------


def test_what_was_verified_before_a_failure_is_kept(device: Device) -> None:
    device.served.publish()
    targets = device.served.files.pop("metadata/2.targets.json")
    with pytest.raises(NotThereError):
        device.refresh()
    assert versions(device) == {"root": 1, "timestamp": 1 + 1, "snapshot": 2, "targets": None}
    device.served.files["metadata/2.targets.json"] = targets
    device.refresh()


def test_a_second_updater_waits_its_turn(device: Device) -> None:
    files = MetadataFiles(device.state / "ota/metadata", device.state / "ota/floors.json")
    waited: list[float] = []
    with files.locked(), pytest.raises(OtaError, match="another process"), files.locked(waited.append):
        raise AssertionError("two at once")
    assert sum(waited) >= 29
    device.refresh()


def test_a_link_in_place_of_the_cache_is_not_followed(device: Device, tmp_path: Path) -> None:
    device.refresh()
    victim = tmp_path / "victim"
    victim.write_text("precious")
    kept = device.state / "ota/metadata/timestamp.json"
    kept.unlink()
    kept.symlink_to(victim)
    part = device.state / "ota/metadata/.timestamp.json.part"
    part.symlink_to(victim)
    device.served.publish()
    with pytest.raises(StorageError):
        device.refresh()
    part.unlink()
    device.refresh()
    assert victim.read_text() == "precious"
    assert not kept.is_symlink()
