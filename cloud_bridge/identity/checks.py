"""Everything that must hold before a device gets a certificate or a key, one check for each thing.

A bridge always makes all of them: `Checks()` is what it uses, and no configuration leads here. They stand side by side
so that a test can leave one out, and see that it is this one that keeps an attack away.
"""

import hashlib
import hmac
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from cloud_bridge.identity.attestation import (
    Attested,
    QuoteChecks,
    attestation_key,
    endorsement_key,
    software_key,
    verify_quote,
    verify_software,
)
from cloud_bridge.identity.devices import Device
from cloud_bridge.identity.errors import RefusedError
from cloud_bridge.identity.sessions import Pending, Session
from cloud_bridge.identity.states import BootState, matching
from cloud_bridge.identity.structures import Public
from gateway.wire.identity import AttestRequest, binding, software_message


def check_credential(secret: bytes | None, secret_digest: str) -> None:
    """Check that the secret of the credential came back. secret_digest: its SHA-256, hexadecimal.

    Raises:
        RefusedError: `wrong-secret`.
    """
    given = hashlib.sha256(secret or b"").hexdigest()
    if not hmac.compare_digest(given, secret_digest):
        raise RefusedError(
            "wrong-secret",
            "the credential was not opened: the attestation key is not in the TPM of the endorsement key",
        )


def is_same_hardware(known: Device, pending: Pending) -> bool:
    """Tell whether who asks has the TPM, or at level `software` the key, of the device that has the name."""
    if pending.level != known.level:
        return False
    if known.level == "software":
        return pending.ak_public == known.ak_public
    return pending.ek_digest == known.ek_digest


@dataclass(frozen=True, slots=True)
class Checks(QuoteChecks):
    """All checks. Each raises RefusedError, but `hardware`, which tells.

    `attestation_key`, `endorsement_key`: keys of the right kind. `hardware`: the TPM of the enrolment. `credential`:
    both keys are in one TPM. `state`: an approved one.
    """

    attestation_key: Callable[[bytes], Public] = attestation_key
    endorsement_key: Callable[[bytes], Public] = endorsement_key
    hardware: Callable[[Device, Pending], bool] = is_same_hardware
    credential: Callable[[bytes | None, str], None] = check_credential
    state: Callable[[Sequence[BootState], Mapping[int, bytes]], BootState] = matching

    def judge(
        self, session: Session, request: AttestRequest, states: Sequence[BootState]
    ) -> tuple[Attested | None, BootState | None]:
        """Judge the answer to a challenge; returns what was attested, nothing at level `software`.

        Raises:
            RefusedError: a check does not hold.
        """
        pending = session.pending
        if pending.secret_digest is not None:
            self.credential(request.secret, pending.secret_digest)
        parts = (session.nonce, request.csr, request.recipient, session.gateway)
        if pending.level == "software":
            verify_software(software_key(pending.ak_public), request.signature, software_message(*parts))
            return None, None
        attested = verify_quote(
            self.attestation_key(pending.ak_public),
            request.quote,
            request.signature,
            expected=binding(*parts),
            pcrs=frozenset(pending.pcrs),
            values={int(number): value for number, value in request.pcrs.items()},
            checks=self,
        )
        return attested, self.state(states, attested.pcrs)
