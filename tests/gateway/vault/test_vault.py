"""The whole vault, at both levels: one suite."""

import hashlib
import secrets
import shutil
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from nacl.public import PrivateKey, PublicKey, SealedBox
from structlog.testing import capture_logs

from gateway.config import Vault as VaultSettings
from gateway.vault.aead import GCM
from gateway.vault.container import Contents, sealed
from gateway.vault.errors import (
    DamagedContainerError,
    KeyMissingError,
    KeyStoreError,
    LeaseEndedError,
    VaultConfigError,
    VaultError,
    WrongKeyError,
)
from gateway.vault.files import write_durably
from gateway.vault.keyring import GrantedKey, WrappedKey
from gateway.vault.keystore import KeyStore
from gateway.vault.lease import NANOSECONDS_A_DAY
from gateway.vault.store import SealedStore, read_release
from gateway.vault.vault import Vault, open_connection
from gateway.wire.manifest import Artefact
from tests.gateway.vault.device import NEVER, Clock, Device, plain_release, some_weights
from tests.simulators import swtpm
from tests.simulators.waiting import wait_for

DAY_NS = NANOSECONDS_A_DAY


@pytest.fixture
def clock() -> Clock:
    return Clock()


Opener = Callable[[], Vault]


@pytest.fixture(params=["software", "tpm"])
def reopen(
    request: pytest.FixtureRequest, tmp_path: Path, clock: Clock, policy_private: EllipticCurvePrivateKey
) -> Iterator[Opener]:
    """Give what opens the vault as a new process would."""
    if request.param == "software":
        settings = VaultSettings(level="software")
        yield lambda: Vault.open(settings, tmp_path / "device", now_ns=clock, appliance_marker=NEVER)
        return
    if reason := swtpm.missing():
        pytest.skip(reason)
    with swtpm.Swtpm(tmp_path) as running:
        device = Device(tmp_path, running.tcti, policy_private, clock=clock)
        device.initialised()
        yield device.vault


@pytest.fixture
def vault(reopen: Opener) -> Vault:
    opened = reopen()
    opened.initialise()
    return opened


def grant_for(vault: Vault, content_key: bytes) -> bytes:
    return bytes(SealedBox(PublicKey(vault.recipient())).encrypt(content_key))


def fleet_release(tmp_path: Path, weights: bytes, content_key: bytes, version: str = "2.0.0") -> Path:
    """Seal a release as the build side does."""
    plain, _ = plain_release(tmp_path / "build", {"model.tflite": weights}, version=version)
    return SealedStore(tmp_path / "fleet").put(read_release(plain), content_key, GCM).directory


def test_an_imported_release_lies_sealed_and_opens_again(vault: Vault, reopen: Opener, tmp_path: Path) -> None:
    weights = {"model-int8.tflite": some_weights(), "model-edge.tflite": b"small"}
    plain, artefacts = plain_release(tmp_path / "plain", weights)
    stored = vault.import_release(plain)
    assert stored.directory == tmp_path / "device/models/probe/1.0.0"
    names = {file.name for file in stored.directory.iterdir()}
    assert names == {"manifest.json", "CARD.md", "model-int8.tflite.sealed", "model-edge.tflite.sealed"}
    for artefact in artefacts:
        with reopen().open_weights(stored.directory, artefact) as opened:
            assert bytes(opened.view) == weights[artefact.file]
    sealed = b"".join(file.read_bytes() for file in stored.directory.iterdir())
    assert weights["model-int8.tflite"][1000:1032] not in sealed


def test_importing_twice_changes_nothing(vault: Vault, tmp_path: Path) -> None:
    plain, _ = plain_release(tmp_path / "plain", {"model.tflite": some_weights(1000)})
    first = vault.import_release(plain)
    before = {file: file.read_bytes() for file in first.directory.iterdir()}
    assert vault.import_release(plain) == first
    assert {file: file.read_bytes() for file in first.directory.iterdir()} == before


