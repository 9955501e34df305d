"""Enrolment and attestation: what earns a certificate, and every way not to."""

import hashlib
import secrets
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID
from nacl.exceptions import CryptoError
from structlog.testing import capture_logs

from cloud_bridge.identity.attestation import key_digest
from cloud_bridge.identity.claims import Claim, add_claim, id_of_ek
from cloud_bridge.identity.database import Database
from cloud_bridge.identity.devices import find_device, hold_device, put_device, revoke_device
from cloud_bridge.identity.endorsement import TrustedRoots, spki_of
from cloud_bridge.identity.errors import IdentityError, RefusedError
from cloud_bridge.identity.issuer import utc
from gateway.wire.identity import PATH_TRUST, AttestRequest, Trust, binding
from gateway.wire.messages import decode
from tests.cloud_bridge.identity.kit import HOUR, SECOND, START, Desk, desk_at
from tests.simulators.attested_device import (
    AK_ATTRIBUTES,
    ActivationError,
    AttestedDevice,
    RefusedByBridgeError,
    SoftTpm,
    csr_of,
)
from tests.simulators.endorsement_ca import EndorsementCa

RESTRICTED, FIXED_TPM, DECRYPT = 1 << 16, 1 << 1, 1 << 17


def refusal_of(work: Callable[[], object]) -> str:
    with pytest.raises(RefusedByBridgeError) as caught:
        work()
    return caught.value.refusal.code


# ---- what works --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("rsa_ek", "rsa_ak"), [(False, False), (True, False), (False, True), (True, True)])
def test_a_device_with_a_claim_enrols_and_gets_a_certificate_for_an_hour(
    desk: Desk, *, rsa_ek: bool, rsa_ak: bool
) -> None:
    device = desk.device(tpm=SoftTpm(rsa_ek=rsa_ek, rsa_ak=rsa_ak))
    desk.approve_state_of(device)
    granted = device.enrol(desk.token("dock-7"))
    certificate = x509.load_pem_x509_certificate(granted.certificate_chain.encode())
    assert certificate.public_key() == device.key.public_key()
    assert granted.not_after_ns == START + HOUR
    assert granted.renew_at_ns == START + HOUR // 2
    assert granted.not_before_ns == START - 120 * SECOND
    assert granted.state == "appliance-1"
    assert granted.spiffe_id == "spiffe://sluice.test/gateway/dock-7"
    assert desk.kinds("dock-7") == {"enrolled"}


def test_an_enrolled_device_renews_without_a_claim_and_weeks_offline_do_not_matter(desk: Desk) -> None:
    device = desk.enrolled()
    desk.clock.pass_seconds(60 * 86_400)
    assert device.renew().not_after_ns == desk.clock() + HOUR


def test_trust_comes_with_the_fingerprint_that_is_in_the_claim_code(desk: Desk) -> None:
    trust = decode(desk.request("GET", PATH_TRUST).content, Trust)
    certificate = x509.load_pem_x509_certificate(trust.bundle.encode())
    assert trust.fingerprint == certificate.fingerprint(hashes.SHA256()).hex()
    assert trust.fingerprint == desk.ca.services_fingerprint


def test_an_enrolment_whose_answer_was_lost_is_repeated_without_a_new_claim(desk: Desk) -> None:
    device = desk.device()
    desk.approve_state_of(device)
    token = desk.token("dock-7")
    device.enrol(token)
    device.enrol(token)
    assert desk.kinds() == {"enrolled", "re-enrolled"}


def test_the_same_tpm_with_a_new_attestation_key_enrols_again(desk: Desk) -> None:
    tpm = SoftTpm()
    device = desk.enrolled(tpm=tpm)
    tpm.new_ak()
    assert refusal_of(device.renew) == "quote-signature"
    device.enrol()
    device.renew()


def test_each_attested_device_can_open_the_content_keys_and_nobody_else(desk: Desk) -> None:
    key = desk.keys.create("person/1", "ab" * 32)
    private = desk.keys.create("special/1", "cd" * 32, ["dock-8"])
    seven, eight = desk.enrolled("dock-7"), desk.enrolled("dock-8")
    granted = seven.renew()
    assert seven.open_grants(granted) == {"person/1": key.key}
    assert eight.open_grants(eight.renew()) == {"person/1": key.key, "special/1": private.key}
    with pytest.raises(CryptoError):
        eight.open_grants(granted)
    assert granted.grants[0].lease_until_ns == START + 30 * 86_400 * SECOND


