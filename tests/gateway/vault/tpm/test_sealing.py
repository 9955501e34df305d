"""What the TPM gives a sealed secret out for, and what not: tried on the TPM itself, with no check before it."""

import secrets
from pathlib import Path
from typing import Any

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key

from gateway.vault import policy
from gateway.vault.errors import KeyStoreError
from gateway.vault.policy import BootState, FirstCount, SignedApproval
from gateway.vault.tpm import codes
from gateway.vault.tpm.codes import TpmResponseError
from gateway.vault.tpm.connection import Connection, Tpm
from gateway.vault.tpm.counter import advance_counter, define_counter
from gateway.vault.tpm.objects import open_root, provision_root, public_of, salted_session, sealed_data
from gateway.vault.tpm.registers import read_registers
from gateway.vault.tpm.sealing import SealedBlob, seal, unseal
from tests.gateway.vault.device import Device
from tests.simulators.swtpm import Swtpm

FOR_EVER = 2**62


@pytest.fixture
def ready(device: Device) -> Device:
    first = policy.sign(FirstCount(name="first"), device.private)
    device.with_root(lambda tpm, root: define_counter(tpm, root, first, device.key))
    return device


def sealed(device: Device, secret: bytes) -> SealedBlob:
    return device.with_root(lambda tpm, root: seal(tpm, root, secret, device.key))


def unsealed(device: Device, blob: SealedBlob, signed: SignedApproval) -> bytes:
    return device.with_root(lambda tpm, root: unseal(tpm, root, blob, signed, device.key))


def approved(device: Device, numbers: tuple[int, ...] = (7, 11), counter_at_most: int = 1) -> SignedApproval:
    state = BootState(name="now", pcrs=device.registers(numbers), counter_at_most=counter_at_most)
    return policy.sign(state, device.private)


def advance(device: Device, counter: int) -> int:
    signed = policy.sign(policy.Advance(name="step", counter=counter), device.private)
    return device.with_root(lambda tpm, root: advance_counter(tpm, root, signed, device.key))


def lockout_counter(device: Device) -> int:
    def work(tpm: Tpm) -> int:
        answer = tpm.esys.get_capability(tpm.pytss.TPM2_CAP.TPM_PROPERTIES, 0x20E, 1)
        properties = answer[1].data.tpmProperties
        return int(properties[0].value)

    return device.connection.call("looking", work)


def test_a_secret_comes_back_in_the_approved_state(ready: Device) -> None:
    secret = secrets.token_bytes(32)
    blob = sealed(ready, secret)
    assert secret not in blob.private + blob.public
    assert unsealed(ready, blob, approved(ready)) == secret


def test_another_boot_state_does_not_get_the_secret(ready: Device, tpm: Swtpm) -> None:
    blob, signed = sealed(ready, b"s" * 32), approved(ready)
    unbound = approved(ready, numbers=(16,))
    tpm.extend(11, b"another kernel".ljust(32))
    with pytest.raises(TpmResponseError) as refused:
        unsealed(ready, blob, signed)
    assert refused.value.code in codes.POLICY_CODES
    # The control: an approval that does not look at this register lets the other kernel in.
    assert unsealed(ready, blob, unbound) == b"s" * 32


def test_a_signed_update_gets_the_secret_without_sealing_it_anew(ready: Device, tpm: Swtpm) -> None:
    blob = sealed(ready, b"s" * 32)
    tpm.extend(11, b"the next kernel".ljust(32))
    assert unsealed(ready, blob, approved(ready)) == b"s" * 32


def test_an_old_image_does_not_get_the_secret_after_the_counter_has_moved(ready: Device) -> None:
    blob, old, endless = sealed(ready, b"s" * 32), approved(ready), approved(ready, counter_at_most=FOR_EVER)
    assert unsealed(ready, blob, old) == b"s" * 32
    assert advance(ready, 1) == 2
    with pytest.raises(TpmResponseError) as refused:
        unsealed(ready, blob, old)
    assert refused.value.code == codes.POLICY_FALSE
    # The control: without a bound the old image gets it for ever.
    assert unsealed(ready, blob, endless) == b"s" * 32


def test_a_forged_signature_is_refused_by_the_tpm_itself(ready: Device) -> None:
    blob, signed = sealed(ready, b"s" * 32), approved(ready)
    forged = policy.sign(signed.approval, generate_private_key(SECP256R1()))
    with pytest.raises(TpmResponseError, match="signature"):
        unsealed(ready, blob, msgspec.structs.replace(forged, key=signed.key))
    assert unsealed(ready, blob, signed) == b"s" * 32


def test_an_approval_for_another_bound_than_it_was_signed_for_is_refused_by_the_tpm(ready: Device) -> None:
    blob, signed = sealed(ready, b"s" * 32), approved(ready)
    assert isinstance(signed.approval, BootState)
    widened = msgspec.structs.replace(signed.approval, counter_at_most=FOR_EVER)
    with pytest.raises(TpmResponseError, match="signature"):
        unsealed(ready, blob, msgspec.structs.replace(signed, approval=widened))


def test_a_blob_is_of_no_use_to_another_tpm(ready: Device, tmp_path: Path) -> None:
    blob = sealed(ready, b"s" * 32)
    with Swtpm(tmp_path / "other") as other_tpm:
        other = Device(tmp_path, other_tpm.tcti, ready.private, name="other")
        first = policy.sign(FirstCount(name="first"), other.private)
        other.with_root(lambda tpm, root: define_counter(tpm, root, first, other.key))
        with pytest.raises(TpmResponseError) as refused:
            unsealed(other, blob, approved(other))
        assert codes.is_integrity(refused.value.code)


