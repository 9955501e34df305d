"""Errors of the registry, named after who can act on them."""

from collections.abc import Sequence
from dataclasses import dataclass

from cloud_bridge.errors import BridgeError


class RegistryError(BridgeError):
    """The registry cannot do what was asked; a person must change something."""


class NotInitialisedError(RegistryError):
    """There is no repository yet; `cloud-bridge registry init` makes one."""


class NotFoundError(RegistryError):
    """There is no such file, or no such release."""


class ForbiddenError(RegistryError):
    """Who asks is not answered any more: the certificate was revoked, or has ended."""


class StorageError(BridgeError):
    """What keeps the releases cannot be read or written now; the same call may succeed later."""


class BusyError(RegistryError):
    """Another process changes the repository; it is to be tried again."""


class DistrustedError(RegistryError):
    """What lies in the store is not what this registry has signed last; nothing is built upon it."""


class SignatureMissingError(RegistryError):
    """A key that is not on this machine must sign first; what to sign is kept."""


@dataclass(frozen=True, slots=True)
class Problem:
    """Why a release is not taken.

    `code` is for programs. `where` is a file or a place in the manifest. Only an `acceptable` problem can be overruled
    by the person who publishes.
    """

    code: str
    where: str
    message: str
    remedy: str
    acceptable: bool = False

    def __str__(self) -> str:
        """Put it for people."""
        overruled = f"; or --accept {self.code}" if self.acceptable else ""
        return f"{self.where}: {self.message} [{self.code}]: {self.remedy}{overruled}"


class RefusedReleaseError(RegistryError):
    """A release is not taken; `problems` are all reasons that were found."""

    def __init__(self, label: str, problems: Sequence[Problem]) -> None:
        super().__init__(f"{label} is refused:" + "".join(f"\n  {problem}" for problem in problems))
        self.problems = tuple(problems)
