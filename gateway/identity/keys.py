"""What the agent needs of the vault: the keys that prove the device, and the key that grants are wrapped to."""

from dataclasses import dataclass
from typing import Protocol

from gateway.wire.identity import Challenge, Credential, Level


@dataclass(frozen=True, slots=True)
class EnrolmentKeys:
    """The public halves, as `gateway.wire.identity.EnrolRequest` wants them."""

    ak_public: bytes
    ek_public: bytes = b""
    ek_certificates: tuple[bytes, ...] = ()


@dataclass(frozen=True, slots=True)
class Proof:
    """The answer to a challenge, as `gateway.wire.identity.AttestRequest` wants it."""

    signature: bytes
    quote: bytes = b""
    pcrs: dict[int, bytes] | None = None


class Attestor(Protocol):
    """The keys of the device. Its methods block, for as long as a TPM takes; all raise `VaultError`."""

    @property
    def level(self) -> Level:
        """Where the keys live."""
        ...

    def enrolment_keys(self) -> EnrolmentKeys:
        """Return the public keys, made if there are none yet."""
        ...

    def recipient(self) -> bytes:
        """Return the X25519 public key that content keys are wrapped to (32 bytes)."""
        ...

    def activate(self, credential: Credential) -> bytes:
        """Open a credential: the proof that attestation key and endorsement key are in one TPM."""
        ...

    def prove(self, challenge: Challenge, csr: bytes, recipient: bytes, gateway: str) -> Proof:
        """Answer a challenge, bound to these keys and this name."""
        ...