def test_one_content_key_that_is_damaged_keeps_no_device_from_its_certificate(desk: Desk) -> None:
    device = desk.enrolled()
    good, bad = desk.keys.create("person/1", "ab" * 32), desk.keys.create("person/2", "cd" * 32)
    with desk.db.transaction() as tx:
        tx.change("UPDATE identity_keys SET sealed = ? WHERE release = ?", (b"damaged", bad.release))
    with capture_logs() as logs:
        for _ in range(3):
            assert device.open_grants(device.renew()) == {good.release: good.key}
    told = [(entry["event"], entry["release"]) for entry in logs if entry["log_level"] == "error"]
    assert told == [("content_key_unusable", bad.release)]
    # The control: who asks for all of them, to see or to seal with, hears of it.
    with pytest.raises(IdentityError, match="restore the key file"):
        desk.keys.all()


def test_a_key_that_was_revoked_is_given_out_no_more(desk: Desk) -> None:
    desk.keys.create("person/1", "ab" * 32)
    device = desk.enrolled()
    assert device.renew().grants
    desk.keys.revoke("person/1")
    assert not device.renew().grants


def test_the_whole_life_of_a_device_works_on_both_databases(database: Database, tmp_path: Path) -> None:
    with desk_at(tmp_path / "files", database=database) as desk:
        key = desk.keys.create("person/1", "ab" * 32)
        device = desk.enrolled()
        assert device.open_grants(device.renew()) == {"person/1": key.key}
        device.tpm.extend(11, secrets.token_bytes(32))
        assert refusal_of(device.renew) == "wrong-pcr"
        desk.approve_state_of(device, "appliance-2")
        device.renew()
        other = AttestedDevice("dock-7", desk.post, SoftTpm())
        assert refusal_of(other.enrol) == "other-tpm"
        desk.revoke("dock-7")
        assert refusal_of(device.renew) == "revoked-device"
        other.tpm.extend(11, bytes(32))
        desk.approve_state_of(other, "appliance-3")
        other.enrol(desk.token("dock-7", replace=True))
        other.renew()
        assert refusal_of(device.renew) == "quote-signature"
        assert desk.kinds("dock-7") >= {"enrolled", "wrong-pcr", "other-tpm", "revoked-device", "replaced"}


# ---- attestation refused -----------------------------------------------------------------------------


def test_a_replayed_attestation_is_refused(desk: Desk) -> None:
    device = desk.enrolled()
    device.renew()
    assert device.last is not None
    assert refusal_of(lambda: device.send(device.last)) == "session-used"  # type: ignore[arg-type]
    assert "session-used" in desk.kinds("dock-7")
    assert desk.refused("session-used") == 1


def test_a_quote_of_an_earlier_challenge_is_refused_in_a_new_session(desk: Desk) -> None:
    device = desk.enrolled()
    device.renew()
    recorded = device.last
    assert recorded is not None
    session = device.open_challenge().session
    assert refusal_of(lambda: device.send(msgspec.structs.replace(recorded, session=session))) == "quote-nonce"


@pytest.mark.parametrize(
    "stolen", [{"csr": csr_of(ec.generate_private_key(ec.SECP256R1()))}, {"recipient": secrets.token_bytes(32)}]
)
def test_a_quote_counts_only_for_the_keys_it_was_made_for(desk: Desk, stolen: dict[str, bytes]) -> None:
    device = desk.enrolled()
    proof = device.proof(device.open_challenge())
    assert refusal_of(lambda: device.send(msgspec.structs.replace(proof, **stolen))) == "quote-nonce"


def test_a_quote_that_binds_the_nonce_alone_is_refused(desk: Desk) -> None:
    """The usual quote, without the keys: whoever relays it could put keys of his own beside it."""
    device = desk.enrolled()
    challenge = device.open_challenge()
    proof = device.proof(challenge)
    quote, signature = device.tpm.quote(hashlib.sha256(challenge.nonce).digest(), challenge.pcrs)
    naive = msgspec.structs.replace(proof, quote=quote, signature=signature)
    assert refusal_of(lambda: device.send(naive)) == "quote-nonce"


