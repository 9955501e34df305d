"""Pipelines get weights from the sealed store alone; what lies in clear is sealed first."""

import contextlib
import hashlib
import json
import os
import resource
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from nacl.public import PublicKey, SealedBox
from structlog.testing import capture_logs

from gateway.config import Vault as VaultSettings
from gateway.errors import ModelError, WeightsWithheldError
from gateway.inference.bundle import Release, ReleaseStore
from gateway.sealing import KeyWatch, SealedModels, VaultView, open_vault
from gateway.vault.aead import this_machines_algorithm
from gateway.vault.damage import damage_of
from gateway.vault.store import MAX_ASIDE, read_release
from gateway.vault.vault import Vault
from gateway.wire.identity import Grant
from gateway.wire.manifest import OVER_THE_AIR_FILE, Artefact
from gateway.wire.times import rfc3339
from tests.simulators import swtpm
from tests.simulators.releases import write_release

SOFTWARE = VaultSettings(level="software")
NOW_NS = 1_790_000_000_000_000_000
DAY_NS = 86_400 * 10**9
WEIGHTS = b"canary weights " * 1000


class Device:
    """A state directory with a vault, and a directory with a release in clear."""

    def __init__(self, tmp_path: Path) -> None:
        self.state = tmp_path / "state"
        self.state.mkdir()
        self.site = tmp_path / "site"
        self.now_ns = NOW_NS
        golden = {"golden-input.bin": b"\x01", "golden-output.bin": b"\x02"}
        digests = {name: hashlib.sha256(content).hexdigest() for name, content in golden.items()}
        pair = {
            "target": "cpu-int8",
            "input": "golden-input.bin",
            "output": "golden-output.bin",
            "input_sha256": digests["golden-input.bin"],
            "output_sha256": digests["golden-output.bin"],
        }
        folder = write_release(self.site, "pump", "1.0.0", WEIGHTS, golden=[pair])
        for name, content in golden.items():
            (folder / name).write_bytes(content)
        self.vault = Vault.open(SOFTWARE, self.state, now_ns=lambda: self.now_ns)
        self.notices: list[str] = []
        self.models = SealedModels(self.vault, lambda code, _severity, _words: self.notices.append(code))
        self.sealed = self.state / "models" / "pump" / "1.0.0"
        self.aside = self.state / "models-damaged" / "pump-1.0.0"

    def find(self, wanted: str = "pump") -> tuple[Release, Artefact]:
        store = ReleaseStore([self.site], packaged=self.site / "none", sealed=self.models.directory)
        release = store.find(wanted)
        return release, release.manifest.artefacts[0]

    def read(self) -> bytes:
        weights = self.models.open(*self.find())
        try:
            return Path(weights.path).read_bytes()
        finally:
            weights.close()

    def clear_files(self) -> list[Path]:
        """Return the files below the state directory that hold the canary."""
        return [file for file in self.state.rglob("*") if file.is_file() and b"canary weights" in file.read_bytes()]


@pytest.fixture
def device(tmp_path: Path) -> Device:
    return Device(tmp_path)


def test_a_release_in_clear_is_sealed_and_its_weights_come_from_there(device: Device) -> None:
    assert device.read() == WEIGHTS
    release, _ = device.find()
    assert release.directory == device.models.directory / "pump" / "1.0.0"
    assert read_release(release.directory).is_sealed
    assert device.clear_files() == []


def test_a_search_for_the_canary_finds_it_where_it_lies_in_clear(device: Device) -> None:
    (device.state / "careless").write_bytes(WEIGHTS)
    assert device.clear_files() == [device.state / "careless"]


def test_once_sealed_a_release_needs_its_plain_files_no_more(device: Device) -> None:
    device.read()
    for file in (device.site / "pump" / "1.0.0").iterdir():
        file.unlink()
    assert device.read() == WEIGHTS


def test_two_pipelines_that_want_a_release_at_the_same_time_seal_it_once(device: Device) -> None:
    found: list[bytes] = []
    together = threading.Barrier(4)

    def run() -> None:
        together.wait()
        found.append(device.read())

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [WEIGHTS] * 4
    assert len([*device.models.directory.rglob("*.sealed")]) == 1


