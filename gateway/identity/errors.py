"""What can go wrong between a device and the bridge's identity listener."""

from collections.abc import Sequence

from gateway.errors import GatewayError


class IdentityError(GatewayError):
    """There is no valid identity, or it could not be had."""


class ClaimUnfitError(IdentityError):
    """The claim code that was left here is none."""


class IdentityUnreachableError(IdentityError):
    """The bridge did not answer, or not in time; trying again may help."""


class IdentityUntrustedError(IdentityError):
    """Whoever answered is not the bridge this device believes; nothing was sent that matters."""


class IdentityRefusedError(IdentityError):
    """The bridge said no, and why."""

    def __init__(
        self,
        code: str,
        message: str,
        *,
        refusal_id: str = "",
        pcrs: Sequence[int] = (),
        retry_after_seconds: float | None = None,
    ) -> None:
        """Take what the refusal says."""
        super().__init__(f"{message} ({code}{f', refusal {refusal_id}' if refusal_id else ''})")
        self.code = code
        self.refusal_id = refusal_id
        self.pcrs = tuple(pcrs)
        self.retry_after_seconds = retry_after_seconds
