"""The counter that the floor of updates is bound to: an NV index that this device itself moves (part 3 §31).

It may be moved under the policy that the vault key is sealed under, so by this machine in an approved state. Nobody can
turn it back. Who owns the TPM can remove it; one that is made anew begins above the highest value that the TPM has ever
had, so that does not turn it back either.
"""

from typing import Any

from gateway.vault import policy
from gateway.vault.errors import KeyStoreError
from gateway.vault.policy import FLOOR_COUNTER_INDEX, FORECAST_INDEX, PolicyKey, SignedApproval
from gateway.vault.tpm.approval import satisfy
from gateway.vault.tpm.connection import Tpm
from gateway.vault.tpm.counter import is_one_of, read_counter
from gateway.vault.tpm.objects import salted_session


def read_floor_counter(tpm: Tpm, key: PolicyKey) -> int | None:
    """Return the counter's value, None when it is not there or was never counted.

    Raises:
        KeyStoreError: something else has its index.
    """
    if FLOOR_COUNTER_INDEX not in tpm.handles(FLOOR_COUNTER_INDEX):
        return None
    _require_ours(tpm, FLOOR_COUNTER_INDEX, key)
    return read_counter(tpm, FLOOR_COUNTER_INDEX)


def count_floor_up(tpm: Tpm, root: Any, state: SignedApproval, key: PolicyKey) -> int:
    """Count up by one and return the new value; a counter that is not there is made, and begins.

    What comes back after a failure may be one step further: read it again.

    Raises:
        KeyStoreError: something else has its index.
    """
    return _counted(tpm, root, state, key, FLOOR_COUNTER_INDEX)


def forecast(tpm: Tpm, root: Any, state: SignedApproval, key: PolicyKey) -> int:
    """Return the value that a counter made now would begin with.

    The TPM does not tell the highest value that it has ever had, so another counter is made, counted and removed. The
    next one is above that; by one with the TPMs that were tried, and nobody has promised that.
    """
    _remove(tpm, FORECAST_INDEX, key)  # of a program that was killed here
    try:
        return _counted(tpm, root, state, key, FORECAST_INDEX) + 1
    finally:
        _remove(tpm, FORECAST_INDEX, key)


def forget_floor_counter(tpm: Tpm, key: PolicyKey) -> None:
    """Remove the counter, as at a factory reset: the next owner begins with a floor of his own.

    Raises:
        KeyStoreError: something else has its index; that is left alone.
    """
    _remove(tpm, FLOOR_COUNTER_INDEX, key)


def _counted(tpm: Tpm, root: Any, state: SignedApproval, key: PolicyKey, index: int) -> int:
    if index not in tpm.handles(index):
        area = tpm.pytss.TPMS_NV_PUBLIC.unmarshal(policy.floor_counter_public(key, index, written=False))[0]
        tpm.esys.nv_define_space(None, tpm.pytss.TPM2B_NV_PUBLIC(nvPublic=area), tpm.pytss.ESYS_TR.OWNER)
    _require_ours(tpm, index, key)
    handle = tpm.esys.tr_from_tpmpublic(index)
    with salted_session(tpm, root, "POLICY") as session:
        satisfy(tpm, session, state, key)
        tpm.esys.nv_increment(handle, session1=session)
    value = read_counter(tpm, index)
    assert value is not None
    return value


def _require_ours(tpm: Tpm, index: int, key: PolicyKey) -> None:
    areas = (policy.floor_counter_public(key, index, written=written) for written in (False, True))
    if not is_one_of(tpm, index, *areas):
        raise KeyStoreError(
            f"the NV index {index:#x} of the TPM is not the counter of updates under the policy key "
            f"{key.fingerprint[:12]}…: it belongs to another key or another program. Remove it, if nothing else needs "
            f"it: tpm2_nvundefine {index:#x}"
        )


def _remove(tpm: Tpm, index: int, key: PolicyKey) -> None:
    if index in tpm.handles(index):
        _require_ours(tpm, index, key)
        tpm.esys.nv_undefine_space(tpm.esys.tr_from_tpmpublic(index), tpm.pytss.ESYS_TR.OWNER)
