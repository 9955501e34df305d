"""Who issues the certificates. `LocalCa` does by default; `foreign` has an authority outside of the bridge do it.

Certificates of devices are X.509-SVIDs (SPIFFE X509-SVID, §2 to §5): exactly one URI in the subject alternative
name, no authority, digitalSignature. The subject's CN repeats the gateway's id, because that is what brokers know.

Two authorities, so that what a broker lets in by its device listener can never pass for the bridge or the broker:
`devices` signs gateways, `services` signs servers and the bridge. Devices trust `services` alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Final, Protocol

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from cloud_bridge.identity.errors import IdentityError, RefusedError
from cloud_bridge.identity.files import PRIVATE, PUBLIC, create_file, read_private
from gateway.wire.identity import spiffe_id

BRIDGE_NAME: Final = "_bridge"
"""CN of the bridge's own client certificate; no gateway can have it, for ids hold no underscore."""

_BACKDATE_AUTHORITY: Final = timedelta(days=1)
_AUTHORITY_LIFE: Final = timedelta(days=3652)
_CLIENT_AND_SERVER: Final = (ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH)
_CSR_FAULTS: Final = (ValueError, TypeError, UnsupportedAlgorithm, x509.InvalidVersion)

Key = ec.EllipticCurvePrivateKey
PublicKey = ec.EllipticCurvePublicKey


@dataclass(frozen=True, slots=True)
class Issued:
    """A certificate with its way up (PEM, its own first); `serial` in lower-case hexadecimal digits."""

    chain_pem: bytes
    serial: str
    not_before: datetime
    not_after: datetime


@dataclass(frozen=True, slots=True)
class Life:
    """From when to when a certificate holds; UTC."""

    not_before: datetime
    not_after: datetime


@dataclass(frozen=True, slots=True)
class Revoked:
    """A certificate that is taken back before its time."""

    serial: str
    at: datetime


@dataclass(frozen=True, slots=True)
class CertificateRequest:
    """What a device that was attested is to be certified for. `csr`: PKCS #10, DER, signed by `key`; `life` at most."""

    gateway: str
    spiffe_id: str
    csr: bytes
    key: PublicKey
    life: Life


class Issuer(Protocol):
    """Issues short certificates to devices that were attested. Safe to call from any thread."""

    @property
    def bundle_pem(self) -> bytes:
        """The authorities a broker must trust to let devices in.

        Raises:
            IdentityError: they cannot be read.
        """
        ...

    @property
    def until(self) -> datetime:
        """When the authority ends; raises as `bundle_pem`."""
        ...

    @property
    def lists_revoked(self) -> bool:
        """Whether `crl` names what this bridge has revoked; if not, brokers must be told by another way."""
        ...

    def certify(self, request: CertificateRequest) -> Issued:
        """Certify a device's key.

        Raises:
            RefusedError: not for this request.
            AuthorityError: the authority cannot be reached or used; the device may try again.
        """
        ...

    def crl(self, revoked: Sequence[Revoked], life: Life) -> bytes | None:
        """Return the revocation list, PEM; None where there is none.

        Raises:
            AuthorityError: there should be one, and it cannot be used.
        """
        ...


