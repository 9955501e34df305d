"""The TPM key store: what it refuses, and what it says then."""

import secrets
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key

from gateway.vault import policy
from gateway.vault.errors import KeyStoreError, PolicyRefusedError, VaultError
from gateway.vault.policy import Advance, BootState, FirstCount
from gateway.vault.tpm.codes import TpmResponseError
from gateway.vault.tpm.connection import Tpm
from gateway.vault.tpm.counter import advance_counter, define_counter, read_counter
from gateway.vault.tpm.keystore import TpmKeyStore
from tests.gateway.vault.device import Device
from tests.simulators.swtpm import Swtpm

INDEX = policy.DEFAULT_COUNTER_INDEX


def store_of(device: Device) -> TpmKeyStore:
    store = device.vault().store
    assert isinstance(store, TpmKeyStore)
    return store


@pytest.fixture
def ready(device: Device) -> Device:
    device.deliver(FirstCount(name="first"))
    device.approve_present_state()
    (device.state / "vault").mkdir(parents=True)
    store_of(device).provision()
    return device


def test_a_refusal_names_the_register_and_both_values(ready: Device, tpm: Swtpm) -> None:
    store = store_of(ready)
    blob = store.seal(b"s" * 32)
    assert store.unseal(blob) == b"s" * 32
    tpm.extend(11, b"another kernel".ljust(32))
    with pytest.raises(PolicyRefusedError) as refused:
        store.unseal(blob)
    now = ready.registers((11,))["11"][:16]
    assert refused.value.reasons == (f"image-1: PCR 11 is {now}…, approved is 0000000000000000…",)
    found = store.status()
    assert not found.ready
    assert found.reasons == refused.value.reasons
    assert found.pcrs is not None
    assert found.pcrs[11].startswith(now)


def test_a_refusal_names_the_counter(ready: Device) -> None:
    store = store_of(ready)
    blob = store.seal(b"s" * 32)
    ready.deliver(Advance(name="step-1", counter=1))
    ready.approve_present_state("image-2", counter_at_most=2)
    assert store.advance() == 2
    assert store.unseal(blob) == b"s" * 32
    ready.withdraw("image-2")
    with pytest.raises(PolicyRefusedError, match="image-1: the counter is 2, approved up to 1: this image is too old"):
        store.unseal(blob)


def test_an_update_brings_its_own_approval_and_nothing_is_sealed_anew(ready: Device, tpm: Swtpm) -> None:
    store = store_of(ready)
    blob = store.seal(b"s" * 32)
    tpm.extend(11, b"the next kernel".ljust(32))
    with pytest.raises(PolicyRefusedError):
        store.unseal(blob)
    ready.approve_present_state("image-2")
    assert store.unseal(blob) == b"s" * 32


def test_an_approval_that_somebody_else_signed_counts_for_nothing(ready: Device, tpm: Swtpm) -> None:
    store = store_of(ready)
    blob = store.seal(b"s" * 32)
    tpm.extend(11, bytes(32))
    state = BootState(name="image-x", pcrs=ready.registers(), counter_at_most=9)
    ready.deliver(state, generate_private_key(SECP256R1()))
    with pytest.raises(PolicyRefusedError, match=r"image-x\.policy\.json: signed by .*, this device trusts"):
        store.unseal(blob)
    assert [row.name for row in store.status().approvals if row.holds] == []
    ready.deliver(state)  # the control: the same words, signed by the build server
    assert store.unseal(blob) == b"s" * 32


def test_the_counter_does_not_move_while_the_running_image_would_lose_the_key(ready: Device) -> None:
    ready.deliver(Advance(name="step-1", counter=1))
    with pytest.raises(VaultError, match="at the counter 2 the running image could not unseal any more"):
        store_of(ready).advance()
    assert ready.connection.call("reading", lambda tpm: read_counter(tpm, INDEX)) == 1


def test_a_step_that_nobody_has_approved_is_told_with_the_counter_and_the_remedy(ready: Device) -> None:
    with pytest.raises(VaultError, match=r"the counter is 1, .* step from 1: there is none.* --advance-from 1`"):
        store_of(ready).advance()
    for counter in (3, 2):
        ready.deliver(Advance(name=f"step-{counter}", counter=counter))
    with pytest.raises(VaultError, match=r"the counter is 1, .*: those here are for the steps from 2, 3\. It comes"):
        store_of(ready).advance()


def test_a_counter_that_was_never_begun_is_told_so(device: Device) -> None:
    device.deliver(FirstCount(name="first"))
    (device.state / "vault").mkdir(parents=True)
    (device.state / "vault" / "tpm.json").write_bytes(b'{"root_name": ""}')
    with pytest.raises(VaultError, match="never begun on this TPM: run `gateway vault init`"):
        store_of(device).advance()


def test_a_step_cannot_be_replayed_or_taken_early(ready: Device) -> None:
    ready.approve_present_state("image-9", counter_at_most=9)
    steps = {counter: policy.sign(Advance(name="step", counter=counter), ready.private) for counter in (1, 2)}

    def step(counter: int) -> int:
        return ready.with_root(lambda tpm, root: advance_counter(tpm, root, steps[counter], ready.key))

    with pytest.raises(VaultError, match="the counter is 1, this approval is for the step from 2"):
        step(2)
    assert step(1) == 2
    with pytest.raises(VaultError, match="the counter is 2, this approval is for the step from 1"):
        step(1)
    assert step(2) == 3


