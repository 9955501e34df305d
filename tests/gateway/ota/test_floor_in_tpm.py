"""The floor of updates in a real TPM (swtpm): a state that was put back, power cuts, what becomes of the counter."""

import json
import shutil
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key

from gateway.appliance.tpmobjects import forget_storage_root
from gateway.ota.errors import FloorCounterError, FloorEditedError, FloorError, FloorRestoredError
from gateway.ota.floor import Floor, open_floor
from gateway.ota.floor_file import FILE
from gateway.vault.policy import DEFAULT_COUNTER_INDEX, FLOOR_COUNTER_INDEX, FORECAST_INDEX, Advance
from gateway.vault.tpm.connection import Tpm
from gateway.vault.vault import Vault
from tests.gateway.ota.releases import release, scorer
from tests.gateway.ota.rig import Device as UpdatedDevice
from tests.gateway.ota.trust_rig import Device as TrustingDevice
from tests.gateway.vault import kills
from tests.gateway.vault.device import Device
from tests.simulators import swtpm
from tests.simulators.hostile_repository import SignedRepository
from tests.simulators.release_repository import ReleaseRepository
from tests.simulators.waiting import wait_for

VICTIM = Path(__file__).with_name("floor_victim.py")


@pytest.fixture
def tpm(tmp_path: Path) -> Iterator[swtpm.Swtpm]:
    if reason := swtpm.missing():
        pytest.skip(reason)
    with swtpm.Swtpm(tmp_path) as running:
        yield running


@pytest.fixture
def device(tmp_path: Path, tpm: swtpm.Swtpm) -> Device:
    return Device(tmp_path, tpm.tcti, generate_private_key(SECP256R1()))


@pytest.fixture
def vault(device: Device) -> Vault:
    return device.initialised()


def floor_of(device: Device) -> Floor:
    """Return the floor as a program that starts now opens it."""
    return open_floor(device.vault(), device.state)


def file_of(device: Device) -> Path:
    return device.state / "ota" / FILE


def indices(device: Device) -> list[int]:
    return device.connection.call("looking", lambda tpm: tpm.handles(0x0100_0000))


def undefine(device: Device, index: int) -> None:
    def work(tpm: Tpm) -> None:
        tpm.esys.nv_undefine_space(tpm.esys.tr_from_tpmpublic(index), tpm.pytss.ESYS_TR.OWNER)

    device.connection.call("removing an index", work)


def put_back(state: Path, copy: Path) -> None:
    shutil.rmtree(state)
    shutil.copytree(copy, state)


# ---- a state directory that was put back -----------------------------------------------------------------------------


@pytest.fixture
def repository(tmp_path: Path) -> ReleaseRepository:
    return ReleaseRepository(tmp_path / "repository")


def updated(root: Path, repository: ReleaseRepository, vault: Vault | None) -> UpdatedDevice:
    """Return a device that runs 1.0.0, before a repository that offers three more."""
    made = UpdatedDevice(root, repository, vault=vault)
    repository.floor = made.floor
    release(made.releases, "1.0.0", scorer(1.0))
    for version in ("1.5.0", "2.0.0", "3.0.0"):
        repository.publish(release(repository.directory / "plain", version, scorer(1.0)))
    return made


def put_back_after_an_update(made: UpdatedDevice, tmp_path: Path) -> None:
    """Let a device take two releases, and put the state from between the two back, whole."""
    made.start()
    made.desire("2.0.0", token=1)
    made.reaches("running", "2.0.0")
    made.stop()
    shutil.copytree(made.state, tmp_path / "copy", ignore=shutil.ignore_patterns("*.sock"))
    made.restart()
    made.desire("3.0.0", token=2, number=2)
    made.reaches("running", "3.0.0")
    made.stop()
    put_back(made.state, tmp_path / "copy")
    made.notices.clear()
    made.restart()
    made.repository.floor = made.floor