@dataclass(frozen=True, slots=True)
class Authority:
    """A key with the certificates that lead from it to the root (its own first)."""

    key: Key
    chain: tuple[x509.Certificate, ...]

    @property
    def certificate(self) -> x509.Certificate:
        """Its own."""
        return self.chain[0]

    @property
    def anchor_pem(self) -> bytes:
        """What others have to trust."""
        return pem(self.chain[-1])

    @property
    def above_pem(self) -> bytes:
        """The intermediates that go with a certificate; none when the root itself signs."""
        return b"".join(pem(one) for one in self.chain[:-1])

    def crl(self, revoked: Sequence[Revoked], life: Life) -> bytes:
        """Return a revocation list, PEM."""
        builder = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(self.certificate.subject)
            .last_update(life.not_before)
            .next_update(life.not_after)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key()), critical=False)
            .add_extension(x509.CRLNumber(int(life.not_before.timestamp() * 1000)), critical=False)
        )
        for one in revoked:
            entry = x509.RevokedCertificateBuilder().serial_number(int(one.serial, 16)).revocation_date(one.at)
            builder = builder.add_revoked_certificate(entry.build())
        return builder.sign(self.key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


class LocalCa:
    """Issues with keys in files: `NAME-ca-key.pem` (0600) and `NAME-ca.pem`, for `devices` and `services`.

    To use an intermediate of your own, put its key and its chain (its own certificate first, the root last) there.
    """

    def __init__(self, trust_domain: str, devices: Authority, services: Authority) -> None:
        self.trust_domain = trust_domain
        self.devices = devices
        self.services = services

    @classmethod
    def open(cls, directory: Path, trust_domain: str, now: datetime) -> "LocalCa":
        """Load the authorities, or make them at the first start.

        Raises:
            IdentityError: a file cannot be used, or is of another trust domain.
        """
        found = {name: _open_authority(directory, name, trust_domain, now) for name in ("devices", "services")}
        return cls(trust_domain, found["devices"], found["services"])

    @property
    def bundle_pem(self) -> bytes:
        """See Issuer."""
        return self.devices.anchor_pem

    @property
    def services_pem(self) -> bytes:
        """The authority that devices must trust: of the broker's certificate and of the identity listener's."""
        return self.services.anchor_pem

    @property
    def services_fingerprint(self) -> str:
        """SHA-256 of the authority that devices must trust, in hexadecimal digits."""
        return self.services.chain[-1].fingerprint(hashes.SHA256()).hex()

    @property
    def until(self) -> datetime:
        """See Issuer."""
        return self.devices.certificate.not_valid_after_utc

    @property
    def lists_revoked(self) -> bool:
        """See Issuer."""
        return True

    def certify(self, request: CertificateRequest) -> Issued:
        """See Issuer."""
        return self.device(request.gateway, request.key, request.life)

    def device(self, gateway: str, key: PublicKey, life: Life) -> Issued:
        """Certify a device's key."""
        names: list[x509.GeneralName] = [x509.UniformResourceIdentifier(spiffe_id(self.trust_domain, gateway))]
        return _issue(self.devices, gateway, alternatives=names, key=key, life=life, usages=_CLIENT_AND_SERVER)

    def crl(self, revoked: Sequence[Revoked], life: Life) -> bytes:
        """See Issuer."""
        return self.devices.crl(revoked, life)

    def server(self, names: Sequence[str], key: PublicKey, life: Life) -> Issued:
        """Certify a server under DNS names and addresses.

        Raises:
            IdentityError: a name cannot be put into a certificate.
        """
        alternatives = [_host(name) for name in names]
        if not alternatives:
            raise IdentityError("a server's certificate needs a name: give the one under which devices reach it")
        return _issue(
            self.services,
            names[0][:64],
            alternatives=alternatives,
            key=key,
            life=life,
            usages=[ExtendedKeyUsageOID.SERVER_AUTH],
        )

    def bridge(self, key: PublicKey, life: Life) -> Issued:
        """Certify the bridge as a client of the brokers."""
        uri = x509.UniformResourceIdentifier(f"spiffe://{self.trust_domain}/bridge")
        return _issue(self.services, BRIDGE_NAME, alternatives=[uri], key=key, life=life, usages=_CLIENT_AND_SERVER)


def csr_key(der: bytes) -> PublicKey:
    """Read a CSR (PKCS #10, DER) and return its key; whoever made it has the private half.

    Raises:
        RefusedError: `csr-unfit`.
    """
    try:
        csr = x509.load_der_x509_csr(der)
        key = csr.public_key()
        valid = csr.is_signature_valid
    except _CSR_FAULTS as error:
        raise RefusedError("csr-unfit", f"the certificate request cannot be read: {error}") from error
    if not isinstance(key, PublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise RefusedError("csr-unfit", "the certificate request must be for a key on the curve P-256")
    if not valid:
        raise RefusedError("csr-unfit", "the certificate request is not signed by its own key")
    return key


def pem(certificate: x509.Certificate) -> bytes:
    """Write a certificate as PEM."""
    return certificate.public_bytes(serialization.Encoding.PEM)


def crls_of(data: bytes) -> list[bytes]:
    """Take revocation lists apart that stand in one PEM file."""
    begin = b"-----BEGIN X509 CRL-----"
    return [begin + part for part in data.split(begin)[1:]]


def key_pem(key: Key) -> bytes:
    """Write a private key as PEM, unencrypted."""
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def new_key() -> Key:
    """Make a P-256 key."""
    return ec.generate_private_key(ec.SECP256R1())


def _issue(
    authority: Authority,
    name: str,
    *,
    alternatives: Sequence[x509.GeneralName],
    key: PublicKey,
    life: Life,
    usages: Sequence[x509.ObjectIdentifier],
) -> Issued:
    serial = x509.random_serial_number()
    signer = authority.key.public_key()
    certificate = (
        x509.CertificateBuilder()
        .subject_name(_subject(name))
        .issuer_name(authority.certificate.subject)
        .public_key(key)
        .serial_number(serial)
        .not_valid_before(life.not_before)
        .not_valid_after(life.not_after)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(authority=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
        .add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer), critical=False)
        .sign(authority.key, hashes.SHA256())
    )
    # As the certificate holds them: to the second.
    chain = pem(certificate) + authority.above_pem
    return Issued(chain, f"{serial:x}", certificate.not_valid_before_utc, certificate.not_valid_after_utc)


def _open_authority(directory: Path, name: str, trust_domain: str, now: datetime) -> Authority:
    key_file, chain_file = directory / f"{name}-ca-key.pem", directory / f"{name}-ca.pem"
    if not key_file.exists() and not chain_file.exists():
        create_file(key_file, key_pem(new_key()), PRIVATE)
    key = _load_key(key_file)
    if not chain_file.exists():
        # Unless another process has just made it: its fingerprint may be in claim codes already.
        create_file(chain_file, pem(_self_signed(key, name, trust_domain, now)), PUBLIC)
    try:
        chain = tuple(x509.load_pem_x509_certificates(chain_file.read_bytes()))
    except (OSError, ValueError) as error:
        raise IdentityError(f"{chain_file}: {error}; it must hold PEM certificates, the root last") from error
    if chain[0].public_key() != key.public_key():
        raise IdentityError(f"{chain_file} does not begin with the certificate of {key_file}; restore both together")
    if chain[0].not_valid_after_utc <= now:
        raise IdentityError(f"{chain_file} has expired on {chain[0].not_valid_after_utc:%Y-%m-%d}; put a new one there")
    if name == "devices":
        _check_domain(chain[0], chain_file, trust_domain)
    return Authority(key, chain)


def _check_domain(certificate: x509.Certificate, file: Path, trust_domain: str) -> None:
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return  # an organisation's own authority need not name a domain (X509-SVID §3.1)
    uris = names.get_values_for_type(x509.UniformResourceIdentifier)
    if uris and uris != [f"spiffe://{trust_domain}"]:
        raise IdentityError(f"{file} is of the trust domain {uris[0]}, the configuration says {trust_domain}")


def _load_key(file: Path) -> Key:
    data = read_private(file)
    try:
        key = serialization.load_pem_private_key(data, None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise IdentityError(f"{file}: {error}; it must hold an unencrypted PEM key") from error
    if not isinstance(key, Key):
        raise IdentityError(f"{file}: not a key on an elliptic curve")
    return key


def _self_signed(key: Key, name: str, trust_domain: str, now: datetime) -> x509.Certificate:
    subject = _subject(f"Sluice {name}", trust_domain)
    uri = x509.UniformResourceIdentifier(f"spiffe://{trust_domain}")
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        # A device without a battery for its clock is often a little behind.
        .not_valid_before(now - _BACKDATE_AUTHORITY)
        .not_valid_after(now + _AUTHORITY_LIFE)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(authority=True), critical=True)
        .add_extension(x509.SubjectAlternativeName([uri]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )


def _subject(name: str, organisation: str | None = None) -> x509.Name:
    parts = [x509.NameAttribute(NameOID.COMMON_NAME, name)]
    if organisation is not None:
        parts.insert(0, x509.NameAttribute(NameOID.ORGANIZATION_NAME, organisation[:64]))
    return x509.Name(parts)


def _key_usage(*, authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=authority,
        crl_sign=authority,
        encipher_only=False,
        decipher_only=False,
    )


def _host(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ip_address(name))
    except ValueError:
        pass
    try:
        return x509.DNSName(name)
    except ValueError as error:
        raise IdentityError(f"{name!r} is neither a host name nor an address: {error}") from error


def life_from(now: datetime, *, seconds: float, backdate_seconds: float = 0.0) -> Life:
    """Return a life that begins a little earlier, for clocks that are behind."""
    return Life(now - timedelta(seconds=backdate_seconds), now + timedelta(seconds=seconds))


def utc(at_ns: int) -> datetime:
    """Return a time for certificates, which know whole seconds."""
    return datetime.fromtimestamp(at_ns // 1_000_000_000, UTC)