def test_a_version_is_never_replaced_by_something_else(vault: Vault, tmp_path: Path) -> None:
    plain, artefacts = plain_release(tmp_path / "plain", {"model.tflite": b"first"})
    stored = vault.import_release(plain)
    other, _ = plain_release(tmp_path / "other", {"model.tflite": b"second"})
    with pytest.raises(
        VaultError, match=r"holds another probe 1\.0\.0.*`gateway vault import --replace` puts it aside"
    ):
        vault.import_release(other)
    with vault.open_weights(stored.directory, artefacts[0]) as opened:
        assert bytes(opened.view) == b"first"
    assert {key.release for key in vault.status().keys} == {stored.digest}, "no key is drawn for what does not come"


def test_what_was_a_mistake_is_put_aside_by_hand(vault: Vault, tmp_path: Path) -> None:
    plain, _ = plain_release(tmp_path / "plain", {"model.tflite": b"first"})
    vault.import_release(plain)
    other, artefacts = plain_release(tmp_path / "other", {"model.tflite": b"second"})
    stored = vault.import_release(other, replace=True)
    with vault.open_weights(stored.directory, artefacts[0]) as opened:
        assert bytes(opened.view) == b"second"
    (aside,) = vault.releases.aside.iterdir()
    assert read_release(aside).digest == read_release(plain).digest


def test_a_plain_release_that_is_not_what_its_manifest_says_is_not_taken(vault: Vault, tmp_path: Path) -> None:
    plain, _ = plain_release(tmp_path / "plain", {"model.tflite": b"as released"})
    (plain / "model.tflite").write_bytes(b"as changed!")
    with pytest.raises(VaultError, match="not the file of this release"):
        vault.import_release(plain)
    (plain / "model.tflite").write_bytes(b"longer than released")
    with pytest.raises(VaultError, match="size"):
        vault.import_release(plain)
    assert list(vault.releases.releases()) == []


def test_one_ciphertext_serves_every_device_that_was_granted_the_key(vault: Vault, tmp_path: Path) -> None:
    weights, content_key = some_weights(), secrets.token_bytes(32)
    fleet = fleet_release(tmp_path, weights, content_key)
    release = read_release(fleet)
    with pytest.raises(KeyMissingError, match="it comes with a grant"):
        vault.import_release(fleet)
    vault.accept_grant(release.digest, grant_for(vault, content_key), label=release.label)
    stored = vault.import_release(fleet)
    assert (stored.directory / "model.tflite.sealed").read_bytes() == (fleet / "model.tflite.sealed").read_bytes()
    with vault.open_weights(stored.directory, release.manifest.artefacts[0]) as opened:
        assert bytes(opened.view) == weights


def test_weights_that_were_forged_with_the_fleets_key_are_refused_on_every_device(vault: Vault, tmp_path: Path) -> None:
    weights, content_key = some_weights(), secrets.token_bytes(32)
    release = read_release(fleet_release(tmp_path, weights, content_key))
    vault.accept_grant(release.digest, grant_for(vault, content_key), label=release.label)
    stored, (artefact,) = vault.import_release(release.directory), release.manifest.artefacts
    contents = Contents("probe", "2.0.0", release.digest, artefact.file, artefact.sha256, artefact.size_bytes)
    forged = sealed(contents, content_key, bytes(len(weights)), GCM)
    stored.sealed_file(artefact).write_bytes(forged)
    with pytest.raises(DamagedContainerError, match=r"the plaintext has the digest .*, the manifest says"):
        vault.open_weights(stored.directory, artefact)


class CountingStore:
    """A key store that counts; a stalled one waits before it answers."""

    def __init__(self, store: KeyStore) -> None:
        self._store = store
        self.unsealed = 0
        self.gate = threading.Event()
        self.gate.set()

    def unseal(self, blob: bytes) -> bytes:
        self.unsealed += 1
        assert self.gate.wait(10)
        return self._store.unseal(blob)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)