def test_a_wrong_register_is_refused_by_name_and_can_be_approved_from_the_refusal(desk: Desk) -> None:
    device = desk.enrolled()
    device.tpm.extend(11, b"another kernel".ljust(32))
    with pytest.raises(RefusedByBridgeError, match="PCR 11") as caught:
        device.renew()
    refusal = caught.value.refusal
    assert (refusal.code, refusal.pcrs) == ("wrong-pcr", [11])
    (event,) = [event for event in desk.events() if event.id == refusal.refusal_id]
    assert event.happening.proven
    assert event.happening.evidence["11"] == device.tpm.pcrs([11])[11].hex()
    desk.approve("appliance-2", {int(n): bytes.fromhex(v) for n, v in event.happening.evidence.items()})
    assert device.renew().state == "appliance-2"


def test_without_an_approved_state_nobody_gets_anything(desk: Desk) -> None:
    device = desk.device()
    token = desk.token("dock-7")
    assert refusal_of(lambda: device.enrol(token)) == "no-approved-state"
    desk.approve_state_of(device)
    device.enrol(token)  # the claim was not used up by the refusal


def test_lied_register_values_are_refused(desk: Desk) -> None:
    device = desk.enrolled()
    honest = device.tpm.pcrs([4, 7, 11])
    device.tpm.extend(11, bytes(32))
    proof = device.proof(device.open_challenge())
    lie = msgspec.structs.replace(proof, pcrs={str(n): v for n, v in honest.items()})
    assert refusal_of(lambda: device.send(lie)) == "quote-pcrs"


def test_a_quote_over_fewer_registers_is_refused(desk: Desk) -> None:
    device = desk.enrolled()
    device.tpm.extend(11, bytes(32))
    challenge = device.open_challenge()
    fewer = msgspec.structs.replace(challenge, pcrs=[4, 7])
    assert refusal_of(lambda: device.attest(fewer)) == "quote-pcrs"


@pytest.mark.parametrize("forgery", [{"magic": 0xFF544346}, {"kind": 0x8017}, {"bank": 0x0004}])
def test_what_is_no_quote_over_sha256_is_refused_although_the_key_signed_it(
    desk: Desk, forgery: dict[str, int]
) -> None:
    tpm = SoftTpm()
    device = desk.enrolled(tpm=tpm)
    for name, value in forgery.items():
        setattr(tpm, name, value)
    assert refusal_of(device.renew) in {"quote-malformed", "quote-pcrs"}


def test_one_flipped_bit_anywhere_in_quote_or_signature_is_refused(desk: Desk) -> None:
    device = desk.enrolled()

    def send_bent(name: str, at: int) -> None:
        proof = device.proof(device.open_challenge())
        bent = bytearray(getattr(proof, name))
        bent[at] ^= 1
        device.send(msgspec.structs.replace(proof, **{name: bytes(bent)}))

    for name, size in (("quote", 133), ("signature", 72)):
        for at in range(0, size, 7):
            with pytest.raises(RefusedByBridgeError, match=r"quote-(signature|malformed)"):
                send_bent(name, at)
    device.renew()


def test_another_devices_quote_is_refused(desk: Desk) -> None:
    seven, eight = desk.enrolled("dock-7"), desk.enrolled("dock-8")
    challenge = seven.open_challenge()
    forged = AttestedDevice("dock-7", desk.post, eight.tpm)
    assert refusal_of(lambda: forged.attest(challenge)) == "quote-signature"


def test_a_challenge_is_good_for_the_device_that_asked_alone(desk: Desk) -> None:
    seven, eight = desk.enrolled("dock-7"), desk.enrolled("dock-8")
    assert refusal_of(lambda: eight.attest(seven.open_challenge())) == "session-unknown"


def test_a_stale_nonce_is_refused(desk: Desk) -> None:
    device = desk.enrolled()
    challenge = device.open_challenge()
    desk.clock.pass_seconds(61)
    assert refusal_of(lambda: device.attest(challenge)) == "session-expired"
    challenge = device.open_challenge()
    desk.clock.pass_seconds(59)
    device.attest(challenge)