def test_nothing_is_installed_from_a_state_that_was_put_back_until_the_bridge_has_spoken(
    device: Device, tmp_path: Path, repository: ReleaseRepository
) -> None:
    (tmp_path / "updated").mkdir()
    vault = replace(device, root=tmp_path / "updated", name="state").initialised()
    made = updated(tmp_path / "updated", repository, vault)
    made.attested = 1
    try:
        put_back_after_an_update(made, tmp_path)
        wait_for(lambda: made.notices, seconds=20, what="a notice")
        code, words = made.notices[0]
        assert code == "ota_floor_refused"
        assert "floor-restored" in words
        assert "until the bridge" in words
        assert made.renewals  # the bridge is asked to attest it
        assert made.agent.status().floor.place == "refused"
        made.desire("1.5.0", token=1, number=9)  # an old twin, for a release with a hole
        made.desire("3.0.0", token=2, number=9)
        made.agent.tick()
        made.agent.fetch_round()
        assert made.slot.wanted is None
        assert made.serving == "2.0.0"  # what runs goes on
        made.attested = 2
        made.desire("3.0.0", token=2, number=9)
        made.reaches("running", "3.0.0")
        assert "ota_floor_established" in [code for code, _ in made.notices]
        assert made.agent.status().floor.place == "tpm"
        made.desire("1.5.0", token=1, number=10)
        wait_for(lambda: "twin_refused" in [code for code, _ in made.notices])
    finally:
        made.stop()


def test_the_control_a_device_without_the_counter_installs_what_an_old_twin_says(
    tmp_path: Path, repository: ReleaseRepository
) -> None:
    made = updated(tmp_path / "updated", repository, None)
    try:
        put_back_after_an_update(made, tmp_path)
        made.desire("1.5.0", token=1, number=9)
        made.reaches("running", "1.5.0")
        assert made.agent.status().floor.place == "file"
    finally:
        made.stop()


@pytest.mark.parametrize("bound", [True, False], ids=["in the TPM", "control"])
def test_an_old_repository_is_not_believed_after_the_state_was_put_back(
    device: Device, vault: Vault, tmp_path: Path, bound: bool
) -> None:
    served = SignedRepository()
    served.add_release("detector", "1.0.0")
    served.publish()
    trusting = TrustingDevice(device.state, served, tmp_path / "stick")

    def refresh(floor: Floor) -> None:
        served.save(trusting.stick)
        trusting.repository(floor=floor).refresh()

    def floor() -> Floor:
        return open_floor(vault, device.state) if bound else Floor(file_of(device))

    refresh(floor())
    old = dict(served.files)
    shutil.copytree(device.state, tmp_path / "copy")
    served.add_release("detector", "2.0.0")
    served.publish()
    refresh(floor())
    put_back(device.state, tmp_path / "copy")
    served.files = old
    if not bound:
        refresh(floor())  # signed and not expired: without the counter the hole is open again
        assert [each.version for each in trusting.repository(floor=floor()).listed()] == ["1.0.0"]
        return
    for use in (lambda: refresh(floor()), lambda: trusting.repository(floor=floor()).listed()):
        with pytest.raises(FloorRestoredError):
            use()
    served.publish()  # what is newer does not do either, from a stick
    with pytest.raises(FloorRestoredError):
        refresh(floor())
    bridge = trusting.repository(floor=floor())
    bridge.establish(7)
    assert floor().read().fencing_token == 7
    refresh(floor())
    assert trusting.version("timestamp") == served.timestamp.version


def test_after_another_vault_was_made_the_bridge_sets_the_floor_anew(device: Device, vault: Vault) -> None:
    floor_of(device).raise_to(fencing_token=3)
    vault.rotate()
    assert floor_of(device).read().fencing_token == 3  # control: a change of keys is no other vault
    vault.reseal()
    assert floor_of(device).read().fencing_token == 3
    vault.initialise(anew=True)
    with pytest.raises(FloorEditedError):
        floor_of(device).read()


def test_an_edited_file_is_refused_and_names_the_remedy(device: Device, vault: Vault) -> None:
    floor_of(device).raise_to(fencing_token=3)
    file = file_of(device)
    file.write_text(json.dumps(json.loads(file.read_bytes()) | {"fencing_token": 2}))
    with pytest.raises(FloorEditedError, match="until the bridge has attested"):
        floor_of(device).read()


