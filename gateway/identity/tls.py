"""TLS with a key that is never written down, on a device whose clock may be wrong.

When the wall clock is believed, OpenSSL checks the dates as always. When it is not, OpenSSL is told to leave the
dates alone (X509_V_FLAG_NO_CHECK_TIME) and they are checked here, against the trusted clock, right after the handshake
and before a byte of the application is sent.
"""

import os
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from gateway.identity.clock import TrustedClock
from gateway.identity.errors import IdentityError
from gateway.wire.identity import spiffe_id

_NO_CHECK_TIME: Final = 0x200000  # X509_V_FLAG_NO_CHECK_TIME, openssl/x509_vfy.h
_NOT_YET_VALID, _EXPIRED = 9, 10  # X509_V_ERR_CERT_NOT_YET_VALID, X509_V_ERR_CERT_HAS_EXPIRED

CheckDates = Callable[[int, int], None]
"""Given a certificate's not-before and not-after, in nanoseconds UTC; raises `ssl.SSLCertVerificationError`."""


@dataclass(frozen=True, slots=True, repr=False)
class Svid:
    """A certificate and its key. Never printed: the key is in it."""

    chain: bytes  # PEM
    key: bytes  # PEM
    spiffe_id: str
    not_before_ns: int
    not_after_ns: int


def fresh_key(gateway: str, trust_domain: str) -> tuple[bytes, bytes]:
    """Make a P-256 key; return it as PEM, and a certificate signing request for it as DER.

    The bridge's own authority ignores the names in the request: who the device is, its attestation says. Others copy
    them into the certificate. trust_domain: "" where it is not known.
    """
    key = ec.generate_private_key(ec.SECP256R1())
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, gateway)])
    builder = x509.CertificateSigningRequestBuilder().subject_name(name)
    if trust_domain:
        uri = x509.UniformResourceIdentifier(spiffe_id(trust_domain, gateway))
        builder = builder.add_extension(x509.SubjectAlternativeName([uri]), critical=False)
    request = builder.sign(key, hashes.SHA256())
    return pem, request.public_bytes(serialization.Encoding.DER)


def first_of(bundle: str) -> x509.Certificate:
    """Return the first certificate of a PEM bundle.

    Raises:
        IdentityError: there is no certificate in it.
    """
    try:
        return x509.load_pem_x509_certificates(bundle.encode("utf-8"))[0]
    except ValueError as error:
        raise IdentityError(f"the trust bundle cannot be read: {error}") from error


def fingerprint_of(certificate: x509.Certificate) -> str:
    """Return the SHA-256 of a certificate, in hexadecimal."""
    return certificate.fingerprint(hashes.SHA256()).hex()


def pem_of(certificate: x509.Certificate) -> str:
    """Return a certificate as PEM."""
    return certificate.public_bytes(serialization.Encoding.PEM).decode("ascii")


def client_context(bundle: str, clock: TrustedClock, svid: Svid | None = None) -> ssl.SSLContext:
    """Make a context that believes the bundle alone; host name and certificate are checked, TLS 1.2 at least.

    Raises:
        IdentityError: bundle or certificate cannot be used.
    """
    context = _context(bundle)
    if svid is not None:
        _load(context, svid)
    if clock.doubtful:
        _check_dates_with(context, lambda first, last: _require_within(clock, first, last))
    return context


def clockless_context(bundle: str, clock: TrustedClock) -> ssl.SSLContext:
    """Make a context for a device that has only its floor to go by: asks the bridge, among other things, for the time.

    A certificate whose days were over before the floor is refused; one that may still be good is believed.
    """
    context = _context(bundle)
    _check_dates_with(context, lambda _, last: _require_not_over(clock, last))
    return context


def blind_context() -> ssl.SSLContext:
    """Make a context that checks nothing, to fetch a bundle that is then held against a known fingerprint."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def is_about_time(error: BaseException | None) -> bool:
    """Tell whether a failure, or what caused it, is a certificate that is not valid at the time of the wall clock."""
    while error is not None:
        if isinstance(error, ssl.SSLCertVerificationError):
            return getattr(error, "verify_code", None) in (_NOT_YET_VALID, _EXPIRED)
        error = error.__cause__ or error.__context__
    return False


def _context(bundle: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # checks certificate and host name
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_verify_locations(cadata=bundle)
    except (ssl.SSLError, ValueError) as error:
        raise IdentityError(f"the trust bundle cannot be used: {error}") from error
    return context


def _load(context: ssl.SSLContext, svid: Svid) -> None:
    """Hand certificate and key to OpenSSL, which reads files only: one that is in memory and has no name."""
    handle = os.memfd_create("svid", os.MFD_CLOEXEC)
    try:
        os.write(handle, svid.key + svid.chain)
        context.load_cert_chain(f"/proc/self/fd/{handle}")
    except (OSError, ssl.SSLError) as error:
        raise IdentityError(f"the certificate cannot be used: {error}") from error
    finally:
        os.ftruncate(handle, 0)
        os.close(handle)


def _check_dates_with(context: ssl.SSLContext, check: CheckDates) -> None:
    context.verify_flags |= ssl.VerifyFlags(_NO_CHECK_TIME)

    class DatedSocket(ssl.SSLSocket):
        def do_handshake(self, block: bool = False) -> None:  # noqa: FBT001, FBT002 - as in the standard library
            super().do_handshake(block)
            _check_peer(self.getpeercert(binary_form=True), check)

    class DatedObject(ssl.SSLObject):
        def do_handshake(self) -> None:
            super().do_handshake()
            _check_peer(self.getpeercert(binary_form=True), check)

    context.sslsocket_class = DatedSocket
    context.sslobject_class = DatedObject


def _check_peer(der: bytes | None, check: CheckDates) -> None:
    if der is None:
        raise ssl.SSLCertVerificationError("no certificate came")
    certificate = x509.load_der_x509_certificate(der)
    check(_nanoseconds(certificate.not_valid_before_utc), _nanoseconds(certificate.not_valid_after_utc))


def _require_within(clock: TrustedClock, first_ns: int, last_ns: int) -> None:
    now = clock.now_ns()
    if not first_ns <= now <= last_ns:
        raise _dated("not valid yet" if now < first_ns else "expired", _EXPIRED if now > last_ns else _NOT_YET_VALID)


def _require_not_over(clock: TrustedClock, last_ns: int) -> None:
    if last_ns < clock.floor_ns:
        raise _dated(
            "over for longer than this device remembers: renew it, or, if the bridge's clock was once ahead, give this "
            "device a new claim code",
            _EXPIRED,
        )


def _dated(words: str, code: int) -> ssl.SSLCertVerificationError:
    error: Any = ssl.SSLCertVerificationError(f"the other side's certificate is {words}")
    error.verify_code = code
    return error  # type: ignore[no-any-return]


def _nanoseconds(at: datetime) -> int:
    return int(at.astimezone(UTC).timestamp()) * 1_000_000_000