def test_models_that_are_opened_at_the_same_time_share_one_unsealing(vault: Vault, tmp_path: Path) -> None:
    releases = []
    for number in range(6):
        plain, (artefact,) = plain_release(tmp_path / "plain", {"m": b"%d" % number}, version=f"{number}.0.0")
        releases.append((vault.import_release(plain).directory, artefact))
    store = CountingStore(vault.store)
    starting = Vault(store, tmp_path / "device", lease_days=1, now_ns=Clock())
    store.gate.clear()

    def contents(at: Path, artefact: Artefact) -> bytes:
        with starting.open_weights(at, artefact) as weights:
            return bytes(weights.view)

    with ThreadPoolExecutor(len(releases)) as pipelines:
        opened = [pipelines.submit(contents, *release) for release in releases]
        wait_for(lambda: store.unsealed == 1, what="the first one asks")
        # The gate opens only when the others have had the time to wait for the second round.
        gathering = starting._openings
        wait_for(
            lambda: gathering._gathering is not None and len(gathering._gathering.questions) == len(releases) - 1,
            what="the others wait",
        )
        store.gate.set()
        assert [each.result(10) for each in opened] == [b"%d" % number for number in range(6)]
    assert store.unsealed == 2
    contents(*releases[0])  # one that comes later asks again: the machine's state may have changed
    assert store.unsealed == 3


def test_a_grant_for_another_device_is_refused(vault: Vault) -> None:
    other = PrivateKey.generate().public_key
    with pytest.raises(WrongKeyError, match="not addressed to this device"):
        vault.accept_grant("0" * 64, bytes(SealedBox(other).encrypt(bytes(32))))
    with pytest.raises(WrongKeyError, match="not addressed to this device"):
        vault.accept_grant("0" * 64, b"too short")
    with pytest.raises(WrongKeyError, match="holds 16 bytes"):
        vault.accept_grant("0" * 64, grant_for(vault, bytes(16)))
    with pytest.raises(VaultError, match="is no SHA-256"):
        vault.accept_grant("../../etc/passwd", grant_for(vault, bytes(32)))
    # The control: the same to this device is taken.
    vault.accept_grant("0" * 64, grant_for(vault, bytes(32)))


def test_another_key_than_the_releases_own_does_not_open_it(vault: Vault, tmp_path: Path) -> None:
    fleet = fleet_release(tmp_path, b"weights", secrets.token_bytes(32))
    release = read_release(fleet)
    vault.accept_grant(release.digest, grant_for(vault, secrets.token_bytes(32)))
    with pytest.raises(WrongKeyError, match="is sealed with the content key"):
        vault.open_weights(fleet, release.manifest.artefacts[0])


def test_a_lease_lasts_offline_and_then_ends_with_a_clear_word(
    vault: Vault, reopen: Opener, clock: Clock, tmp_path: Path
) -> None:
    content_key = secrets.token_bytes(32)
    fleet = fleet_release(tmp_path, b"weights", content_key)
    release = read_release(fleet)
    artefact = release.manifest.artefacts[0]
    until_ns = clock.now_ns + 3 * DAY_NS
    vault.accept_grant(release.digest, grant_for(vault, content_key), until_ns, label=release.label)
    clock.now_ns += 2 * DAY_NS
    running = reopen().open_weights(fleet, artefact)
    clock.now_ns += 2 * DAY_NS
    with pytest.raises(LeaseEndedError, match=r"the lease for probe 2\.0\.0 ended at .* must attest itself"):
        reopen().open_weights(fleet, artefact)
    assert bytes(running.view) == b"weights"  # what runs goes on
    # Setting the clock back gives no more time, once the later time was seen.
    clock.now_ns -= 3 * DAY_NS
    with pytest.raises(LeaseEndedError):
        reopen().open_weights(fleet, artefact)
    assert any("has ended" in problem for problem in vault.status().problems)
    # A new grant does; it also brings the bridge's time.
    vault.accept_grant(release.digest, grant_for(vault, content_key), until_ns, bridge_now_ns=clock.now_ns)
    reopen().open_weights(fleet, artefact).close()
    running.close()


def test_a_grant_without_an_end_lasts_ninety_days(vault: Vault, clock: Clock, tmp_path: Path) -> None:
    content_key = secrets.token_bytes(32)
    fleet = fleet_release(tmp_path, b"weights", content_key)
    release = read_release(fleet)
    vault.accept_grant(release.digest, grant_for(vault, content_key))
    clock.now_ns += 90 * DAY_NS - 1
    vault.open_weights(fleet, release.manifest.artefacts[0]).close()
    clock.now_ns += 1
    with pytest.raises(LeaseEndedError):
        vault.open_weights(fleet, release.manifest.artefacts[0])