# ---- power cuts ------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(bool(kills.missing()), reason=kills.missing())
@pytest.mark.parametrize("first", [True, False], ids=["first", "next"])
def test_a_raising_that_is_killed_anywhere_ends_at_the_next_start(
    device: Device, vault: Vault, tpm: swtpm.Swtpm, first: bool
) -> None:
    token = 1
    if not first:
        floor_of(device).raise_to(fencing_token=token)
    seen = set()
    for call in ("fsync", "rename", "unlinkat"):
        for number in range(1, 20):
            if first and FLOOR_COUNTER_INDEX in indices(device):
                undefine(device, FLOOR_COUNTER_INDEX)
                file_of(device).unlink(missing_ok=True)
            command = [sys.executable, str(VICTIM), str(device.root), tpm.tcti, str(token + 1)]
            killed = kills.run_killed_at(command, call, number)
            found = floor_of(device).read().fencing_token
            assert found in ((0, token + 1) if first else (token, token + 1))
            assert floor_of(device).raise_to(fencing_token=token + 1).fencing_token == token + 1
            old = file_of(device).read_bytes()
            token += 1
            assert floor_of(device).raise_to(fencing_token=token + 1).fencing_token == token + 1
            token += 1
            file = file_of(device)
            kept = file.read_bytes()
            file.write_bytes(old)
            with pytest.raises(FloorRestoredError):
                floor_of(device).read()
            file.write_bytes(kept)
            if not killed:
                break
            seen.add(call)
    assert {"fsync", "rename"} <= seen


def test_killed_between_the_file_and_the_counter_it_is_ended_at_the_next_start(
    device: Device, vault: Vault, tpm: swtpm.Swtpm
) -> None:
    floor_of(device).raise_to(fencing_token=1)
    before = vault.floor_counter.floor_count() if vault.floor_counter is not None else None
    old = file_of(device).read_bytes()

    class Cut(Exception):
        pass

    class Cutting:
        """The counter, and the program ends before it moves."""

        def __init__(self) -> None:
            assert vault.floor_counter is not None
            self.floor_count = vault.floor_counter.floor_count
            self.floor_forecast = vault.floor_counter.floor_forecast

        def count_floor(self) -> int:
            raise Cut

    anchor = open_floor(vault, device.state)._anchor
    assert anchor is not None
    with pytest.raises(Cut):
        Floor(file_of(device), replace(anchor, counter=Cutting())).raise_to(fencing_token=2)
    assert before is not None
    assert vault.floor_counter is not None
    assert vault.floor_counter.floor_count() == before
    tpm.restart()
    assert floor_of(device).read().fencing_token == 2
    assert vault.floor_counter.floor_count() == before + 1
    file_of(device).write_bytes(old)
    with pytest.raises(FloorRestoredError):
        floor_of(device).read()


# ---- the TPM and the counter -----------------------------------------------------------------------------------------


def test_a_tpm_that_is_away_at_the_start_leaves_the_file_and_the_status_says_so(
    device: Device, vault: Vault, tpm: swtpm.Swtpm
) -> None:
    floor_of(device).raise_to(fencing_token=3)
    tpm.kill()
    floor = floor_of(device)
    assert floor.read().fencing_token == 3
    assert floor.status.place == "file"
    assert "cannot be reached" in floor.status.problem
    tpm.start()
    device = replace(device, tcti=tpm.tcti)
    assert floor_of(device).read().fencing_token == 3


def test_a_machine_in_a_state_that_nobody_approved_has_the_file_and_no_weights(
    device: Device, vault: Vault, tpm: swtpm.Swtpm
) -> None:
    floor_of(device).raise_to(fencing_token=3)
    tpm.extend(11, b"another kernel".ljust(32))
    floor = floor_of(device)
    assert floor.raise_to(fencing_token=4).fencing_token == 4
    assert floor.status.place == "file"
    assert "the TPM refuses" in floor.status.problem
    assert json.loads(file_of(device).read_bytes())["fencing_token"] == 3
    assert vault.floor_counter is not None
    with pytest.raises(Exception, match="the TPM refuses moving the counter of updates"):
        vault.floor_counter.count_floor()