def test_a_failed_try_uses_the_challenge_up(desk: Desk) -> None:
    device = desk.enrolled()
    proof = device.proof(device.open_challenge())
    assert refusal_of(lambda: device.send(msgspec.structs.replace(proof, recipient=bytes(32)))) == "recipient-unfit"
    assert refusal_of(lambda: device.send(proof)) == "session-used"


def test_a_revoked_device_is_refused_also_in_the_middle_of_an_attestation(desk: Desk) -> None:
    device = desk.enrolled()
    challenge = device.open_challenge()
    desk.revoke("dock-7")
    assert refusal_of(lambda: device.attest(challenge)) == "revoked-device"
    assert refusal_of(device.renew) == "revoked-device"
    assert refusal_of(device.enrol) == "revoked-device"


def test_an_unknown_device_is_told_to_enrol(desk: Desk) -> None:
    assert refusal_of(desk.device().renew) == "unknown-device"


@pytest.mark.parametrize(
    "csr",
    [
        b"",
        b"\x30\x00",
        csr_of(rsa.generate_private_key(65537, 2048)),
        csr_of(ec.generate_private_key(ec.SECP384R1())),
    ],
)
def test_a_request_for_another_kind_of_key_is_refused(desk: Desk, csr: bytes) -> None:
    device = desk.enrolled()
    proof = device.proof(device.open_challenge())
    assert refusal_of(lambda: device.send(msgspec.structs.replace(proof, csr=csr))) == "csr-unfit"


def test_a_request_that_its_key_has_not_signed_is_refused(desk: Desk) -> None:
    device = desk.enrolled()
    proof = device.proof(device.open_challenge())
    bent = bytearray(proof.csr)
    bent[-1] ^= 1
    assert refusal_of(lambda: device.send(msgspec.structs.replace(proof, csr=bytes(bent)))) == "csr-unfit"


LOW_ORDER = bytes.fromhex("e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800")


@pytest.mark.parametrize("recipient", [b"", bytes(31), bytes(33), bytes(32), b"\1" + bytes(31), LOW_ORDER])
def test_a_recipient_with_which_anybody_could_open_the_box_is_refused(desk: Desk, recipient: bytes) -> None:
    device = desk.enrolled()
    challenge = device.open_challenge()
    proof = device.proof(challenge)
    quote, signature = device.tpm.quote(binding(challenge.nonce, proof.csr, recipient, "dock-7"), challenge.pcrs)
    bad = msgspec.structs.replace(proof, recipient=recipient, quote=quote, signature=signature)
    assert refusal_of(lambda: device.send(bad)) == "recipient-unfit"


def test_a_clock_that_is_off_is_told_about_and_survived(desk: Desk) -> None:
    device = desk.enrolled()
    device.clock_ns = 0
    assert device.renew().at_ns == desk.clock()
    assert "clock-off" in desk.kinds("dock-7")


# ---- enrolment refused -------------------------------------------------------------------------------


def test_nobody_enrols_without_a_claim(desk: Desk) -> None:
    device = desk.device()
    desk.approve_state_of(device)
    assert refusal_of(device.enrol) == "claim-needed"
    assert refusal_of(lambda: device.enrol("abcdefgh")) == "claim-unknown"
    assert refusal_of(lambda: device.enrol(desk.token("dock-8"))) == "claim-unknown"
    device.enrol(desk.token("dock-7"))


def test_a_claim_is_good_once_and_for_a_while(desk: Desk) -> None:
    device = desk.device()
    desk.approve_state_of(device)
    late = desk.token("dock-7", seconds=60)
    desk.clock.pass_seconds(61)
    assert refusal_of(lambda: device.enrol(late)) == "claim-expired"
    token = desk.token("dock-7")
    device.enrol(token)
    with desk.db.transaction() as tx:
        tx.change("DELETE FROM identity_devices")
    assert refusal_of(lambda: device.enrol(token)) == "claim-used"


def test_a_claim_that_a_known_device_does_not_need_is_told_about(desk: Desk) -> None:
    token = desk.token("dock-7")
    device = desk.device()
    desk.approve_state_of(device)
    assert device.enrol(token).notice == ""
    # As after an answer that was lost: it must not be kept out, but somebody may wonder what became of the code.
    used = device.enrol(token).notice
    assert "not needed" in used
    assert "used already" in used
    assert "token create" in used
    assert "not known" in device.enrol("mistyped").notice
    assert device.enrol().notice == ""
    assert device.renew().notice == ""