def test_a_clock_that_had_run_ahead_is_mended_by_the_bridge(vault: Vault, clock: Clock, tmp_path: Path) -> None:
    content_key = secrets.token_bytes(32)
    fleet = fleet_release(tmp_path, b"weights", content_key)
    release = read_release(fleet)
    artefact = release.manifest.artefacts[0]
    right_ns = clock.now_ns
    vault.accept_grant(release.digest, grant_for(vault, content_key), right_ns + 90 * DAY_NS)
    clock.now_ns += 20_000 * DAY_NS  # a dead battery: the year 2079
    with pytest.raises(LeaseEndedError):
        vault.open_weights(fleet, artefact)
    clock.now_ns = right_ns + DAY_NS
    with pytest.raises(LeaseEndedError):
        vault.open_weights(fleet, artefact)
    vault.accept_grant(
        release.digest, grant_for(vault, content_key), right_ns + 90 * DAY_NS, bridge_now_ns=clock.now_ns
    )
    vault.open_weights(fleet, artefact).close()


def test_a_full_disk_keeps_no_weights_from_a_model(vault: Vault, reopen: Opener, clock: Clock, tmp_path: Path) -> None:
    content_key = secrets.token_bytes(32)
    fleet = fleet_release(tmp_path, b"weights", content_key)
    release = read_release(fleet)
    artefact = release.manifest.artefacts[0]
    vault.accept_grant(release.digest, grant_for(vault, content_key), clock.now_ns + 3 * DAY_NS)
    at_grant_ns = clock.now_ns
    part = tmp_path / "device/vault/.clock.json.part"
    part.symlink_to("/dev/full")
    with pytest.raises(VaultError, match="No space left"):  # the control: nothing can be written there
        write_durably(part.with_name("clock.json"), b"1")
    started = reopen()
    with capture_logs() as logs:
        for _ in range(3):
            clock.now_ns += DAY_NS // 2
            started.open_weights(fleet, artefact).close()
        # What the disk did not take is remembered: setting the clock back gives no more time.
        clock.now_ns += 2 * DAY_NS
        with pytest.raises(LeaseEndedError):
            started.open_weights(fleet, artefact)
        clock.now_ns = at_grant_ns
        with pytest.raises(LeaseEndedError):
            started.open_weights(fleet, artefact)
        part.unlink()
        with pytest.raises(LeaseEndedError):
            started.open_weights(fleet, artefact)
    told = [entry["event"] for entry in logs if entry["event"].startswith("vault_clock")]
    assert told == ["vault_clock_floor_not_written", "vault_clock_floor_written_again"]
    with pytest.raises(LeaseEndedError):  # and it is on the disk now
        reopen().open_weights(fleet, artefact)


def grants_of(vault: Vault, clock: Clock, count: int) -> list[GrantedKey]:
    until_ns = clock.now_ns + 30 * DAY_NS
    return [
        GrantedKey(f"{number:064x}", f"probe {number}.0.0", grant_for(vault, bytes([number]) * 32), until_ns)
        for number in range(count)
    ]


def test_all_keys_of_an_attestation_cost_one_unsealing_of_each_secret(
    vault: Vault, clock: Clock, tmp_path: Path
) -> None:
    store = CountingStore(vault.store)
    counted = Vault(store, tmp_path / "device", lease_days=1, now_ns=clock)
    grants = grants_of(vault, clock, 20)
    assert counted.accept_grants(grants, bridge_now_ns=clock.now_ns) == {}
    assert store.unsealed == 2
    assert len(vault.status().keys) == 20
    vault.check()
    # The control: each for itself asks the key store for both secrets again.
    for each in grants:
        counted.accept_grant(each.release, each.wrapped, each.lease_until_ns)
    assert store.unsealed == 2 + 2 * len(grants)


def test_a_grant_that_cannot_be_taken_is_told_and_keeps_no_other_out(
    vault: Vault, clock: Clock, tmp_path: Path
) -> None:
    good, bad, worse = grants_of(vault, clock, 3)
    bad = replace(bad, wrapped=bytes(80))
    worse = replace(worse, release="../../etc/passwd")
    refused = vault.accept_grants([bad, worse, good])
    assert {release: type(error) for release, error in refused.items()} == {
        bad.release: WrongKeyError,
        worse.release: VaultError,
    }
    assert [key.label for key in vault.status().keys] == [good.label]


