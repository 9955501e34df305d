"""Carries a signed approval out in a policy session of the TPM; see `gateway.vault.policy`."""

from collections.abc import Mapping
from typing import Any

from gateway.vault import policy
from gateway.vault.policy import Advance, Approval, BootState, FirstCount, PolicyKey, SignedApproval
from gateway.vault.tpm.connection import Tpm
from gateway.vault.tpm.objects import public_of


def satisfy(tpm: Tpm, session: Any, signed: SignedApproval, key: PolicyKey) -> None:
    """Bring a policy session to "approved by the policy key".

    Raises the library's failure when the machine is not in the approved state or the signature is wrong.
    """
    approval = signed.approval
    ticket = _ticket(tpm, signed, key)  # first, so that its key and the sealed object never need slots together
    assert_approval(tpm, session, approval)
    tpm.esys.policy_authorize(
        session,
        policy.approved_digest(approval, key),
        key.name,
        ticket,
        policy_ref=policy.ref_of(approval),
    )


def assert_approval(tpm: Tpm, session: Any, approval: Approval) -> None:
    """Run the assertions that an approval is made of."""
    pytss, esys = tpm.pytss, tpm.esys
    match approval:
        case BootState():
            selection = ",".join(str(number) for number in sorted(policy.pcr_values(approval)))
            esys.policy_pcr(session, None, f"sha256:{selection}")
            _compare(tpm, session, approval.counter_index, approval.counter_at_most, pytss.TPM2_EO.UNSIGNED_LE)
        case FirstCount():
            esys.policy_nv_written(session, written_set=False)
            esys.policy_command_code(session, pytss.TPM2_CC.NV_Increment)
        case Advance():
            _compare(tpm, session, approval.counter_index, approval.counter, pytss.TPM2_EO.EQ)
            esys.policy_command_code(session, pytss.TPM2_CC.NV_Increment)


def _compare(tpm: Tpm, session: Any, index: int, operand: int, operation: Any) -> None:
    counter = tpm.esys.tr_from_tpmpublic(index)
    value = tpm.pytss.TPM2B_OPERAND(operand.to_bytes(policy.NV_COUNTER_BYTES, "big"))
    tpm.esys.policy_nv(counter, counter, session, value, operation)


def _ticket(tpm: Tpm, signed: SignedApproval, key: PolicyKey) -> Any:
    """Have the TPM check the signature; the ticket says that it did."""
    digest = policy.message_digest(signed.approval, key)
    signature = tpm.pytss.TPMT_SIGNATURE.unmarshal(policy.tpm_signature(signed))[0]
    # The null hierarchy would give a ticket that TPM2_PolicyAuthorize does not take (part 3 §20.1).
    public = tpm.esys.load_external(public_of(tpm, key.area), hierarchy=tpm.pytss.ESYS_TR.OWNER)
    with tpm.flushed(public):
        return tpm.esys.verify_signature(public, digest, signature)


def values_for(states: Mapping[str, BootState]) -> list[int]:
    """Return the registers that any of some boot states names."""
    return sorted({number for state in states.values() for number in policy.pcr_values(state)})
