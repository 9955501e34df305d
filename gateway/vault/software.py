"""The key store for development: a key in a file. Whoever copies the disk has it."""

import os
import secrets
import stat
from pathlib import Path
from typing import Final

import nacl.exceptions
import structlog
from nacl.secret import Aead

from gateway.vault.errors import KeyStoreError, VaultConfigError
from gateway.vault.files import write_durably
from gateway.vault.keystore import KeyStoreStatus, Level

log = structlog.get_logger()

APPLIANCE_MARKER: Final = Path("/usr/lib/sluice/appliance")
"""In the appliance image, whose root is read-only and verified: there, level `software` is refused."""

WARNING: Final = "level software: the keys lie in a file beside what they protect; for development only"

_FILE: Final = "software.key"
_PURPOSE: Final = b"sluice software key store v1"


class SoftwareKeyStore:
    """Seals with a key file, 0600."""

    level: Final[Level] = "software"

    def __init__(self, directory: Path, *, appliance_marker: Path = APPLIANCE_MARKER) -> None:
        """Take the vault's directory.

        Raises:
            VaultConfigError: this is an appliance.
        """
        if appliance_marker.exists():
            raise VaultConfigError(
                f"vault.level software is refused on an appliance ({appliance_marker} is there): use level tpm"
            )
        self._file = directory / _FILE
        log.warning(
            "vault_is_not_protected", security="software", key_file=str(self._file), remedy="use vault.level tpm"
        )

    def provision(self) -> None:
        """Draw the key if there is none."""
        if not self._file.exists():
            write_durably(self._file, secrets.token_bytes(Aead.KEY_SIZE))

    def forget(self) -> None:
        """Remove the key."""
        self._file.unlink(missing_ok=True)

    def seal(self, secret: bytes) -> bytes:
        """See `KeyStore.seal`."""
        return bytes(Aead(self._key()).encrypt(secret, _PURPOSE))

    def unseal(self, blob: bytes) -> bytes:
        """See `KeyStore.unseal`."""
        try:
            return Aead(self._key()).decrypt(blob, _PURPOSE)
        except (nacl.exceptions.CryptoError, nacl.exceptions.ValueError) as error:
            raise KeyStoreError(
                f"the sealed key on disk is damaged, was made at another `vault.level`, or {self._file} is another "
                "one: put the right one back, or `gateway vault init --anew` begins again"
            ) from error

    def status(self) -> KeyStoreStatus:
        """See `KeyStore.status`."""
        try:
            self._key()
        except KeyStoreError as error:
            return KeyStoreStatus(level=self.level, ready=False, reasons=(str(error),), warnings=(WARNING,))
        return KeyStoreStatus(level=self.level, ready=True, warnings=(WARNING,))

    def _key(self) -> bytes:
        try:
            fd = os.open(self._file, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError as error:
            raise KeyStoreError(
                f"there is no {self._file}: `gateway vault init` makes one on a new device; where it was lost, "
                "`gateway vault init --anew` begins again"
            ) from error
        except OSError as error:
            raise KeyStoreError(f"{self._file} cannot be read: {error.strerror}") from error
        with open(fd, "rb") as file:  # noqa: PTH123 - by descriptor, so that it is the file that was looked at
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            key = file.read(Aead.KEY_SIZE + 1)
        if mode & 0o077:
            raise KeyStoreError(f"{self._file} can be read by others than its owner: chmod 600 {self._file}")
        if len(key) != Aead.KEY_SIZE:
            raise KeyStoreError(f"{self._file} is damaged; what it has sealed is lost. `gateway vault init --anew`")
        return key
