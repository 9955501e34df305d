"""The vault's side of enrolment and attestation, as the agent asks for it (`gateway.identity.keys.Attestor`)."""

from pathlib import Path
from typing import Final

import structlog
from cryptography.hazmat.primitives.asymmetric.ec import (
    ECDSA,
    SECP256R1,
    EllipticCurvePrivateKey,
    generate_private_key,
)
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_der_private_key,
)

from gateway.config import Vault as VaultSettings
from gateway.identity.keys import Attestor, EnrolmentKeys, Proof
from gateway.vault.errors import DamagedKeyFileError, KeyStoreError, VaultError
from gateway.vault.files import write_durably
from gateway.vault.tpm.identity import AttestationKey, TpmIdentity
from gateway.vault.vault import Vault, open_connection
from gateway.wire.identity import Challenge, Credential, Level, binding, software_message

log = structlog.get_logger()

_AK_FILE: Final = "ak.json"
_SOFTWARE_FILE: Final = "software-identity.der"


def open_attestor(settings: VaultSettings, vault: Vault, state_directory: Path) -> Attestor:
    """Return what proves this device at the configured level."""
    directory = state_directory / "vault"
    if settings.level == "software":
        return SoftwareAttestor(vault, directory)
    return TpmAttestor(TpmIdentity(open_connection(settings)), vault, directory)


class TpmAttestor:
    """Proves the device by its TPM: endorsement key, attestation key, quotes."""

    level: Final[Level] = "tpm"

    def __init__(self, identity: TpmIdentity, vault: Vault, directory: Path) -> None:
        self._identity = identity
        self._vault = vault
        self._file = directory / _AK_FILE

    def enrolment_keys(self) -> EnrolmentKeys:
        """Return the public keys; makes the attestation key if there is none yet.

        Raises:
            KeyStoreError: the TPM does not answer, or the attestation key on disk is another TPM's.
        """
        kind = self._identity.ek_kind()
        certificates = [each.der for each in self._identity.ek_certificates() if each.kind == kind]
        return EnrolmentKeys(self._key().public, self._identity.ek_public(kind), tuple(certificates))

    def recipient(self) -> bytes:
        """Return the X25519 public key that content keys are wrapped to."""
        return self._vault.recipient()

    def activate(self, credential: Credential) -> bytes:
        """Open a credential.

        Raises:
            KeyStoreError: it was made for another TPM or attestation key.
        """
        return self._identity.activate_credential(self._key(), credential.blob, credential.encrypted_secret)

    def prove(self, challenge: Challenge, csr: bytes, recipient: bytes, gateway: str) -> Proof:
        """Quote the registers that the bridge asks for, bound to these keys and this name."""
        qualifying = binding(challenge.nonce, csr, recipient, gateway)
        quote = self._identity.quote(self._key(), qualifying, challenge.pcrs)
        return Proof(quote.signature, quote.attest, quote.pcrs)

    def _key(self) -> AttestationKey:
        try:
            return self._identity.load_ak(self._file.read_bytes())
        except FileNotFoundError:
            return self._made()
        except OSError as error:
            raise KeyStoreError(f"{self._file} cannot be read: {error.strerror}") from error
        except DamagedKeyFileError as error:
            # The bridge refuses the new one until the TPM has vouched for it, which the agent sees to.
            log.warning("attestation_key_made_again", file=str(self._file), reason=str(error))
            return self._made()

    def _made(self) -> AttestationKey:
        key = self._identity.create_ak()
        self._file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_durably(self._file, key.stored)
        return key


class SoftwareAttestor:
    """Proves the possession of a key in a file, and nothing about the machine: there is no quote at this level."""

    level: Final[Level] = "software"

    def __init__(self, vault: Vault, directory: Path) -> None:
        self._vault = vault
        self._file = directory / _SOFTWARE_FILE

    def enrolment_keys(self) -> EnrolmentKeys:
        """Return the public key (SubjectPublicKeyInfo); made if there is none yet."""
        public = self._key().public_key()
        return EnrolmentKeys(public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo))

    def recipient(self) -> bytes:
        """Return the X25519 public key that content keys are wrapped to."""
        return self._vault.recipient()

    def activate(self, credential: Credential) -> bytes:
        """Refuse: credentials are for TPMs.

        Raises:
            VaultError: always.
        """
        raise VaultError(f"vault.level software cannot activate a credential of {len(credential.blob)} bytes: no TPM")

    def prove(self, challenge: Challenge, csr: bytes, recipient: bytes, gateway: str) -> Proof:
        """Sign the challenge, bound to these keys and this name; no quote."""
        message = software_message(challenge.nonce, csr, recipient, gateway)
        return Proof(self._key().sign(message, ECDSA(SHA256())))

    def _key(self) -> EllipticCurvePrivateKey:
        try:
            key = load_der_private_key(self._file.read_bytes(), password=None)
        except FileNotFoundError:
            made = generate_private_key(SECP256R1())
            self._file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            write_durably(self._file, made.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption()))
            return made
        except (OSError, ValueError) as error:
            raise KeyStoreError(f"{self._file} cannot be used: {error}; remove it and enrol again") from error
        if not isinstance(key, EllipticCurvePrivateKey):
            raise KeyStoreError(f"{self._file} holds another kind of key; remove it and enrol again")
        return key
