"""The counter that makes old images worthless: an NV index that only signed approvals can move."""

import hashlib
from typing import Any

from gateway.vault import policy
from gateway.vault.errors import KeyStoreError, VaultError
from gateway.vault.policy import Advance, FirstCount, PolicyKey, SignedApproval
from gateway.vault.tpm.approval import satisfy
from gateway.vault.tpm.codes import NV_UNINITIALIZED
from gateway.vault.tpm.connection import Tpm
from gateway.vault.tpm.objects import salted_session


def read_counter(tpm: Tpm, index: int) -> int | None:
    """Return the counter's value, None when it is not there or was never counted."""
    if index not in tpm.handles(index):
        return None
    handle = tpm.esys.tr_from_tpmpublic(index)
    try:
        return int.from_bytes(bytes(tpm.esys.nv_read(handle, policy.NV_COUNTER_BYTES)), "big")
    except tpm.library.failure as error:
        if error.rc == NV_UNINITIALIZED:  # type: ignore[attr-defined]  # untyped library
            return None
        raise


def define_counter(tpm: Tpm, root: Any, first: SignedApproval, key: PolicyKey) -> int:
    """Make the counter if it is not there, count it for the first time if it never was, and return its value.

    A new counter starts above the highest that this TPM has ever had, so it never goes back, also when it is removed
    and made again.

    Raises:
        KeyStoreError: something else has its index.
    """
    approval = first.approval
    assert isinstance(approval, FirstCount)
    index = approval.counter_index
    if index not in tpm.handles(index):
        public = policy.counter_public(key, index, written=False)
        area = tpm.pytss.TPMS_NV_PUBLIC.unmarshal(public)[0]
        tpm.esys.nv_define_space(None, tpm.pytss.TPM2B_NV_PUBLIC(nvPublic=area), tpm.pytss.ESYS_TR.OWNER)
    require_ours(tpm, index, key)
    value = read_counter(tpm, index)
    if value is None:
        _increment(tpm, root, first, key)
        value = read_counter(tpm, index)
    assert value is not None
    return value


def advance_counter(tpm: Tpm, root: Any, signed: SignedApproval, key: PolicyKey) -> int:
    """Count up by one; returns the new value. What comes back after a failure may be one step further: read it again.

    Raises:
        VaultError: the approval is for another value than the present one.
    """
    approval = signed.approval
    assert isinstance(approval, Advance)
    require_ours(tpm, approval.counter_index, key)
    value = read_counter(tpm, approval.counter_index)
    if value != approval.counter:
        raise VaultError(f"the counter is {value}, this approval is for the step from {approval.counter}")
    _increment(tpm, root, signed, key)
    return value + 1


def require_ours(tpm: Tpm, index: int, key: PolicyKey) -> None:
    """Make sure that the index is the counter of this policy key.

    Raises:
        KeyStoreError: it is something else; with another one no approval is ever fulfilled.
    """
    if not is_one_of(tpm, index, *(policy.counter_public(key, index, written=written) for written in (False, True))):
        raise KeyStoreError(
            f"the NV index {index:#x} of the TPM is not the counter of the policy key {key.fingerprint[:12]}…: it "
            "belongs to another key or another program. Remove it, if nothing else needs it (tpm2_nvundefine "
            f"{index:#x}), or sign the policies for another index (`gateway vault policy sign --counter-index`)"
        )


def is_one_of(tpm: Tpm, index: int, *public: bytes) -> bool:
    """Tell whether an NV index, which is there, has one of these public areas (TPMS_NV_PUBLIC)."""
    name = bytes(tpm.esys.tr_get_name(tpm.esys.tr_from_tpmpublic(index)))
    return name in {policy.ALG_SHA256.to_bytes(2, "big") + hashlib.sha256(area).digest() for area in public}


def _increment(tpm: Tpm, root: Any, signed: SignedApproval, key: PolicyKey) -> None:
    handle = tpm.esys.tr_from_tpmpublic(signed.approval.counter_index)
    with salted_session(tpm, root, "POLICY") as session:
        satisfy(tpm, session, signed, key)
        tpm.esys.nv_increment(handle, session1=session)
