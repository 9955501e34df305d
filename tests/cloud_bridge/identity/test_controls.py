"""The same attacks on a bridge that leaves one check out: each gets through, so it is that check that stops it."""

import secrets
import struct
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import msgspec
import pytest
from cryptography.x509.oid import ExtendedKeyUsageOID

from cloud_bridge.identity.checks import Checks
from cloud_bridge.identity.endorsement import (
    ENDORSEMENT_CHECKS,
    EndorsementCheck,
    TrustedRoots,
    check_chain,
    check_key,
    check_purpose,
)
from cloud_bridge.identity.issuer import new_key, utc
from cloud_bridge.identity.states import BootState
from cloud_bridge.identity.structures import (
    GENERATED_VALUE,
    RESTRICTED,
    ST_ATTEST_QUOTE,
    Quote,
    read_public,
    read_quote,
)
from gateway.wire.identity import Granted, binding
from tests.cloud_bridge.identity.kit import HOUR, START, Desk, desk_at
from tests.simulators.attested_device import AK_ATTRIBUTES, AttestedDevice, RefusedByBridgeError, SoftTpm, csr_of
from tests.simulators.endorsement_ca import EndorsementCa

Attack = Callable[[Desk], Granted]


# ---- attacks on the attestation ------------------------------------------------------------------------


def replay_in_a_new_session(desk: Desk) -> Granted:
    device = desk.enrolled()
    device.renew()
    assert device.last is not None
    return device.send(msgspec.structs.replace(device.last, session=device.open_challenge().session))


def own_keys_beside_a_strangers_quote(desk: Desk) -> Granted:
    device = desk.enrolled()
    proof = device.proof(device.open_challenge())
    return device.send(msgspec.structs.replace(proof, csr=csr_of(new_key())))


def a_changed_kernel(desk: Desk) -> Granted:
    device = desk.enrolled()
    device.tpm.extend(11, secrets.token_bytes(32))
    return device.renew()


def lied_registers(desk: Desk) -> Granted:
    device = desk.enrolled()
    honest = device.tpm.pcrs([4, 7, 11])
    device.tpm.extend(11, bytes(32))
    proof = device.proof(device.open_challenge())
    return device.send(msgspec.structs.replace(proof, pcrs={str(n): v for n, v in honest.items()}))


def a_quote_without_the_register_that_differs(desk: Desk) -> Granted:
    device = desk.enrolled()
    honest = device.tpm.pcrs([4, 7, 11])
    device.tpm.extend(11, bytes(32))
    challenge = device.open_challenge()
    proof = device.proof(challenge)
    quote, signature = device.tpm.quote(binding(challenge.nonce, proof.csr, proof.recipient, "dock-7"), [4, 7])
    lie = {str(number): value for number, value in honest.items()}
    return device.send(msgspec.structs.replace(proof, quote=quote, signature=signature, pcrs=lie))


def another_tpm_with_a_copied_disk(desk: Desk) -> Granted:
    desk.enrolled()
    return AttestedDevice("dock-7", desk.post, SoftTpm()).renew()


def another_tpm_that_enrols_again(desk: Desk) -> Granted:
    desk.enrolled()
    return AttestedDevice("dock-7", desk.post, SoftTpm()).enrol()


def the_originals_endorsement_key_beside_an_attestation_key_of_its_own(desk: Desk) -> Granted:
    original = desk.enrolled()

    class Borrowed(SoftTpm):
        ek_public = original.tpm.ek_public

        def activate(self, credential: object) -> bytes:
            return bytes(32)

    return AttestedDevice("dock-7", desk.post, Borrowed()).enrol()


def an_unopened_credential(desk: Desk) -> Granted:
    device = desk.device()
    desk.approve_state_of(device)
    proof = device.proof(device.open_enrolment(desk.token("dock-7")))
    return device.send(msgspec.structs.replace(proof, secret=bytes(32)))


def a_forged_signature(desk: Desk) -> Granted:
    device = desk.enrolled()
    proof = device.proof(device.open_challenge())
    return device.send(msgspec.structs.replace(proof, signature=SoftTpm().sign(proof.quote)))