def test_sealing_that_was_cut_short_is_done_again(device: Device) -> None:
    partial = device.models.directory / "pump" / "1.0.0.partial"
    partial.mkdir(parents=True)
    (partial / "manifest.json").write_bytes((device.site / "pump" / "1.0.0" / "manifest.json").read_bytes())
    (partial / "model.tflite.sealed").write_bytes(b"half of it")
    assert device.read() == WEIGHTS
    assert not partial.exists()


def test_weights_that_are_not_those_of_the_manifest_are_not_sealed(device: Device) -> None:
    (device.site / "pump" / "1.0.0" / "model.tflite").write_bytes(WEIGHTS[:-1] + b"!")
    with pytest.raises(
        ModelError, match=r"model pump 1\.0\.0: .*is not the file of this release .*install the release again"
    ):
        device.read()
    assert not (device.models.directory / "pump" / "1.0.0").exists()


def flipped(file: Path, at: int) -> None:
    content = bytearray(file.read_bytes())
    content[at] ^= 1
    file.write_bytes(content)


def in_clear(file: Path, old: str, new: str) -> None:
    file.write_text(file.read_text().replace(old, new))


Damage = Callable[[Path], object]
DAMAGES: dict[str, Damage] = {
    "a bit of the weights": lambda sealed: flipped(sealed / "model.tflite.sealed", -20),
    "a bit of the header": lambda sealed: flipped(sealed / "model.tflite.sealed", 12),
    "half of the weights": lambda sealed: (sealed / "model.tflite.sealed").write_bytes(
        (sealed / "model.tflite.sealed").read_bytes()[:500]
    ),
    "no weights": lambda sealed: (sealed / "model.tflite.sealed").unlink(),
    "an empty manifest": lambda sealed: (sealed / "manifest.json").write_bytes(b""),
    "no manifest": lambda sealed: (sealed / "manifest.json").unlink(),
    "another word in the manifest": lambda sealed: in_clear(sealed / "manifest.json", "for tests", "for toasts"),
    "no golden input": lambda sealed: (sealed / "golden-input.bin").unlink(),
    "another golden output": lambda sealed: (sealed / "golden-output.bin").write_bytes(b"\x03"),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_release_is_sealed_anew_from_its_original_and_kept_for_a_look(device: Device, damage: Damage) -> None:
    device.read()
    damage(device.sealed)
    assert device.read() == WEIGHTS
    assert device.notices == ["release_mended"]
    assert device.aside.is_dir()
    assert device.read() == WEIGHTS
    assert device.notices == ["release_mended"]  # once
    assert device.clear_files() == []


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_nothing_but_the_very_release_takes_the_place_of_a_damaged_one(device: Device, damage: Damage) -> None:
    device.read()
    damage(device.sealed)
    (device.site / "pump" / "1.0.0" / "model.tflite").write_bytes(WEIGHTS[:-1] + b"!")
    with pytest.raises(ModelError, match="not the file of this release"):
        device.read()
    assert device.sealed.is_dir()
    assert not device.aside.exists()
    assert device.notices == []
    (device.site / "pump" / "1.0.0" / "model.tflite").write_bytes(WEIGHTS)
    assert device.read() == WEIGHTS  # control: it was that alone


def test_a_damaged_release_is_not_mended_from_another_of_the_same_name(device: Device) -> None:
    device.read()
    original = (device.site / "pump" / "1.0.0" / "manifest.json").read_text()
    in_clear(device.site / "pump" / "1.0.0" / "manifest.json", "for tests", "for toasts")
    with pytest.raises(ModelError, match="holds another"):  # control: whole, it is just another
        device.read()
    (device.sealed / "manifest.json").write_bytes(b"")
    with pytest.raises(ModelError, match=r"is another pump 1\.0\.0: import the one that it was sealed from"):
        device.read()
    (device.site / "pump" / "1.0.0" / "manifest.json").write_text(original)
    assert device.read() == WEIGHTS


def test_without_an_original_a_damaged_release_stays_and_the_error_says_what_helps(device: Device) -> None:
    device.read()
    shutil.rmtree(device.site / "pump")
    flipped(device.sealed / "model.tflite.sealed", -20)
    with pytest.raises(ModelError, match="put the release there again: `gateway vault import`"):
        device.read()
    assert device.sealed.is_dir()
    for file in ("golden-input.bin", "manifest.json"):
        (device.sealed / file).unlink() if file != "manifest.json" else (device.sealed / file).write_bytes(b"")
        with pytest.raises(ModelError, match=r"put the release there again|install the release again"):
            device.read()


def test_a_damaged_release_that_came_over_the_air_is_put_aside_so_that_it_is_fetched_again(device: Device) -> None:
    device.read()
    shutil.rmtree(device.site / "pump")
    (device.sealed / OVER_THE_AIR_FILE).touch()
    store = ReleaseStore([], packaged=device.site, sealed=device.models.directory)
    release = store.find("pump@1.0.0")
    device.models.open(release, release.manifest.artefacts[0]).close()  # control: whole, it opens
    flipped(device.sealed / "model.tflite.sealed", -20)
    with pytest.raises(ModelError, match="assign it again"):
        device.models.open(release, release.manifest.artefacts[0])
    assert not device.sealed.exists()
    assert device.aside.is_dir()
    assert device.notices == ["release_damaged"]


def test_a_header_with_another_size_is_found_before_memory_is_taken_for_it(device: Device) -> None:
    device.read()
    shutil.rmtree(device.site / "pump")
    release, artefact = device.find("pump@1.0.0")
    with pytest.raises(ModelError, match="bytes, the manifest says"):
        device.models.open(release, msgspec.structs.replace(artefact, size_bytes=artefact.size_bytes + 1))


def test_a_container_that_was_cut_is_damage_that_needs_no_key_to_see(device: Device) -> None:
    device.read()
    container = next(device.sealed.glob("*.sealed"))
    assert damage_of(device.sealed) == "", "the control"
    os.truncate(container, container.stat().st_size - 1)
    assert "should have" in damage_of(device.sealed)


def test_an_artefact_that_was_never_fetched_is_no_damage(device: Device) -> None:
    device.read()
    shutil.rmtree(device.site / "pump")
    manifest = json.loads((device.sealed / "manifest.json").read_bytes())
    (device.sealed / OVER_THE_AIR_FILE).touch()
    other = {**manifest["artefacts"][0], "target": "edgetpu", "file": "other.tflite"}
    release, artefact = device.find("pump@1.0.0")
    assert damage_of(device.sealed) == ""
    missing = msgspec.convert(other, Artefact)
    with pytest.raises(ModelError, match="only what ran here then was fetched"):
        device.models.open(release, missing)
    assert device.sealed.is_dir()
    device.models.open(release, artefact).close()


def test_only_the_last_few_damaged_releases_are_kept(device: Device) -> None:
    device.models.prepare()
    for number in range(MAX_ASIDE + 2):
        write_release(device.site, "pump", f"2.0.{number}", WEIGHTS)
        stored = device.vault.import_release(device.site / "pump" / f"2.0.{number}")
        device.vault.put_aside(stored.directory, "for the test")
    kept = sorted(each.name for each in (device.state / "models-damaged").iterdir())
    assert kept == [f"pump-2.0.{number}" for number in range(2, MAX_ASIDE + 2)]


def test_a_file_that_cannot_be_opened_for_now_is_not_called_damaged(device: Device) -> None:
    device.read()
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    used = max(int(each.name) for each in Path("/proc/self/fd").iterdir())
    release, artefact = device.find()
    resource.setrlimit(resource.RLIMIT_NOFILE, (used + 1, limit[1]))
    held = []
    try:
        with contextlib.suppress(OSError):
            while True:
                held.append(os.open("/dev/null", os.O_RDONLY))
        with pytest.raises((ModelError, WeightsWithheldError, OSError)):
            device.models.open(release, artefact)
    finally:
        for each in held:
            os.close(each)
        resource.setrlimit(resource.RLIMIT_NOFILE, limit)
    assert not device.aside.exists()
    assert device.read() == WEIGHTS


def test_a_damaged_container_is_replaced_when_the_release_is_put_there_again(device: Device) -> None:
    device.read()
    (container,) = device.models.directory.rglob("*.sealed")
    content = bytearray(container.read_bytes())
    content[-1] ^= 1
    container.write_bytes(content)
    device.vault.import_release(device.site / "pump" / "1.0.0")
    assert device.read() == WEIGHTS


def test_importing_after_the_vault_was_given_up_seals_with_the_new_key(device: Device) -> None:
    device.read()
    device.vault.initialise(anew=True)
    device.vault.import_release(device.site / "pump" / "1.0.0")
    assert device.read() == WEIGHTS


def test_a_version_that_was_changed_is_told_and_not_run(device: Device) -> None:
    device.read()
    for file in (device.site / "pump" / "1.0.0").iterdir():
        file.unlink()
    (device.site / "pump" / "1.0.0").rmdir()
    write_release(device.site, "pump", "1.0.0", b"trained again")
    with pytest.raises(ModelError, match="a version is never changed, choose a new one"):
        device.read()


def test_what_lies_in_clear_among_the_sealed_releases_is_not_run(device: Device) -> None:
    write_release(device.models.directory, "fan", "1.0.0")
    with pytest.raises(ModelError, match="lies in clear among the sealed releases: move it elsewhere"):
        device.models.open(*device.find("fan"))


# ---- keys ----------------------------------------------------------------------------------------


def test_without_the_key_weights_are_withheld_and_come_when_it_is_back(device: Device) -> None:
    device.read()
    key = device.state / "vault" / "software.key"
    key.chmod(0o644)
    with pytest.raises(WeightsWithheldError, match=r"model pump 1\.0\.0 waits for its key: .*chmod 600"):
        device.read()
    key.chmod(0o600)
    assert device.read() == WEIGHTS


def test_what_was_sealed_under_a_vault_that_was_given_up_is_sealed_again_where_it_lies_in_clear(device: Device) -> None:
    device.read()
    device.vault.initialise(anew=True)
    assert device.read() == WEIGHTS
    device.vault.initialise(anew=True)
    shutil.rmtree(device.site)
    with pytest.raises(WeightsWithheldError, match="no key for the release"):
        device.read()


def fleet_release(device: Device, content_key: bytes) -> Path:
    """Seal a release as the build side does, with a key that this device has not."""
    other = Vault.open(SOFTWARE, device.state.with_name("build"))
    other.initialise()
    plain = read_release(write_release(device.site.with_name("build-site"), "fleet", "1.0.0", WEIGHTS))
    return other.releases.put(plain, content_key, this_machines_algorithm()).directory


def grant(device: Device, directory: Path, content_key: bytes, lease_until_ns: int = NOW_NS + DAY_NS) -> Grant:
    release = read_release(directory)
    return Grant(
        release=release.label,
        digest=release.digest,
        wrapped_key=SealedBox(PublicKey(device.vault.recipient())).encrypt(content_key),
        lease_until=rfc3339(lease_until_ns),
        lease_until_ns=lease_until_ns,
    )


def test_a_release_of_the_fleet_opens_with_its_grant_and_is_refused_when_the_lease_has_ended(device: Device) -> None:
    key = bytes(range(32))
    directory = fleet_release(device, key)
    found = ReleaseStore([directory.parents[1]], packaged=device.site / "none", sealed=device.models.directory)
    release = found.find("fleet")

    def opened() -> bytes:
        weights = device.models.open(release, release.manifest.artefacts[0])
        try:
            return Path(weights.path).read_bytes()
        finally:
            weights.close()

    with pytest.raises(WeightsWithheldError, match="no key for the release"):
        opened()
    device.models.accept([grant(device, directory, key)], NOW_NS)
    running = device.models.open(release, release.manifest.artefacts[0])
    assert opened() == WEIGHTS
    device.now_ns += 2 * DAY_NS
    with pytest.raises(WeightsWithheldError, match=r"lease for fleet 1\.0\.0 ended .*What is running goes on"):
        opened()
    assert Path(running.path).read_bytes() == WEIGHTS
    device.models.accept([grant(device, directory, key, device.now_ns + DAY_NS)], device.now_ns)
    assert opened() == WEIGHTS


def test_a_grant_does_not_take_away_the_key_of_what_this_device_has_sealed_itself(device: Device) -> None:
    device.read()
    release, _ = device.find()
    device.models.accept([grant(device, release.directory, bytes(32))], NOW_NS)
    assert device.read() == WEIGHTS


def test_a_release_whose_own_key_was_damaged_is_sealed_anew_from_the_one_in_clear(device: Device) -> None:
    device.read()
    (file,) = (device.state / "vault" / "generations").glob("*/keys/*.json")
    changes: list[Callable[[bytes], bytes]] = [
        lambda document: document.replace(b'"wrapped":"', b'"wrapped":"AAAA'),
        lambda document: document[:20],
    ]
    for damage in changes:
        file.write_bytes(damage(file.read_bytes()))
        assert device.read() == WEIGHTS
        assert device.read() == WEIGHTS
    # The control: without the release in clear there is nothing to seal anew.
    file.write_bytes(file.read_bytes()[:20])
    shutil.rmtree(device.site / "pump")
    with pytest.raises(WeightsWithheldError, match="is damaged"):
        device.read()


def test_a_grant_that_cannot_be_used_is_told_once_and_once_more_when_it_can(device: Device) -> None:
    device.models.prepare()
    key = bytes(range(32))
    directory = fleet_release(device, key)
    good = grant(device, directory, key)
    bad = msgspec.structs.replace(good, wrapped_key=bytes(80))
    with capture_logs() as logs:
        for each in (bad, bad, good, good):
            device.models.accept([each], NOW_NS)
    told = [entry["event"] for entry in logs if entry["event"].startswith("grant_")]
    assert told == ["grant_not_usable", "grant_usable_again"]


def test_a_grant_that_cannot_be_used_does_not_keep_the_others_out(device: Device) -> None:
    device.models.prepare()
    key = bytes(range(32))
    directory = fleet_release(device, key)
    good = grant(device, directory, key)
    bad = Grant(
        release="else 1.0.0",
        digest="ab" * 32,
        wrapped_key=bytes(80),
        lease_until=good.lease_until,
        lease_until_ns=good.lease_until_ns,
    )
    device.models.accept([bad, good], NOW_NS)
    assert [key.label for key in device.vault.status().keys] == ["fleet 1.0.0"]


# ---- level tpm -----------------------------------------------------------------------------------


def tpm_settings(tmp_path: Path) -> VaultSettings:
    if reason := swtpm.missing():
        pytest.skip(reason)
    (tmp_path / "policy").mkdir()
    public = generate_private_key(SECP256R1()).public_key()
    file = tmp_path / "policy.pub"
    file.write_bytes(public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    return VaultSettings(
        level="tpm",
        tcti="swtpm:host=127.0.0.1,port=9",
        policy_key_file=file,
        policy_directory=tmp_path / "policy",
        timeout_seconds=3.0,
    )


def test_without_an_approval_a_vault_of_level_tpm_says_which_command_makes_one(tmp_path: Path) -> None:
    settings = tpm_settings(tmp_path)
    write_release(tmp_path / "site", "pump", "1.0.0", WEIGHTS)
    models = SealedModels(open_vault(settings, tmp_path / "state"))
    release = ReleaseStore([tmp_path / "site"], packaged=tmp_path / "none").find("pump")
    with pytest.raises(WeightsWithheldError, match="gateway vault policy sign --first"):
        models.open(release, release.manifest.artefacts[0])
    assert "gateway vault policy sign --first" in models.look().problem
    assert [*tmp_path.rglob("*.sealed")] == []


# ---- telling -------------------------------------------------------------------------------------


class Told:
    """Notices, as they come."""

    def __init__(self) -> None:
        self.codes: list[str] = []

    def __call__(self, code: str, severity: str, detail: str) -> None:
        assert severity in ("info", "error")
        assert "door" in detail
        self.codes.append(code)


def test_a_pipeline_without_its_key_is_told_once_when_it_begins_and_once_when_it_is_over() -> None:
    told = Told()
    watch = KeyWatch(told)
    for _ in range(3):
        watch.withheld("door", "the TPM does not answer")
    assert watch.waiting == {"door": "the TPM does not answer"}
    assert watch.refusals == 3
    watch.given("door")
    watch.given("door")
    assert told.codes == ["weights_withheld", "weights_given"]
    assert watch.waiting == {}


def test_the_report_says_how_long_a_lease_still_lasts(device: Device) -> None:
    device.models.prepare()
    key = bytes(range(32))
    device.models.accept([grant(device, fleet_release(device, key), key)], NOW_NS)
    now = 100.0
    view = VaultView(SOFTWARE, KeyWatch(Told()), monotonic=lambda: now)
    assert (view.report().level, view.report().ready) == ("software", False)
    view.take(device.models.look())
    now += 60
    report = view.report()
    assert report.ready
    assert "development" in report.warnings[0]
    assert report.keys[0].remaining_seconds == pytest.approx(86_400 - 60)
    assert report.keys[0].lease_until is not None