def test_a_claim_that_does_not_help_is_named_beside_what_keeps_the_device_out(desk: Desk) -> None:
    token = desk.token("dock-7")
    device = desk.device()
    desk.approve_state_of(device)
    device.enrol(token)
    with pytest.raises(RefusedByBridgeError, match=r"--replace.*does not help: .*used already") as caught:
        AttestedDevice("dock-7", desk.post, SoftTpm()).enrol(token)
    assert caught.value.refusal.code == "other-tpm"
    desk.revoke("dock-7")
    with pytest.raises(RefusedByBridgeError, match=r"stolen.*does not help: .*used already") as caught:
        device.enrol(token)
    assert caught.value.refusal.code == "revoked-device"


def test_of_two_devices_that_use_one_claim_at_once_one_enrols(desk: Desk) -> None:
    first, second = desk.device(), desk.device()
    desk.approve_state_of(first)
    token = desk.token("dock-7")
    challenges = first.open_enrolment(token), second.open_enrolment(token)
    first.attest(challenges[0])
    assert refusal_of(lambda: second.attest(challenges[1])) == "claim-used"


def test_of_two_claims_for_one_name_the_second_does_not_take_it_from_the_device_that_has_it_now(desk: Desk) -> None:
    first, second = desk.device(), desk.device()
    desk.approve_state_of(first)
    challenges = first.open_enrolment(desk.token("dock-7")), second.open_enrolment(desk.token("dock-7"))
    first.attest(challenges[0])
    assert refusal_of(lambda: second.attest(challenges[1])) == "other-tpm"
    first.renew()
    # The control: what is refused is the taking over, which an operator can allow.
    challenge = second.open_enrolment(desk.token("dock-7", replace=True))
    second.attest(challenge)


def test_a_challenge_from_before_a_revocation_does_not_undo_it(desk: Desk) -> None:
    first, second = desk.device(), desk.device()
    desk.approve_state_of(first)
    early = second.open_enrolment(desk.token("dock-7"))
    first.enrol(desk.token("dock-7"))
    desk.revoke("dock-7")
    assert refusal_of(lambda: second.attest(early)) in {"other-tpm", "revoked-device"}
    assert refusal_of(first.renew) == "revoked-device"


def test_a_software_device_that_was_replaced_meanwhile_does_not_come_back_with_an_old_challenge(tmp_path: Path) -> None:
    with desk_at(tmp_path, allow_software=True) as desk:
        first, second = desk.software_device(), desk.software_device()
        first.enrol(desk.token("dev-1"))
        early = first.open_enrolment()
        second.enrol(desk.token("dev-1", replace=True))
        assert refusal_of(lambda: first.attest(early)) == "other-tpm"
        second.renew()


def test_a_claim_is_kept_as_a_digest_only(desk: Desk) -> None:
    token = desk.token("dock-7")
    with desk.db.transaction() as tx:
        assert token not in str(tx.rows("SELECT * FROM identity_claims"))


def test_a_cloned_disk_in_another_tpm_is_refused_and_told_about(desk: Desk) -> None:
    original = desk.enrolled()
    clone = AttestedDevice("dock-7", desk.post, SoftTpm())
    assert refusal_of(clone.renew) == "quote-signature"
    assert refusal_of(clone.enrol) == "other-tpm"
    assert desk.kinds("dock-7") >= {"quote-signature", "other-tpm"}
    original.renew()
    # The protection is what stops it: with an operator's consent the same device gets in.
    clone.enrol(desk.token("dock-7", replace=True))
    clone.renew()


def test_a_clone_that_presents_the_originals_endorsement_key_cannot_open_the_credential(desk: Desk) -> None:
    original = desk.enrolled()
    clone = AttestedDevice("dock-7", desk.post, SoftTpm())
    honest = clone.tpm

    class Borrowed(SoftTpm):
        ek_public = original.tpm.ek_public
        ak_public = honest.ak_public

        def activate(self, credential: object) -> bytes:
            return bytes(32)

        def quote(self, qualifying: bytes, pcrs: list[int]) -> tuple[bytes, bytes]:
            return honest.quote(qualifying, pcrs)

    clone.tpm = Borrowed()
    assert refusal_of(clone.enrol) == "wrong-secret"