def an_attestation_key_that_signs_anything(desk: Desk) -> Granted:
    return desk.enrolled(tpm=SoftTpm(ak_attributes=AK_ATTRIBUTES & ~RESTRICTED)).renew()


def a_key_of_software_in_place_of_an_endorsement_key(desk: Desk) -> Granted:
    class Homemade(SoftTpm):
        def __init__(self) -> None:
            super().__init__()
            self._ek = self._ak

        @property
        def ek_public(self) -> bytes:
            return self.ak_public

    return desk.enrolled(tpm=Homemade()).renew()


def data_that_no_tpm_has_made(desk: Desk) -> Granted:
    tpm = SoftTpm()
    device = desk.enrolled(tpm=tpm)
    tpm.magic = GENERATED_VALUE - 1
    return device.renew()


def another_structure_than_a_quote(desk: Desk) -> Granted:
    tpm = SoftTpm()
    device = desk.enrolled(tpm=tpm)
    tpm.kind = ST_ATTEST_QUOTE - 1
    return device.renew()


# ---- the bridge without one of its checks --------------------------------------------------------------


def not_looked_at(*_: object) -> None:
    return


def the_same_for_all(*_: object) -> bool:
    return True


def any_state(states: Sequence[BootState], _: Mapping[int, bytes]) -> BootState:
    return states[0]


def whatever_it_says_it_is(blob: bytes) -> Quote:
    return read_quote(struct.pack(">IH", GENERATED_VALUE, ST_ATTEST_QUOTE) + blob[6:])


ATTACKS: list[tuple[Attack, str, Checks]] = [
    (replay_in_a_new_session, "quote-nonce", Checks(nonce=not_looked_at)),
    (own_keys_beside_a_strangers_quote, "quote-nonce", Checks(nonce=not_looked_at)),
    (a_changed_kernel, "wrong-pcr", Checks(state=any_state)),
    (lied_registers, "quote-pcrs", Checks(values=not_looked_at)),
    (a_quote_without_the_register_that_differs, "quote-pcrs", Checks(selection=not_looked_at)),
    (another_tpm_with_a_copied_disk, "quote-signature", Checks(signature=not_looked_at)),
    (another_tpm_that_enrols_again, "other-tpm", Checks(hardware=the_same_for_all)),
    (
        the_originals_endorsement_key_beside_an_attestation_key_of_its_own,
        "wrong-secret",
        Checks(credential=not_looked_at),
    ),
    (an_unopened_credential, "wrong-secret", Checks(credential=not_looked_at)),
    (a_forged_signature, "quote-signature", Checks(signature=not_looked_at)),
    (an_attestation_key_that_signs_anything, "ak-unfit", Checks(attestation_key=read_public)),
    (a_key_of_software_in_place_of_an_endorsement_key, "ek-unfit", Checks(endorsement_key=read_public)),
    (data_that_no_tpm_has_made, "quote-malformed", Checks(quote=whatever_it_says_it_is)),
    (another_structure_than_a_quote, "quote-malformed", Checks(quote=whatever_it_says_it_is)),
]


@pytest.mark.parametrize(("attack", "code", "without"), ATTACKS, ids=[attack.__name__ for attack, _, _ in ATTACKS])
def test_an_attack_is_stopped_by_its_check_and_by_no_other(
    tmp_path: Path, attack: Attack, code: str, without: Checks
) -> None:
    with desk_at(tmp_path / "careful") as desk:
        with pytest.raises(RefusedByBridgeError) as caught:
            attack(desk)
        assert caught.value.refusal.code == code
        assert code in desk.kinds()
    with desk_at(tmp_path / "careless", checks=without) as desk:
        assert attack(desk).certificate_chain


def test_every_check_has_its_attack() -> None:
    """Who adds a check adds the attack that it stops."""
    left_out = {
        name
        for _, _, without in ATTACKS
        for name in Checks.__dataclass_fields__
        if getattr(without, name) is not getattr(Checks(), name)
    }
    assert left_out == set(Checks.__dataclass_fields__)