def test_the_secret_survives_a_reboot_into_the_approved_state(ready: Device, tpm: Swtpm) -> None:
    blob, signed = sealed(ready, b"s" * 32), approved(ready)
    tpm.extend(11, bytes(32))
    tpm.restart()
    assert unsealed(Device(ready.root, tpm.tcti, ready.private), blob, signed) == b"s" * 32


def test_refusals_count_for_no_lockout(ready: Device, tpm: Swtpm) -> None:
    blob, signed = sealed(ready, b"s" * 32), approved(ready)
    tpm.extend(7, bytes(32))
    for _ in range(40):
        with pytest.raises(TpmResponseError):
            unsealed(ready, blob, signed)
    assert lockout_counter(ready) == 0


def test_a_protected_secret_with_a_wrong_password_would_count(ready: Device) -> None:
    """The control for the lockout counter: an object without noDA, and a wrong password."""

    def work(tpm: Tpm, root: Any) -> None:
        pytss, esys = tpm.pytss, tpm.esys
        sensitive = pytss.TPM2B_SENSITIVE_CREATE(
            pytss.TPMS_SENSITIVE_CREATE(userAuth=b"right", data=pytss.TPM2B_SENSITIVE_DATA(b"s"))
        )
        public = public_of(tpm, sealed_data(b""))
        public.publicArea.objectAttributes = pytss.TPMA_OBJECT.FIXEDTPM | 0x10 | pytss.TPMA_OBJECT.USERWITHAUTH
        private, created, *_ = esys.create(root, sensitive, public)
        with tpm.flushed(esys.load(root, private, created)) as item:
            esys.tr_set_auth(item, b"wrong")
            esys.unseal(item)

    with pytest.raises(TpmResponseError):
        ready.with_root(work)
    assert lockout_counter(ready) > 0


def test_another_root_key_than_the_provisioned_one_is_refused(ready: Device) -> None:
    name = ready.connection.call("making", provision_root)
    ready.connection.call("opening", lambda tpm: open_root(tpm, name))
    with pytest.raises(KeyStoreError, match="somebody between"):
        ready.connection.call("opening", lambda tpm: open_root(tpm, bytes(34)))


@pytest.mark.parametrize("encrypted", [True, False], ids=["salted session", "control: plain session"])
def test_a_trace_of_the_bus_shows_the_secret_only_without_encrypted_sessions(
    ready: Device, tpm: Swtpm, tmp_path: Path, encrypted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    trace = tmp_path / "bus.pcap"
    secret = secrets.token_bytes(32)
    signed = approved(ready)
    name = ready.connection.call("making", provision_root)
    monkeypatch.setenv("TCTI_PCAP_FILE", str(trace))
    tapped = Connection(f"pcap:{tpm.tcti}", seconds=10)

    def whole(opened: Tpm) -> bytes:
        root = open_root(opened, name)
        blob = seal(opened, root, secret, ready.key)
        return unseal(opened, root, blob, signed, ready.key)

    def bare(opened: Tpm) -> bytes:
        pytss, esys = opened.pytss, opened.esys
        sensitive = pytss.TPM2B_SENSITIVE_CREATE(pytss.TPMS_SENSITIVE_CREATE(data=pytss.TPM2B_SENSITIVE_DATA(secret)))
        root = open_root(opened, name)
        public = public_of(opened, sealed_data(b""))
        public.publicArea.objectAttributes = pytss.TPMA_OBJECT.FIXEDTPM | 0x10 | pytss.TPMA_OBJECT.USERWITHAUTH
        private, created, *_ = esys.create(root, sensitive, public)
        with opened.flushed(esys.load(root, private, created)) as item:
            return bytes(esys.unseal(item))

    assert tapped.call("sealing", whole if encrypted else bare) == secret
    seen = trace.read_bytes()
    assert len(seen) > 500
    assert seen.count(secret) == (0 if encrypted else 2)


def test_a_salted_session_is_flushed_when_its_body_fails(ready: Device) -> None:
    def work(tpm: Tpm, root: Any) -> None:
        with salted_session(tpm, root, "POLICY"):
            raise KeyStoreError("in the middle")

    for _ in range(10):
        with pytest.raises(KeyStoreError, match="in the middle"):
            ready.with_root(work)
    assert ready.connection.call("looking", lambda tpm: tpm.handles(0x0200_0000)) == []


def test_all_registers_are_read_though_a_tpm_gives_only_eight_at_once(ready: Device) -> None:
    values = ready.connection.call("reading", lambda tpm: read_registers(tpm, range(24)))
    assert sorted(values) == list(range(24))
    assert values[0] == bytes(32)
    assert values[17] == b"\xff" * 32


def test_three_slots_are_enough(ready: Device) -> None:
    """swtpm has three, and no resource manager; with one of them taken by somebody else it still works."""
    blob, signed = sealed(ready, b"s" * 32), approved(ready)

    def work(tpm: Tpm, root: Any) -> bytes:
        made = tpm.esys.create_primary(None, "ecc")
        with tpm.flushed(made[0]):
            return unseal(tpm, root, blob, signed, ready.key)

    assert ready.with_root(work) == b"s" * 32
