"""Whether an endorsement key belongs to a genuine TPM: its certificate leads to a root that the operator trusts.

TCG EK Credential Profile for TPM 2.0. What real certificates do that web certificates do not, and is put up with here:
a critical subject alternative name that holds a directoryName (§3.2.9), an empty subject, key encipherment only, and
an extended key usage of TCG's own.
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509 import verification
from cryptography.x509.oid import ObjectIdentifier

from cloud_bridge.errors import ConfigError
from cloud_bridge.identity.errors import RefusedError
from cloud_bridge.identity.structures import Public

EK_CERTIFICATE: Final = ObjectIdentifier("2.23.133.8.1")  # tcg-kp-EKCertificate
_UNREADABLE: Final = (ValueError, TypeError, UnsupportedAlgorithm, x509.InvalidVersion, x509.UnsupportedGeneralNameType)


@dataclass(frozen=True, slots=True)
class Vouching:
    """An endorsement certificate beside the key that was presented. `others`: what came after it in its chain."""

    ek: Public
    leaf: x509.Certificate
    others: tuple[x509.Certificate, ...]
    at: datetime


def check_key(found: Vouching, _: verification.Store) -> None:
    """Check that the certificate is of the key that was presented.

    Raises:
        RefusedError: `ek-mismatch`.
    """
    if not _same_key(found.leaf.public_key(), found.ek):
        raise RefusedError("ek-mismatch", "the endorsement certificate is of another key than the one presented")


def check_purpose(found: Vouching, _: verification.Store) -> None:
    """Check that the certificate was made for an endorsement key.

    Raises:
        RefusedError: `ek-untrusted`.
    """
    usages = found.leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    if EK_CERTIFICATE not in usages or _is_authority(found.leaf):
        raise RefusedError("ek-untrusted", "the certificate is not one for an endorsement key (2.23.133.8.1)")


def check_chain(found: Vouching, roots: verification.Store) -> None:
    """Check that the certificate leads to a root, and that all on the way are good now.

    Raises:
        RefusedError: `ek-untrusted`.
    """
    verifier = (
        verification.PolicyBuilder()
        .store(roots)
        .time(found.at.replace(tzinfo=None))
        .extension_policies(
            ca_policy=verification.ExtensionPolicy.webpki_defaults_ca(),
            # Critical extensions that web certificates do not have would be refused otherwise.
            ee_policy=verification.ExtensionPolicy.permit_all(),
        )
        .build_client_verifier()
    )
    try:
        verifier.verify(found.leaf, list(found.others))
    except (verification.VerificationError, *_UNREADABLE) as error:
        raise RefusedError(
            "ek-untrusted", f"the endorsement certificate does not lead to a trusted root: {error}"
        ) from error


EndorsementCheck = Callable[[Vouching, verification.Store], None]
ENDORSEMENT_CHECKS: Final[tuple[EndorsementCheck, ...]] = (check_key, check_purpose, check_chain)


class TrustedRoots:
    """The roots of TPM makers, as an operator has put them into a directory."""

    def __init__(
        self, roots: Sequence[x509.Certificate], checks: Sequence[EndorsementCheck] = ENDORSEMENT_CHECKS
    ) -> None:
        """Take the roots, which may be intermediates too. checks: always all; a test leaves one out."""
        self._store = verification.Store(list(roots))
        self._checks = tuple(checks)

    @classmethod
    def load(cls, directory: Path) -> "TrustedRoots":
        """Read all certificates of a directory: *.pem and *.crt (PEM or DER), *.cer and *.der.

        Raises:
            ConfigError: a file cannot be read, or there is none.
        """
        try:
            files = [file for file in sorted(directory.iterdir()) if file.suffix in {".pem", ".crt", ".cer", ".der"}]
            roots = list(itertools.chain.from_iterable(_certificates(file) for file in files))
        except OSError as error:
            raise ConfigError(f"identity.ek_roots: {directory}: {error.strerror or error}") from error
        if not roots:
            raise ConfigError(f"identity.ek_roots: {directory} holds no *.pem, *.crt, *.cer or *.der")
        return cls(roots)

    def check(self, ek: Public, chain: Sequence[bytes], at: datetime) -> None:
        """Check that a chain (DER, the EK's own certificate first) vouches for this key.

        Raises:
            RefusedError: `ek-untrusted` or `ek-mismatch`.
        """
        if not chain:
            raise RefusedError("ek-untrusted", "the endorsement key has no certificate, and this bridge asks for one")
        try:
            leaf, *others = [x509.load_der_x509_certificate(der) for der in chain]
            found = Vouching(ek, leaf, tuple(others), at)
            for check in self._checks:
                check(found, self._store)
        except (*_UNREADABLE, x509.ExtensionNotFound, x509.DuplicateExtension) as error:
            raise RefusedError("ek-untrusted", f"the endorsement certificate cannot be used: {error}") from error


def _is_authority(certificate: x509.Certificate) -> bool:
    try:
        return certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except x509.ExtensionNotFound:
        return False


def _same_key(key: object, ek: Public) -> bool:
    return isinstance(key, rsa.RSAPublicKey | ec.EllipticCurvePublicKey) and spki_of(key) == spki_of(ek.key)


def spki_of(key: rsa.RSAPublicKey | ec.EllipticCurvePublicKey) -> bytes:
    """Write a public key as SubjectPublicKeyInfo, DER."""
    return key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)


def _certificates(file: Path) -> list[x509.Certificate]:
    data = file.read_bytes()
    try:
        if b"-----BEGIN" in data:
            return x509.load_pem_x509_certificates(data)
        return [x509.load_der_x509_certificate(data)]
    except ValueError as error:
        raise ConfigError(f"identity.ek_roots: {file} is not a certificate: {error}") from error
