"""The directory of signed policies: `*.policy.json`, delivered with each system image."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

from gateway.vault.errors import VaultConfigError, VaultError
from gateway.vault.policy import (
    POLICY_SUFFIX,
    Advance,
    Approval,
    BootState,
    FirstCount,
    PolicyKey,
    SignedApproval,
    decode,
    read_policy_key,
    verified,
)

_MAX_BYTES: Final = 64 * 1024

Kind = TypeVar("Kind", BootState, FirstCount, Advance)


@dataclass(frozen=True, slots=True)
class Approved:
    """A file whose signature is right."""

    file: Path
    signed: SignedApproval

    @property
    def approval(self) -> Approval:
        """What it approves."""
        return self.signed.approval


@dataclass(frozen=True, slots=True)
class Rejected:
    """A file that counts for nothing."""

    file: Path
    reason: str


@dataclass(frozen=True, slots=True)
class Approvals:
    """What a directory holds, by name of file."""

    approved: tuple[Approved, ...]
    rejected: tuple[Rejected, ...]

    def of(self, kind: type[Kind]) -> Sequence[tuple[Approved, Kind]]:
        """Return those of one kind."""
        return [(each, each.approval) for each in self.approved if isinstance(each.approval, kind)]


def read_approvals(directory: Path, key: PolicyKey) -> Approvals:
    """Read and check all signed policies of a directory.

    Raises:
        VaultConfigError: the directory cannot be read.
    """
    approved: list[Approved] = []
    rejected: list[Rejected] = []
    try:
        files = sorted(file for file in directory.iterdir() if file.name.endswith(POLICY_SUFFIX))
    except OSError as error:
        raise VaultConfigError(f"vault.policy_directory {directory} cannot be read: {error.strerror}") from error
    for file in files:
        try:
            with file.open("rb") as opened:
                signed = decode(opened.read(_MAX_BYTES))
            verified(signed, key)
        except OSError as error:
            rejected.append(Rejected(file, f"cannot be read: {error.strerror or error}"))
        except VaultError as error:
            rejected.append(Rejected(file, str(error)))
        else:
            approved.append(Approved(file, signed))
    return Approvals(tuple(approved), tuple(rejected))


def read_key_file(file: Path) -> PolicyKey:
    """Read the policy key.

    Raises:
        VaultConfigError: it cannot be read, or is none.
    """
    try:
        return read_policy_key(file.read_bytes())
    except OSError as error:
        raise VaultConfigError(f"vault.policy_key_file {file} cannot be read: {error.strerror or error}") from error
    except VaultConfigError as error:
        raise VaultConfigError(f"{file}: {error}") from error
