"""What the TPM proves, judged by the bridge's own verification."""

import hashlib
import secrets
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import pytest

from cloud_bridge.identity.attestation import attestation_key, endorsement_key, verify_quote
from cloud_bridge.identity.credential import make_credential
from cloud_bridge.identity.endorsement import TrustedRoots
from cloud_bridge.identity.errors import RefusedError
from gateway.vault import policy
from gateway.vault.attestor import TpmAttestor
from gateway.vault.errors import KeyStoreError
from gateway.vault.policy import FirstCount
from gateway.vault.tpm.counter import define_counter
from gateway.vault.tpm.identity import AttestationKey, EkKind, TpmIdentity
from gateway.wire.identity import Challenge, binding
from tests.gateway.vault.device import Device
from tests.simulators import swtpm
from tests.simulators.swtpm import Swtpm

PCRS = frozenset({0, 1, 2, 3, 4, 5, 7, 8, 9, 11})


def test_a_quote_of_ten_registers_is_accepted_by_the_bridge(device: Device) -> None:
    identity = device.identity
    ak = identity.create_ak()
    nonce = secrets.token_bytes(32)
    quote = identity.quote(ak, nonce, sorted(PCRS))
    public = attestation_key(ak.public)
    attested = verify_quote(public, quote.attest, quote.signature, expected=nonce, pcrs=PCRS, values=quote.pcrs)
    assert attested.pcrs == quote.pcrs
    # The controls: another nonce, a register that lies, one flipped bit.
    with pytest.raises(RefusedError):
        verify_quote(public, quote.attest, quote.signature, expected=bytes(32), pcrs=PCRS, values=quote.pcrs)
    lied = quote.pcrs | {7: b"\1" * 32}
    with pytest.raises(RefusedError):
        verify_quote(public, quote.attest, quote.signature, expected=nonce, pcrs=PCRS, values=lied)
    flipped = bytes([quote.attest[0] ^ 1]) + quote.attest[1:]
    with pytest.raises(RefusedError):
        verify_quote(public, flipped, quote.signature, expected=nonce, pcrs=PCRS, values=quote.pcrs)


@pytest.mark.parametrize("kind", ["rsa2048", "p256"])
def test_a_credential_opens_only_with_both_keys_of_this_tpm(device: Device, kind: EkKind) -> None:
    identity = device.identity
    ak, other = identity.create_ak(), identity.create_ak()
    secret = secrets.token_bytes(32)
    ek = endorsement_key(identity.ek_public(kind))
    credential = make_credential(ek, ak.name, secret)
    assert identity.activate_credential(ak, credential.blob, credential.encrypted_secret, kind) == secret
    with pytest.raises(KeyStoreError, match="another attestation key or another TPM"):
        identity.activate_credential(other, credential.blob, credential.encrypted_secret, kind)
    with pytest.raises(KeyStoreError, match="malformed"):
        identity.activate_credential(ak, b"\xff", credential.encrypted_secret, kind)


def test_the_attestation_key_is_the_same_after_a_reboot_and_another_one_in_another_tpm(
    device: Device, tpm: Swtpm, tmp_path: Path
) -> None:
    ak = device.identity.create_ak()
    tpm.restart()
    again = TpmIdentity(Device(device.root, tpm.tcti, device.private).connection)
    assert again.load_ak(ak.stored) == ak
    with Swtpm(tmp_path / "clone") as other:
        cloned = Device(tmp_path, other.tcti, device.private, name="clone").identity
        with pytest.raises(KeyStoreError, match="the disk comes from another device"):
            cloned.load_ak(ak.stored)
    with pytest.raises(KeyStoreError, match="damaged"):
        again.load_ak(ak.stored[:-5])


def test_the_certificates_that_the_manufacturer_left_are_found_and_verified(
    tmp_path: Path, policy_private: object
) -> None:
    if reason := swtpm.missing("swtpm_setup"):
        pytest.skip(reason)
    with Swtpm(tmp_path, ek_certificate=True) as running:
        identity = Device(tmp_path, running.tcti, policy_private).identity  # type: ignore[arg-type]
        certificates = identity.ek_certificates()
        assert certificates[0].kind == "rsa2048"
        assert "p384" in {each.kind for each in certificates}
        assert identity.ek_kind() == "rsa2048"
        roots = tmp_path / "roots"
        roots.mkdir()
        for name in ("issuercert.pem", "swtpm-localca-rootca-cert.pem"):
            (roots / name).write_bytes((running.ca_directory / name).read_bytes())
        key = endorsement_key(identity.ek_public())
        TrustedRoots.load(roots).check(key, [certificates[0].der], datetime.now(UTC))


def test_a_tpm_without_certificates_says_so(device: Device) -> None:
    assert device.identity.ek_certificates() == []
    assert device.identity.ek_kind() == "rsa2048"


def test_the_counter_is_certified_with_its_value(device: Device) -> None:
    first = policy.sign(FirstCount(name="first"), device.private)
    device.with_root(lambda tpm, root: define_counter(tpm, root, first, device.key))
    ak = device.identity.create_ak()
    proof = device.identity.nv_certify(ak, policy.DEFAULT_COUNTER_INDEX, b"nonce")
    assert proof.value == 1
    assert b"nonce" in proof.attest
    assert policy.counter_name(device.key, policy.DEFAULT_COUNTER_INDEX) in proof.attest


def test_the_attestor_answers_the_bridges_challenge_and_keeps_its_key(device: Device) -> None:
    vault = device.initialised()
    attestor = TpmAttestor(device.identity, vault, device.state / "vault")
    keys = attestor.enrolment_keys()
    challenge = Challenge(
        session="0" * 32, nonce=secrets.token_bytes(32), expires_seconds=60, at="", at_ns=0, pcrs=sorted(PCRS)
    )
    credential = make_credential(endorsement_key(keys.ek_public), b"\x00\x0b" + _digest(keys.ak_public), b"s" * 32)
    assert attestor.activate(credential) == b"s" * 32
    recipient = attestor.recipient()
    proof = attestor.prove(challenge, b"csr", recipient, "dock-7")
    expected = binding(challenge.nonce, b"csr", recipient, "dock-7")
    public = attestation_key(attestor.enrolment_keys().ak_public)
    verify_quote(public, proof.quote, proof.signature, expected=expected, pcrs=PCRS, values=proof.pcrs or {})


@pytest.mark.parametrize("damaged", [b"", b"\0" * 400, b'{"seed":"AAAA"'])
def test_an_attestation_key_that_was_damaged_on_the_disk_is_made_again(device: Device, damaged: bytes) -> None:
    vault = device.initialised()
    attestor = TpmAttestor(device.identity, vault, device.state / "vault")
    before = attestor.enrolment_keys()
    file = device.state / "vault/ak.json"
    whole = file.read_bytes()
    file.write_bytes(damaged)
    after = attestor.enrolment_keys()
    assert after.ek_public == before.ek_public  # by which the bridge knows it
    assert after.ak_public != before.ak_public
    assert attestor.enrolment_keys().ak_public == after.ak_public
    # The control: one that is whole and of another TPM is not given up, and the remedy is named.
    key = msgspec.json.decode(whole, type=AttestationKey)
    file.write_bytes(msgspec.structs.replace(key, seed=bytes(32)).stored)
    with pytest.raises(KeyStoreError, match="Without that file the gateway enrols again"):
        attestor.enrolment_keys()


def _digest(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()