def test_a_credential_opens_only_for_the_pair_of_keys_it_was_made_for(desk: Desk) -> None:
    device = desk.device()
    challenge = device.open_enrolment(desk.token("dock-7"))
    assert challenge.credential is not None
    with pytest.raises(ActivationError):
        SoftTpm().activate(challenge.credential)
    tpm = device.tpm
    assert isinstance(tpm, SoftTpm)
    tpm.new_ak()
    with pytest.raises(ActivationError):
        tpm.activate(challenge.credential)


@pytest.mark.parametrize(
    "attributes", [AK_ATTRIBUTES & ~RESTRICTED, AK_ATTRIBUTES & ~FIXED_TPM, AK_ATTRIBUTES | DECRYPT]
)
def test_an_attestation_key_that_signs_anything_is_refused(desk: Desk, attributes: int) -> None:
    device = desk.device(tpm=SoftTpm(ak_attributes=attributes))
    assert refusal_of(lambda: device.enrol(desk.token("dock-7"))) == "ak-unfit"


def test_a_signing_key_is_no_endorsement_key(desk: Desk) -> None:
    device = desk.device()
    tpm = device.tpm

    class Swapped(SoftTpm):
        ek_public = tpm.ak_public

    device.tpm = Swapped()
    assert refusal_of(lambda: device.enrol(desk.token("dock-7"))) == "ek-unfit"


# ---- endorsement certificates ------------------------------------------------------------------------


@pytest.fixture
def maker() -> EndorsementCa:
    return EndorsementCa(utc(START))


def test_with_trusted_roots_only_a_certified_endorsement_key_enrols(tmp_path: Path, maker: EndorsementCa) -> None:
    with desk_at(tmp_path, roots=TrustedRoots([maker.root])) as desk:
        device = desk.device()
        desk.approve_state_of(device)
        token = desk.token("dock-7")
        foreign = EndorsementCa(utc(START))
        for chain in ([], foreign.certify(device.tpm.ek_key), [b"\x30\x03\x02\x01\x00"]):
            device.ek_certificates = chain
            assert refusal_of(lambda: device.enrol(token)) == "ek-untrusted"
        device.ek_certificates = maker.certify(SoftTpm().ek_key)
        assert refusal_of(lambda: device.enrol(token)) == "ek-mismatch"
        device.ek_certificates = maker.certify(device.tpm.ek_key)
        device.enrol(token)


@pytest.mark.parametrize(
    "knobs",
    [{"usage": ExtendedKeyUsageOID.CLIENT_AUTH}, {"authority": True}, {"not_after": utc(START - HOUR)}],
)
def test_a_certificate_for_something_else_is_no_endorsement(
    tmp_path: Path, maker: EndorsementCa, knobs: dict[str, object]
) -> None:
    with desk_at(tmp_path, roots=TrustedRoots([maker.root])) as desk:
        device = desk.device()
        device.ek_certificates = maker.certify(device.tpm.ek_key, **knobs)  # type: ignore[arg-type]
        assert refusal_of(lambda: device.enrol(desk.token("dock-7"))) == "ek-untrusted"


def test_without_trusted_roots_a_claim_token_alone_vouches(desk: Desk) -> None:
    """What the roots protect from: a TPM that nobody has certified gets in."""
    desk.enrolled()


def test_a_tpm_that_was_announced_by_its_certificate_enrols_without_a_token(
    tmp_path: Path, maker: EndorsementCa
) -> None:
    with desk_at(tmp_path, roots=TrustedRoots([maker.root])) as desk:
        device = desk.device()
        desk.approve_state_of(device)
        device.ek_certificates = maker.certify(device.tpm.ek_key)
        assert refusal_of(device.enrol) == "claim-needed"
        claim_id = id_of_ek(key_digest(spki_of(device.tpm.ek_key)))
        with desk.db.transaction() as tx:
            add_claim(
                tx,
                Claim(
                    claim_id, "dock-7", "ek", replaces=False, created_ns=START, expires_ns=START + HOUR, used_ns=None
                ),
            )
        stranger = desk.device(tpm=SoftTpm())
        stranger.ek_certificates = maker.certify(stranger.tpm.ek_key)
        assert refusal_of(stranger.enrol) == "claim-needed"
        device.enrol()
        device.renew()


