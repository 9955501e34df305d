"""Policy digests are those of the TPM, and approvals count only with the right signature."""

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePrivateKey, generate_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.vault import policy
from gateway.vault.errors import VaultConfigError, VaultError
from gateway.vault.policy import Advance, Approval, BootState, FirstCount, PolicyKey
from gateway.vault.tpm.approval import assert_approval
from gateway.vault.tpm.connection import Tpm
from gateway.vault.tpm.counter import define_counter, read_counter
from tests.gateway.vault.device import Device

ZEROS = "00" * 32
BOOT = BootState(name="image-1", pcrs={"7": ZEROS, "11": "ab" * 32}, counter_at_most=3)
APPROVALS: list[Approval] = [BOOT, FirstCount(name="first"), Advance(name="step", counter=3)]


@pytest.fixture(scope="module")
def private() -> EllipticCurvePrivateKey:
    return generate_private_key(SECP256R1())


def trial_digest(tpm: Tpm, approval: Approval) -> bytes:
    pytss, none = tpm.pytss, tpm.pytss.ESYS_TR.NONE
    session = tpm.esys.start_auth_session(none, none, pytss.TPM2_SE.TRIAL, None, pytss.TPM2_ALG.SHA256)
    with tpm.flushed(session):
        assert_approval(tpm, session, approval)
        return bytes(tpm.esys.policy_get_digest(session))


def test_digests_computed_without_a_tpm_are_those_of_a_trial_session(device: Device) -> None:
    first = policy.sign(FirstCount(name="first"), device.private)
    device.with_root(lambda tpm, root: define_counter(tpm, root, first, device.key))
    boot = BootState(name="now", pcrs=device.registers((0, 7, 11, 23)), counter_at_most=5)
    for approval in (boot, FirstCount(name="first"), Advance(name="step", counter=1)):

        def digest(tpm: Tpm, approval: Approval = approval) -> bytes:
            return trial_digest(tpm, approval)

        # A trial session takes the values of the registers as they are, and compares nothing with the counter.
        assert device.connection.call("trial", digest) == policy.approved_digest(approval, device.key), approval


def test_the_name_of_key_and_counter_computed_without_a_tpm_are_the_tpms_own(device: Device) -> None:
    first = policy.sign(FirstCount(name="first"), device.private)
    device.with_root(lambda tpm, root: define_counter(tpm, root, first, device.key))

    def names(tpm: Tpm) -> tuple[bytes, bytes, int | None]:
        index = policy.DEFAULT_COUNTER_INDEX
        counter = bytes(tpm.esys.tr_get_name(tpm.esys.tr_from_tpmpublic(index)))
        public = tpm.pytss.TPM2B_PUBLIC(publicArea=tpm.pytss.TPMT_PUBLIC.unmarshal(device.key.area)[0])
        with tpm.flushed(tpm.esys.load_external(public)) as handle:
            return counter, bytes(tpm.esys.tr_get_name(handle)), read_counter(tpm, index)

    counter_name = policy.counter_name(device.key, policy.DEFAULT_COUNTER_INDEX)
    assert device.connection.call("names", names) == (counter_name, device.key.name, 1)


@pytest.mark.parametrize("approval", APPROVALS, ids=lambda approval: type(approval).__name__)
def test_a_signed_approval_survives_the_file_and_counts(approval: Approval, private: EllipticCurvePrivateKey) -> None:
    signed = policy.decode(policy.encode(policy.sign(approval, private)))
    assert policy.verified(signed, PolicyKey(private.public_key())) == approval


def test_an_approval_by_another_key_counts_for_nothing(private: EllipticCurvePrivateKey) -> None:
    signed = policy.sign(BOOT, generate_private_key(SECP256R1()))
    with pytest.raises(VaultError, match="this device trusts"):
        policy.verified(signed, PolicyKey(private.public_key()))
    key = PolicyKey(private.public_key())
    pretending = msgspec.structs.replace(signed, key=key.fingerprint)
    with pytest.raises(VaultError, match="signature is wrong"):
        policy.verified(pretending, key)


@pytest.mark.parametrize(
    "changed",
    [
        msgspec.structs.replace(BOOT, counter_at_most=4),
        msgspec.structs.replace(BOOT, pcrs={"7": ZEROS, "11": "ac" * 32}),
        msgspec.structs.replace(BOOT, pcrs={"7": ZEROS}),
        msgspec.structs.replace(BOOT, counter_index=0x0180_0001),
        FirstCount(name="image-1"),
    ],
)
def test_a_changed_approval_loses_its_signature(changed: Approval, private: EllipticCurvePrivateKey) -> None:
    signed = msgspec.structs.replace(policy.sign(BOOT, private), approval=changed)
    with pytest.raises(VaultError, match="signature is wrong"):
        policy.verified(signed, PolicyKey(private.public_key()))


def test_a_signature_for_the_counter_is_none_for_the_key(private: EllipticCurvePrivateKey) -> None:
    key = PolicyKey(private.public_key())
    assert policy.authorized(key, policy.KEY_REF) != policy.authorized(key, policy.COUNTER_REF)
    assert {policy.ref_of(approval) for approval in APPROVALS} == {policy.KEY_REF, policy.COUNTER_REF}


@given(st.binary(max_size=400))
@settings(max_examples=200, deadline=None)
def test_arbitrary_bytes_are_no_approval(document: bytes) -> None:
    with pytest.raises(VaultError):
        policy.decode(document)


def test_a_boot_state_names_what_differs() -> None:
    present = {7: bytes(32), 11: bytes(32)}
    assert policy.objections(BOOT, present, 4) == [
        "PCR 11 is 0000000000000000…, approved is abababababababab…",
        "the counter is 4, approved up to 3: this image is too old",
    ]
    assert policy.objections(BOOT, {7: bytes(32), 11: bytes.fromhex("ab" * 32)}, 3) == []
    assert "is not there" in policy.objections(BOOT, present, None)[-1]


def test_a_key_that_tpms_cannot_check_is_refused() -> None:
    pem = Ed25519PrivateKey.generate().public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    with pytest.raises(VaultConfigError, match="TPMs cannot check Ed25519"):
        policy.read_policy_key(pem)
    with pytest.raises(VaultConfigError, match="no public key in PEM"):
        policy.read_policy_key(b"nonsense")