def test_a_lease_that_has_hardly_moved_is_not_written_again(vault: Vault, clock: Clock, tmp_path: Path) -> None:
    (grant,) = grants_of(vault, clock, 1)
    vault.accept_grants([grant])
    (file,) = (tmp_path / "device/vault/generations").glob("*/keys/*.json")
    first = file.read_bytes()
    a_little = replace(grant, lease_until_ns=grant.lease_until_ns + 1800 * 10**9)
    vault.accept_grants([a_little])
    assert file.read_bytes() == first
    # Controls: more than that, an earlier end, another key.
    for other in (
        replace(grant, lease_until_ns=grant.lease_until_ns + DAY_NS),
        replace(grant, lease_until_ns=grant.lease_until_ns - DAY_NS),
        replace(grant, wrapped=grant_for(vault, bytes(32))),
    ):
        before = file.read_bytes()
        vault.accept_grants([other])
        assert file.read_bytes() != before


def test_a_grant_takes_the_place_of_no_key_that_only_this_device_has(
    vault: Vault, clock: Clock, tmp_path: Path
) -> None:
    plain, artefacts = plain_release(tmp_path / "plain", {"model.tflite": b"weights"})
    stored = vault.import_release(plain)
    keys = next((tmp_path / "device/vault/generations").glob("*/keys"))
    (keys / f"{1:064x}.json").write_bytes(b"{")  # a damaged neighbour, so that there is no list of keys
    (keys / f"{2:064x}.json").mkdir()  # and one that cannot be read now
    of_the_fleet = replace(grants_of(vault, clock, 1)[0], release=stored.digest)
    refused = vault.accept_grants([of_the_fleet, *grants_of(vault, clock, 3)])
    assert list(refused) == [f"{2:064x}"]
    with vault.open_weights(stored.directory, artefacts[0]) as opened:
        assert bytes(opened.view) == b"weights"
    # The control: once nothing opens with the own key any more, the grant is taken.
    file = keys / f"{stored.digest}.json"
    file.write_bytes(file.read_bytes()[:-20])
    assert stored.digest not in vault.accept_grants([of_the_fleet])
    with pytest.raises(WrongKeyError, match="is sealed with the content key"):
        vault.open_weights(stored.directory, artefacts[0])


def edited(document: str, field: str, until_ns: int) -> str:
    """Change one field of a key file; `until_ns` is the end of the lease in it."""
    changes = {
        "lease_until_ns": (str(until_ns), str(until_ns + 98 * DAY_NS)),
        "label": ("probe 2.0.0", "probe 3.0.0"),
        "release": ('"release":"' + msgspec.json.decode(document)["release"], '"release":"' + "1" * 64),
        "wrapped": ('"wrapped":"', '"wrapped":"AAAA'),
    }
    return document.replace(*changes[field])


@pytest.mark.parametrize("field", ["lease_until_ns", "label", "release", "wrapped"])
def test_a_key_file_that_was_edited_on_the_disk_is_refused(
    vault: Vault, clock: Clock, tmp_path: Path, field: str
) -> None:
    content_key = secrets.token_bytes(32)
    fleet = fleet_release(tmp_path, b"weights", content_key)
    release = read_release(fleet)
    until_ns = clock.now_ns + DAY_NS
    vault.accept_grant(release.digest, grant_for(vault, content_key), until_ns, label="probe 2.0.0")
    (file,) = (tmp_path / "device/vault/generations").glob(f"*/keys/{release.digest}.json")
    document = file.read_text()
    assert edited(document, field, until_ns) != document
    file.write_text(edited(document, field, until_ns))
    with pytest.raises(WrongKeyError, match="was changed or is damaged"):
        vault.open_weights(fleet, release.manifest.artefacts[0])
    file.write_text(document)
    vault.open_weights(fleet, release.manifest.artefacts[0]).close()


