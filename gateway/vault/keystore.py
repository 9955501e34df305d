"""Where the key of the vault lives: in a TPM, or, for development, in a file."""

from dataclasses import dataclass
from typing import Literal, Protocol

Level = Literal["tpm", "software"]


@dataclass(frozen=True, slots=True)
class ApprovalStatus:
    """A signed policy and whether it holds now."""

    file: str
    name: str
    kind: str  # `boot`, `first`, `advance`; empty when it cannot be read
    holds: bool
    reasons: tuple[str, ...] = ()  # why not


@dataclass(frozen=True, slots=True)
class KeyStoreStatus:
    """What a key store can say of itself without giving anything out."""

    level: Level
    ready: bool  # a key could be unsealed now, as far as can be told without doing it
    reasons: tuple[str, ...] = ()  # why not
    warnings: tuple[str, ...] = ()
    tcti: str = ""
    policy_key: str = ""  # fingerprint
    pcrs: dict[int, str] | None = None  # hex
    counter_index: int | None = None
    counter: int | None = None
    approvals: tuple[ApprovalStatus, ...] = ()


class KeyStore(Protocol):
    """Seals small secrets so that only this device can open them, at level `tpm` only in an approved state."""

    @property
    def level(self) -> Level:
        """As in the configuration."""

    def provision(self) -> None:
        """Prepare this device; does nothing where that was done. Raises KeyStoreError."""

    def forget(self) -> None:
        """Undo `provision` on this side: what was sealed is lost. Raises KeyStoreError."""

    def seal(self, secret: bytes) -> bytes:
        """Seal 32 bytes; returns what to keep on disk. Raises KeyStoreError."""

    def unseal(self, blob: bytes) -> bytes:
        """Open what `seal` returned.

        Raises:
            PolicyRefusedError: the machine is not in an approved state; says in what it differs.
            KeyStoreUnavailableError: no answer in time.
            KeyStoreError: it was sealed elsewhere, or is damaged.
        """

    def status(self) -> KeyStoreStatus:
        """Tell how it is; an unreachable TPM is a status, no error."""
