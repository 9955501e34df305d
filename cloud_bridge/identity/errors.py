"""Errors of the identity service."""

from typing import Literal

from cloud_bridge.errors import BridgeError
from gateway.wire.identity import RefusalCode


class IdentityError(BridgeError):
    """The identity service cannot do what was asked; a person must change something."""


class RefusedError(IdentityError):
    """A device does not get what it asks for.

    `pcrs` are the registers that differ, `evidence` is what an operator may want to look at; it is proven (signed by
    the device's attestation key) where `proven` says so.
    """

    def __init__(
        self,
        code: RefusalCode,
        message: str,
        *,
        pcrs: tuple[int, ...] = (),
        evidence: dict[str, str] | None = None,
        proven: bool = False,
        retry_after_seconds: float | None = None,
    ) -> None:
        super().__init__(message)
        self.code: RefusalCode = code
        self.message = message
        self.pcrs = pcrs
        self.evidence = evidence or {}
        self.proven = proven
        self.retry_after_seconds = retry_after_seconds


class MalformedStructureError(IdentityError):
    """Bytes that should be a TPM structure are none, or none of a kind that is taken here."""


AuthorityFault = Literal["away", "failed", "unfit"]
"""It does not answer; it answers that it does not; what it answers cannot be given out."""


class AuthorityError(IdentityError):
    """An authority outside of the bridge gives no certificate that could be handed on; it may do so later."""

    def __init__(self, fault: AuthorityFault, message: str) -> None:
        super().__init__(message)
        self.fault: AuthorityFault = fault
