"""Seals and unseals 32 bytes under an authorised policy (part 1 §22, §28)."""

from typing import Any

import msgspec

from gateway.vault import policy
from gateway.vault.errors import KeyStoreError
from gateway.vault.policy import PolicyKey, SignedApproval
from gateway.vault.tpm.approval import satisfy
from gateway.vault.tpm.connection import Tpm
from gateway.vault.tpm.objects import public_of, salted_session, sealed_data


class SealedBlob(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is kept on disk of a sealed secret: of no use without the TPM that made it."""

    public: bytes  # TPMT_PUBLIC
    private: bytes  # contents of TPM2B_PRIVATE


def seal(tpm: Tpm, root: Any, secret: bytes, key: PolicyKey) -> SealedBlob:
    """Seal a secret of at most 128 bytes under whatever `key` approves."""
    pytss = tpm.pytss
    template = public_of(tpm, sealed_data(policy.authorized(key, policy.KEY_REF)))
    sensitive = pytss.TPM2B_SENSITIVE_CREATE(pytss.TPMS_SENSITIVE_CREATE(data=pytss.TPM2B_SENSITIVE_DATA(secret)))
    with salted_session(tpm, root, "HMAC") as session:
        private, public, *_ = tpm.esys.create(root, sensitive, template, session1=session)
    return SealedBlob(public=bytes(public.publicArea.marshal()), private=bytes(private))


def unseal(tpm: Tpm, root: Any, blob: SealedBlob, signed: SignedApproval, key: PolicyKey) -> bytes:
    """Unseal a secret by one approval.

    Raises the library's failure when the TPM refuses.

    Raises:
        KeyStoreError: the blob cannot be read.
    """
    pytss = tpm.pytss
    try:
        public = public_of(tpm, blob.public)
        private = pytss.TPM2B_PRIVATE(blob.private)
    except (tpm.library.failure, ValueError) as error:
        raise KeyStoreError(f"the sealed key on disk is damaged: {error}") from error
    with salted_session(tpm, root, "POLICY") as session:
        satisfy(tpm, session, signed, key)
        with tpm.flushed(tpm.esys.load(root, private, public)) as item:
            return bytes(tpm.esys.unseal(item, session1=session))
