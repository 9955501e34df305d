"""The keys that sign the repository (Ed25519), in PEM files; a private one may be encrypted with a passphrase."""

from collections.abc import Iterator
from pathlib import Path
from typing import Final

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)
from securesystemslib.signer import CryptoSigner, SSlibKey

from cloud_bridge.identity.files import KEY_BYTES_MAX, PUBLIC, create_file, read_plain, read_private
from cloud_bridge.registry.errors import RegistryError

PUBLIC_SUFFIX: Final = ".pub"
_ENCRYPTED: Final = b"-----BEGIN ENCRYPTED PRIVATE KEY-----"


def make_key(file: Path, passphrase: bytes | None = None) -> SSlibKey:
    """Draw a key; write its private half to `file` and its public half beside it, to `file`.pub.

    Raises:
        RegistryError: a file of this name is there already.
        IdentityError: it cannot be written.
    """
    private = Ed25519PrivateKey.generate()
    encryption = BestAvailableEncryption(passphrase) if passphrase else NoEncryption()
    if not create_file(file, private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption)):
        raise RegistryError(f"{file} is there already: a key is never overwritten; choose another name")
    public = private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    create_file(public_file(file), public, PUBLIC)
    return SSlibKey.from_crypto(private.public_key())


def public_file(private: Path) -> Path:
    """Return where the public half of a key lies."""
    return private.with_name(private.name + PUBLIC_SUFFIX)


def load_signer(file: Path, passphrase: bytes | None = None) -> CryptoSigner:
    """Read a private key.

    Raises:
        RegistryError: it is none, or its passphrase is another one.
        IdentityError: it cannot be read, or others may read it too.
    """
    content = read_private(file)
    if content.startswith(_ENCRYPTED) and not passphrase:
        raise RegistryError(f"{file} is encrypted: give its passphrase with --passphrase-file")
    try:
        private = load_pem_private_key(content, passphrase if content.startswith(_ENCRYPTED) else None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise RegistryError(f"{file} is no private key, or the passphrase is wrong: {error}") from error
    if not isinstance(private, Ed25519PrivateKey):
        raise RegistryError(f"{file} is no Ed25519 key; `cloud-bridge registry keygen` makes one")
    return CryptoSigner(private)


def load_public(file: Path) -> SSlibKey:
    """Read a public key.

    Raises:
        RegistryError: it is none, or cannot be read.
    """
    try:
        public = load_pem_public_key(read_plain(file, KEY_BYTES_MAX))
    except OSError as error:
        raise RegistryError(f"{file}: {error.strerror or error}") from error
    except (ValueError, UnsupportedAlgorithm) as error:
        raise RegistryError(f"{file} is no public key: {error}; name the .pub file") from error
    if not isinstance(public, Ed25519PublicKey):
        raise RegistryError(f"{file} is no Ed25519 key; `cloud-bridge registry keygen` makes one")
    return SSlibKey.from_crypto(public)


class KeyDirectory:
    """The directory of `registry.keys`: online keys, the root that is trusted, what waits for a signature.

    online/<role>-<n>.pem  keys that sign while the bridge runs; anybody may take away what is of no use here
    root/<n>.pem           where `init` puts root keys when nobody says another place
    root.json              the newest root that was seen
    staged/                metadata that waits for keys that are elsewhere
    work/                  what is being published, in clear
    """

    def __init__(self, directory: Path) -> None:
        """Take the directory; it is made by `init`."""
        self.directory = directory
        self.online = directory / "online"
        self.root = directory / "root"
        self.root_file = directory / "root.json"
        self.staged = directory / "staged"
        self.work = directory / "work"
        self.lock_file = directory / "lock"

    def signers(self) -> dict[str, CryptoSigner]:
        """Return the keys that can sign here, by key id.

        Raises:
            RegistryError: a file in `online/` is no key.
            IdentityError: one cannot be read, or others may read it too.
        """
        found = (load_signer(file) for file in sorted(self.online.glob("*.pem")))
        return {signer.public_key.keyid: signer for signer in found}

    def private_files(self) -> Iterator[tuple[Path, str]]:
        """Yield every private key on this machine that has its public half beside it, with its key id."""
        for directory in (self.online, self.root):
            for file in sorted(directory.glob("*.pem")):
                if public_file(file).exists():
                    yield file, load_public(public_file(file)).keyid

    def new_file(self, directory: Path, role: str) -> Path:
        """Return a name that is free."""
        number = 1
        while (file := directory / f"{role}-{number}.pem").exists():
            number += 1
        return file