# ---- attacks on the endorsement --------------------------------------------------------------------------


def a_certificate_of_another_tpm(maker: EndorsementCa, _: SoftTpm) -> list[bytes]:
    return maker.certify(SoftTpm().ek_key)


def a_certificate_for_web_clients(maker: EndorsementCa, tpm: SoftTpm) -> list[bytes]:
    return maker.certify(tpm.ek_key, usage=ExtendedKeyUsageOID.CLIENT_AUTH)


def a_certificate_of_a_maker_nobody_knows(_: EndorsementCa, tpm: SoftTpm) -> list[bytes]:
    return EndorsementCa(utc(START)).certify(tpm.ek_key)


def a_certificate_that_has_expired(maker: EndorsementCa, tpm: SoftTpm) -> list[bytes]:
    return maker.certify(tpm.ek_key, not_after=utc(START - HOUR))


@pytest.mark.parametrize(
    ("chain", "code", "check"),
    [
        (a_certificate_of_another_tpm, "ek-mismatch", check_key),
        (a_certificate_for_web_clients, "ek-untrusted", check_purpose),
        (a_certificate_of_a_maker_nobody_knows, "ek-untrusted", check_chain),
        (a_certificate_that_has_expired, "ek-untrusted", check_chain),
    ],
)
def test_a_false_endorsement_is_stopped_by_its_check_and_by_no_other(
    tmp_path: Path, chain: Callable[[EndorsementCa, SoftTpm], list[bytes]], code: str, check: EndorsementCheck
) -> None:
    maker, tpm = EndorsementCa(utc(START)), SoftTpm()
    others = [each for each in ENDORSEMENT_CHECKS if each is not check]
    for checks in (ENDORSEMENT_CHECKS, others):
        roots = TrustedRoots([maker.root], checks)
        with desk_at(tmp_path / str(len(checks)), roots=roots) as desk:
            device = desk.device(tpm=tpm)
            desk.approve_state_of(device)
            device.ek_certificates = chain(maker, tpm)
            token = desk.token("dock-7")
            if checks is others:
                assert device.enrol(token).certificate_chain
            else:
                with pytest.raises(RefusedByBridgeError) as caught:
                    device.enrol(token)
                assert caught.value.refusal.code == code


# ---- what the database remembers -----------------------------------------------------------------------


def test_a_session_that_could_be_used_twice_would_let_a_replay_in(tmp_path: Path) -> None:
    with desk_at(tmp_path) as desk:
        device = desk.enrolled()
        device.renew()
        assert device.last is not None
        with desk.db.transaction() as tx:
            tx.change("UPDATE identity_sessions SET used_ns = NULL")
        assert device.send(device.last).certificate_chain


def test_a_challenge_that_did_not_expire_would_let_a_stale_answer_in(tmp_path: Path) -> None:
    with desk_at(tmp_path, challenge_seconds=3600) as desk:
        device = desk.enrolled()
        challenge = device.open_challenge()
        desk.clock.pass_seconds(61)
        assert device.attest(challenge).certificate_chain


def test_a_device_that_was_not_revoked_goes_on(tmp_path: Path) -> None:
    with desk_at(tmp_path) as desk:
        device = desk.enrolled()
        desk.revoke("dock-7")
        with pytest.raises(RefusedByBridgeError, match="stolen"):
            device.renew()
        with desk.db.transaction() as tx:
            tx.change("UPDATE identity_devices SET revoked_ns = NULL")
        device.renew()


def test_a_claim_that_was_not_used_up_would_give_a_second_device_its_name(tmp_path: Path) -> None:
    with desk_at(tmp_path) as desk:
        token = desk.token("dock-7", replace=True)
        first = desk.device()
        desk.approve_state_of(first)
        first.enrol(token)
        thief = AttestedDevice("dock-7", desk.post, SoftTpm())
        with pytest.raises(RefusedByBridgeError, match="used already"):
            thief.enrol(token)
        with desk.db.transaction() as tx:
            tx.change("UPDATE identity_claims SET used_ns = NULL")
        assert thief.enrol(token).certificate_chain