def test_a_counter_that_is_gone_is_no_way_back(device: Device, vault: Vault) -> None:
    floor_of(device).raise_to(fencing_token=1)
    old = file_of(device).read_bytes()
    floor_of(device).raise_to(fencing_token=2)
    for content in (old, file_of(device).read_bytes()):
        undefine(device, FLOOR_COUNTER_INDEX)
        file_of(device).write_bytes(content)
        with pytest.raises(FloorRestoredError):
            floor_of(device).read()


@pytest.mark.parametrize("kind", ["another policy", "ordinary"])
def test_an_index_that_something_else_has_is_refused_with_the_remedy(device: Device, vault: Vault, kind: str) -> None:
    floor_of(device).raise_to(fencing_token=1)
    undefine(device, FLOOR_COUNTER_INDEX)

    def define(tpm: Tpm) -> None:
        attributes = "ownerwrite|ownerread|authread|no_da" + ("|nt=0x1" if kind == "another policy" else "")
        public = tpm.pytss.TPMS_NV_PUBLIC(
            nvIndex=FLOOR_COUNTER_INDEX,
            nameAlg=tpm.pytss.TPM2_ALG.SHA256,
            attributes=tpm.pytss.TPMA_NV.parse(attributes),
            dataSize=8,
        )
        tpm.esys.nv_define_space(None, tpm.pytss.TPM2B_NV_PUBLIC(nvPublic=public), tpm.pytss.ESYS_TR.OWNER)

    device.connection.call("defining", define)
    with pytest.raises(FloorCounterError, match="tpm2_nvundefine 0x18051cf"):
        floor_of(device).read()


def test_a_counter_that_is_there_before_the_first_floor_is_not_taken_over_silently(
    device: Device, vault: Vault
) -> None:
    """As when the whole state was removed and the TPM stayed."""
    floor_of(device).raise_to(fencing_token=1)
    file_of(device).unlink()
    with pytest.raises(FloorError, match="is gone"):
        floor_of(device).read()


def test_the_counter_against_old_images_is_left_alone_and_goes_on(device: Device, vault: Vault) -> None:
    for token in range(1, 6):
        floor_of(device).raise_to(fencing_token=token)
    assert set(indices(device)) >= {DEFAULT_COUNTER_INDEX, FLOOR_COUNTER_INDEX}
    assert FORECAST_INDEX not in indices(device)
    assert vault.status().store.counter == 1
    device.deliver(Advance(name="step-1", counter=1))
    device.approve_present_state("image-2", counter_at_most=2)
    assert vault.advance_counter() == 2
    assert floor_of(device).read().fencing_token == 5


def test_a_forecast_that_was_killed_leaves_nothing_that_stands_in_the_way(device: Device, vault: Vault) -> None:
    counter = vault.floor_counter
    assert counter is not None
    assert counter.floor_forecast() < counter.floor_forecast()
    forecast = counter.floor_forecast()
    assert counter.count_floor() == forecast
    assert counter.count_floor() == forecast + 1


def test_a_factory_reset_lets_the_next_owner_begin_with_a_floor_of_his_own(
    device: Device, vault: Vault, tmp_path: Path
) -> None:
    floor_of(device).raise_to(fencing_token=50)
    assert forget_storage_root(device.settings) == ""
    assert FLOOR_COUNTER_INDEX not in indices(device)
    assert DEFAULT_COUNTER_INDEX in indices(device)
    shutil.rmtree(device.state)
    device.vault().initialise()
    floor = floor_of(device)
    assert floor.read().fencing_token == 0
    assert floor.raise_to(fencing_token=1).fencing_token == 1
    assert floor.status.place == "tpm"


def test_without_a_reset_of_the_tpm_the_next_owner_waits_for_his_bridge(device: Device, vault: Vault) -> None:
    """The control: who empties the disk alone has not made the device forget."""
    floor_of(device).raise_to(fencing_token=50)
    shutil.rmtree(device.state)
    device.vault().initialise()
    with pytest.raises(FloorRestoredError):
        floor_of(device).read()
