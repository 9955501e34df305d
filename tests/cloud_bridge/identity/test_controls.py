"""The same attacks on a bridge that leaves one check out: each gets through, so each check is what stops it."""

import secrets
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from cloud_bridge.identity.attestation import Attested
from cloud_bridge.identity.issuer import new_key
from cloud_bridge.identity.service import IdentityService
from cloud_bridge.identity.sessions import Session
from cloud_bridge.identity.states import BootState
from cloud_bridge.identity.structures import read_quote
from gateway.wire.identity import AttestRequest, Granted
from tests.cloud_bridge.identity.kit import Desk, desk_at
from tests.simulators.attested_device import AttestedDevice, RefusedByBridgeError, SoftTpm, csr_of


class CarelessService(IdentityService):
    """Takes whatever is presented: no signature, no nonce, no registers, no credential is looked at."""

    def _judge(
        self, session: Session, request: AttestRequest, states: list[BootState]
    ) -> tuple[Attested | None, BootState | None]:
        return Attested(read_quote(request.quote), {}), states[0]


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


def another_tpm_with_a_copied_disk(desk: Desk) -> Granted:
    desk.enrolled()
    return AttestedDevice("dock-7", desk.post, SoftTpm()).renew()


def an_unopened_credential(desk: Desk) -> Granted:
    device = desk.device()
    desk.approve_state_of(device)
    proof = device.proof(device.open_enrolment(desk.token("dock-7")))
    return device.send(msgspec.structs.replace(proof, secret=bytes(32)))


def a_forged_signature(desk: Desk) -> Granted:
    device = desk.enrolled()
    proof = device.proof(device.open_challenge())
    return device.send(msgspec.structs.replace(proof, signature=SoftTpm().sign(proof.quote)))


ATTACKS = [
    replay_in_a_new_session,
    own_keys_beside_a_strangers_quote,
    a_changed_kernel,
    lied_registers,
    another_tpm_with_a_copied_disk,
    an_unopened_credential,
    a_forged_signature,
]


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.__name__)
def test_an_attack_is_stopped_by_the_check_and_by_nothing_else(
    tmp_path: Path, attack: Callable[[Desk], Granted]
) -> None:
    with desk_at(tmp_path / "careful") as desk, pytest.raises(RefusedByBridgeError):
        attack(desk)
    with desk_at(tmp_path / "careless") as desk:
        desk.service.__class__ = CarelessService
        assert attack(desk).certificate_chain


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