@pytest.mark.parametrize("field", ["lease_until_ns", "label", "release"])
def test_control_what_is_not_authenticated_with_a_key_could_be_edited(
    monkeypatch: pytest.MonkeyPatch, vault: Vault, clock: Clock, tmp_path: Path, field: str
) -> None:
    monkeypatch.setattr(WrappedKey, "bound", property(lambda _: b""))
    content_key = secrets.token_bytes(32)
    fleet = fleet_release(tmp_path, b"weights", content_key)
    release = read_release(fleet)
    until_ns = clock.now_ns + DAY_NS
    vault.accept_grant(release.digest, grant_for(vault, content_key), until_ns, label="probe 2.0.0")
    (file,) = (tmp_path / "device/vault/generations").glob(f"*/keys/{release.digest}.json")
    file.write_text(edited(file.read_text(), field, until_ns))
    if field == "lease_until_ns":
        clock.now_ns += 2 * DAY_NS  # the lease that was granted is over
    vault.open_weights(fleet, release.manifest.artefacts[0]).close()


@pytest.mark.parametrize("change", ["rotate", "reseal"])
def test_content_keys_survive_a_change_of_the_vault_key(
    vault: Vault, reopen: Opener, tmp_path: Path, change: str
) -> None:
    plain, artefacts = plain_release(tmp_path / "plain", {"model.tflite": b"weights"})
    stored = vault.import_release(plain)
    recipient = vault.recipient()
    before = (tmp_path / "device/vault/generations/1/vault.key").read_bytes()
    for number in (2, 3):
        getattr(vault, change)()
        assert vault.status().generation == number
    assert not (tmp_path / "device/vault/generations/1").exists()
    assert (tmp_path / "device/vault/generations/3/vault.key").read_bytes() != before
    assert (vault.recipient() == recipient) is (change == "reseal")
    with reopen().open_weights(stored.directory, artefacts[0]) as opened:
        assert bytes(opened.view) == b"weights"
    vault.check()


def test_a_manifest_beside_the_weights_of_another_release_is_refused(vault: Vault, tmp_path: Path) -> None:
    plain, artefacts = plain_release(tmp_path / "plain", {"model.tflite": b"weights"})
    stored = vault.import_release(plain)
    manifest = stored.directory / "manifest.json"
    manifest.write_text(manifest.read_text() + " ")
    with pytest.raises(DamagedContainerError, match=r"another release than the manifest"):
        vault.open_weights(stored.directory, artefacts[0])


def test_weights_of_a_sealed_release_are_bound_to_the_digest_of_the_manifest(vault: Vault, tmp_path: Path) -> None:
    """Somebody with the content key cannot put other weights under a release's name."""
    content_key = secrets.token_bytes(32)
    fleet = fleet_release(tmp_path, b"genuine", content_key)
    release = read_release(fleet)
    vault.accept_grant(release.digest, grant_for(vault, content_key))
    forged = Contents("probe", "2.0.0", release.digest, "model.tflite", hashlib.sha256(b"forged!").hexdigest(), 7)
    (fleet / "model.tflite.sealed").write_bytes(sealed(forged, content_key, b"forged!", GCM))
    with pytest.raises(DamagedContainerError, match="the manifest says"):
        vault.open_weights(fleet, release.manifest.artefacts[0])


def test_beginning_anew_gives_up_what_was_there(vault: Vault, tmp_path: Path) -> None:
    plain, artefacts = plain_release(tmp_path / "plain", {"model.tflite": b"weights"})
    stored = vault.import_release(plain)
    vault.initialise()  # changes nothing
    vault.open_weights(stored.directory, artefacts[0]).close()
    vault.initialise(anew=True)
    with pytest.raises(KeyMissingError):
        vault.open_weights(stored.directory, artefacts[0])
    vault.check()


def test_before_it_is_made_everything_says_so(tmp_path: Path) -> None:
    vault = Vault.open(VaultSettings(level="software"), tmp_path, appliance_marker=NEVER)
    for call in (vault.check, vault.rotate, vault.reseal, vault.recipient):
        with pytest.raises(KeyStoreError, match="run `gateway vault init`"):
            call()
    found = vault.status()
    assert not found.initialised
    assert "run `gateway vault init`" in found.problems[0]