def test_an_announced_key_without_a_certificate_vouches_for_nothing(desk: Desk) -> None:
    device = desk.device()
    claim_id = id_of_ek(key_digest(spki_of(device.tpm.ek_key)))
    with desk.db.transaction() as tx:
        add_claim(
            tx, Claim(claim_id, "dock-7", "ek", replaces=False, created_ns=START, expires_ns=START + HOUR, used_ns=None)
        )
    assert refusal_of(device.enrol) == "claim-needed"


# ---- level software ----------------------------------------------------------------------------------


def test_a_device_without_a_tpm_is_refused_unless_the_configuration_lets_it_in(tmp_path: Path, desk: Desk) -> None:
    assert refusal_of(lambda: desk.software_device().enrol(desk.token("dev-1"))) == "software-not-allowed"
    with desk_at(tmp_path / "lax", allow_software=True) as lax:
        device = lax.software_device()
        device.enrol(lax.token("dev-1"))
        device.renew()
        impostor = lax.software_device()
        assert refusal_of(impostor.renew) == "wrong-key"
        assert refusal_of(impostor.enrol) == "other-tpm"
    with desk_at(tmp_path / "lax") as strict:  # the same database, and a stricter configuration
        again = strict.software_device()
        again.identity = device.identity
        assert refusal_of(again.renew) == "software-not-allowed"


def test_a_device_with_a_tpm_does_not_fall_back_to_software(tmp_path: Path) -> None:
    with desk_at(tmp_path, allow_software=True) as desk:
        desk.enrolled("dock-7")
        assert refusal_of(lambda: desk.software_device("dock-7").enrol()) == "other-tpm"
        assert refusal_of(lambda: desk.software_device("dock-7").renew()) in {"quote-signature", "quote-malformed"}


# ---- what is remembered ------------------------------------------------------------------------------


def test_the_same_refusal_from_the_same_side_is_one_event_with_a_count(desk: Desk) -> None:
    device = desk.device()
    ids = set()
    for _ in range(5):
        with pytest.raises(RefusedByBridgeError) as caught:
            device.renew()
        ids.add(caught.value.refusal.refusal_id)
    (event,) = desk.events()
    assert ids == {event.id}
    assert (event.count, event.happening.who) == (5, "192.0.2.7")


def test_no_request_shows_in_an_event(desk: Desk) -> None:
    token = desk.token("dock-8")
    device = desk.device()
    assert refusal_of(lambda: device.enrol(token)) == "claim-unknown"
    assert token not in str(desk.events())


def test_an_attest_request_holds_every_field_that_the_quote_binds() -> None:
    names = {field.name for field in msgspec.structs.fields(AttestRequest)}
    assert names >= {"csr", "recipient", "gateway", "session"}


# ---- at the same instant -----------------------------------------------------------------------------


def test_a_revocation_that_waits_for_an_enrolment_finds_the_device(database: Database, tmp_path: Path) -> None:
    with desk_at(tmp_path, database=database) as desk, ThreadPoolExecutor(1) as threads:
        desk.enrolled()
        with database.transaction() as tx:
            device = hold_device(tx, "dock-7")
            assert device is not None
            revoked = threads.submit(desk.revoke, "dock-7")
            with pytest.raises(TimeoutError):
                revoked.result(0.3)
            put_device(tx, device)  # as the same TPM does when it enrols again
        revoked.result()
        with database.transaction() as tx:
            found = find_device(tx, "dock-7")
        assert found is not None
        assert found.revoked_ns is not None


def test_an_enrolment_that_waits_for_a_revocation_does_not_undo_it(database: Database, tmp_path: Path) -> None:
    with desk_at(tmp_path, database=database) as desk, ThreadPoolExecutor(1) as threads:
        device = desk.enrolled()
        request = device.proof(device.open_enrolment())
        with database.transaction() as tx:
            revoke_device(tx, "dock-7", "stolen", desk.clock())
            attested = threads.submit(desk.service.attest, request, "192.0.2.7")
            with pytest.raises(TimeoutError):
                attested.result(0.3)
        with pytest.raises(RefusedError, match="revoked"):
            attested.result()