def test_nobody_on_the_device_can_move_the_counter(ready: Device) -> None:
    def by_password(tpm: Tpm) -> None:
        tpm.esys.nv_increment(tpm.esys.tr_from_tpmpublic(INDEX))

    def by_owner(tpm: Tpm) -> None:
        tpm.esys.nv_increment(tpm.esys.tr_from_tpmpublic(INDEX), auth_handle=tpm.pytss.ESYS_TR.OWNER)

    for work in (by_password, by_owner):
        with pytest.raises(TpmResponseError):
            ready.connection.call("counting", work)
    assert ready.connection.call("reading", lambda tpm: read_counter(tpm, INDEX)) == 1


def test_a_counter_that_anybody_may_write_is_moved_by_anybody(ready: Device) -> None:
    """The control: the same index with AUTHWRITE and no password."""
    index = INDEX + 1

    def work(tpm: Tpm) -> int | None:
        pytss = tpm.pytss
        attributes = 0x4 | 0x10 | 0x2_0000 | 0x4_0000 | 0x200_0000
        area = pytss.TPMS_NV_PUBLIC(
            nvIndex=index, nameAlg=pytss.TPM2_ALG.SHA256, attributes=attributes, authPolicy=b"", dataSize=8
        )
        tpm.esys.nv_define_space(None, pytss.TPM2B_NV_PUBLIC(nvPublic=area), pytss.ESYS_TR.OWNER)
        handle = tpm.esys.tr_from_tpmpublic(index)
        tpm.esys.nv_increment(handle)
        tpm.esys.nv_increment(handle)
        return read_counter(tpm, index)

    assert ready.connection.call("counting", work) == 2


def test_removing_the_counter_and_making_it_again_does_not_turn_it_back(ready: Device) -> None:
    ready.approve_present_state("image-9", counter_at_most=9)
    ready.deliver(Advance(name="step-1", counter=1))
    store = store_of(ready)
    assert store.advance() == 2

    def remove(tpm: Tpm) -> None:
        tpm.esys.nv_undefine_space(tpm.esys.tr_from_tpmpublic(INDEX), tpm.pytss.ESYS_TR.OWNER)

    ready.connection.call("removing", remove)
    store.provision()
    value = ready.connection.call("reading", lambda tpm: read_counter(tpm, INDEX))
    assert value is not None
    assert value > 2


def test_the_index_of_another_program_is_left_alone(device: Device) -> None:
    def occupy(tpm: Tpm) -> None:
        pytss = tpm.pytss
        area = pytss.TPMS_NV_PUBLIC(
            nvIndex=INDEX, nameAlg=pytss.TPM2_ALG.SHA256, attributes=0x6_0006, authPolicy=b"", dataSize=8
        )
        tpm.esys.nv_define_space(None, pytss.TPM2B_NV_PUBLIC(nvPublic=area), pytss.ESYS_TR.OWNER)

    device.connection.call("occupying", occupy)
    device.deliver(FirstCount(name="first"))
    (device.state / "vault").mkdir(parents=True)
    with pytest.raises(KeyStoreError, match="is not the counter of the policy key"):
        store_of(device).provision()


def test_provisioning_again_changes_nothing(ready: Device) -> None:
    store = store_of(ready)
    blob = store.seal(b"s" * 32)
    store.provision()
    assert store.unseal(blob) == b"s" * 32


def test_without_an_approval_to_begin_the_counter_it_says_what_to_do(device: Device) -> None:
    with pytest.raises(KeyStoreError, match="gateway vault policy sign --first"):
        store_of(device).provision()


def test_a_disk_in_another_device_does_not_get_the_key(ready: Device, tmp_path: Path) -> None:
    blob = store_of(ready).seal(b"s" * 32)
    with Swtpm(tmp_path / "other") as other_tpm:
        thief = Device(ready.root, other_tpm.tcti, ready.private)
        with pytest.raises(KeyStoreError, match="has no storage root key"):
            store_of(thief).unseal(blob)
        thief.with_root(lambda tpm, root: define_counter(tpm, root, thief.deliver(FirstCount(name="f")), thief.key))
        with pytest.raises(KeyStoreError, match="another TPM"):
            store_of(thief).unseal(blob)
    assert store_of(ready).unseal(blob) == b"s" * 32


def test_a_damaged_blob_is_told_apart_from_a_refusal(ready: Device) -> None:
    store = store_of(ready)
    blob = store.seal(secrets.token_bytes(32))
    for damaged in (b"", blob[:-9], blob.replace(b'"private":"', b'"private":"AAAA')):
        with pytest.raises(KeyStoreError) as refused:
            store.unseal(damaged)
        assert not isinstance(refused.value, PolicyRefusedError)


def test_registers_that_nobody_measured_into_are_a_warning(ready: Device) -> None:
    assert store_of(ready).status().warnings[0].startswith("PCR 7, 11: nothing was measured into them")


def test_a_dead_tpm_is_a_status_and_no_error(ready: Device, tpm: Swtpm) -> None:
    store = store_of(ready)
    tpm.kill()
    found = store.status()
    assert not found.ready
    assert "does not answer" in found.reasons[0] or "cannot be reached" in found.reasons[0]