@pytest.mark.parametrize("damage", [Path.unlink, lambda file: file.write_bytes(b"")], ids=["missing", "empty"])
@pytest.mark.parametrize("name", ["vault.key", "recipient.key", "recipient.pub"])
def test_status_does_not_promise_a_key_whose_file_is_gone(
    vault: Vault, tmp_path: Path, name: str, damage: Callable[[Path], object]
) -> None:
    assert vault.status().problems == (), "the control"
    (file,) = (tmp_path / "device" / "vault" / "generations").glob(f"*/{name}")
    damage(file)
    (problem,) = vault.status().problems
    assert str(file) in problem
    assert "--anew" in problem


def test_a_pointer_to_the_generation_that_is_lost_costs_no_key(vault: Vault, reopen: Opener, tmp_path: Path) -> None:
    plain, artefacts = plain_release(tmp_path / "plain", {"model.tflite": b"weights"})
    stored = vault.import_release(plain)
    vault.rotate()
    (tmp_path / "device/vault/current").unlink()
    started = reopen()
    started.initialise()  # as every start of the gateway does
    with started.open_weights(stored.directory, artefacts[0]) as opened:
        assert bytes(opened.view) == b"weights"
    started.rotate()
    assert (tmp_path / "device/vault/current").read_text() == "3\n"
    # The control: what is no whole generation is taken for none.
    shutil.move(tmp_path / "device/vault/generations/3", tmp_path / "device/vault/generations/3.partial")
    (tmp_path / "device/vault/current").unlink()
    assert not reopen().status().initialised


def test_a_tpm_whose_name_was_lost_is_pinned_again_and_another_one_is_found_out(
    device: Device, tpm: swtpm.Swtpm, tmp_path: Path
) -> None:
    device.initialised()
    pinned = device.state / "vault/tpm.json"
    name = pinned.read_bytes()
    pinned.unlink()
    with pytest.raises(KeyStoreError, match="no vault yet"):
        device.vault().check()
    device.vault().initialise()  # as every start of the gateway does
    device.vault().check()
    assert pinned.read_bytes() == name
    # The control: in another TPM the same disk is pinned and opens nothing.
    with swtpm.Swtpm(tmp_path / "other") as other_tpm:
        other = Device(tmp_path / "other", other_tpm.tcti, device.private)
        other.initialised()
        shutil.rmtree(other.state)
        shutil.copytree(device.state, other.state)
        (other.state / "vault/tpm.json").unlink()
        other.vault().initialise()
        with pytest.raises(KeyStoreError, match="does not know this sealed key"):
            other.vault().check()


def test_a_damaged_pointer_to_the_generation_says_what_to_do(tmp_path: Path) -> None:
    vault = Vault.open(VaultSettings(level="software"), tmp_path, appliance_marker=NEVER)
    vault.initialise()
    (tmp_path / "vault/current").write_text("x")
    with pytest.raises(VaultError, match="write the number of the newest complete directory"):
        vault.check()
    (tmp_path / "vault/current").write_text("1\n")
    vault.check()


@pytest.mark.parametrize(
    "tcti",
    [
        "cmd:/tmp/program",
        "swtpm:host=127.0.0.1,port=2321",
        "/tmp/library.so",
        "device:/dev/sda",
        "device:/dev/tpm0/../sda",
    ],
)
def test_root_on_an_appliance_reaches_the_tpm_by_the_kernel_alone(tmp_path: Path, tcti: str) -> None:
    marker = tmp_path / "appliance"
    marker.touch()
    settings = VaultSettings(level="tpm", tcti=tcti)
    with pytest.raises(VaultConfigError, match="not used by root"):
        open_connection(settings, appliance_marker=marker, user_id=lambda: 0)
    # Controls: who runs it has no rights to give away, or nobody else writes the configuration.
    open_connection(settings, appliance_marker=marker, user_id=lambda: 994)
    open_connection(settings, appliance_marker=NEVER, user_id=lambda: 0)
    for device in ("device:/dev/tpmrm0", "device:/dev/tpm1"):
        open_connection(VaultSettings(level="tpm", tcti=device), appliance_marker=marker, user_id=lambda: 0)
