"""A maker of TPMs: a root, an intermediate, and endorsement certificates with the quirks of real ones."""

from datetime import datetime, timedelta
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID, ObjectIdentifier

EK_USAGE = ObjectIdentifier("2.23.133.8.1")
TPM_MANUFACTURER = ObjectIdentifier("2.23.133.2.1")


class EndorsementCa:
    """Knobs of `certify`: usage, validity, whether it is an authority."""

    def __init__(self, now: datetime) -> None:
        self._now = now
        self._root_key = ec.generate_private_key(ec.SECP384R1())
        self._key = ec.generate_private_key(ec.SECP256R1())
        root_name, name = _name("TPM Root"), _name("TPM Intermediate")
        self.root = self._authority(root_name, root_name, self._root_key, self._root_key)
        self.intermediate = self._authority(name, root_name, self._key, self._root_key)

    def certify(
        self,
        key: Any,
        *,
        usage: ObjectIdentifier = EK_USAGE,
        not_after: datetime | None = None,
        authority: bool = False,
    ) -> list[bytes]:
        """Return the chain for an endorsement key: its certificate, then the intermediate, DER."""
        tpm = x509.DirectoryName(x509.Name([x509.NameAttribute(TPM_MANUFACTURER, "id:54455354")]))
        certificate = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([]))  # TCG EK Credential Profile §3.2.6
            .issuer_name(self.intermediate.subject)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(self._now - timedelta(days=400))
            .not_valid_after(not_after or self._now + timedelta(days=3000))
            .add_extension(x509.SubjectAlternativeName([tpm]), critical=True)
            .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
            .add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
            .add_extension(_usage(key_encipherment=True), critical=True)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False)
            .sign(self._key, hashes.SHA256())
        )
        return [_der(certificate), _der(self.intermediate)]

    def _authority(self, name: x509.Name, issuer: x509.Name, key: Any, signer: Any) -> x509.Certificate:
        return (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(issuer)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(self._now - timedelta(days=1000))
            .not_valid_after(self._now + timedelta(days=5000))
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .add_extension(_usage(key_cert_sign=True, crl_sign=True), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False)
            .sign(signer, hashes.SHA256())
        )


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _usage(**chosen: bool) -> x509.KeyUsage:
    names = (
        "digital_signature",
        "content_commitment",
        "key_encipherment",
        "data_encipherment",
        "key_agreement",
        "key_cert_sign",
        "crl_sign",
        "encipher_only",
        "decipher_only",
    )
    return x509.KeyUsage(**{name: chosen.get(name, False) for name in names})


def _der(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.DER)
