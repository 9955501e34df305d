"""Whether a certificate of an authority outside of the bridge may be given to a device. Pure: the time comes in.

What is handed out must be what the bridge would have made itself: an X.509-SVID (SPIFFE X509-SVID, §2 to §5) of this
device and of nothing else, which brokers believe, and which ends when it should. Before that a request is looked at,
because many authorities copy into the certificate whatever stands in it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.x509 import verification
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from cloud_bridge.identity.errors import AuthorityError, RefusedError
from cloud_bridge.identity.issuer import CertificateRequest, Issued, PublicKey, pem

MAX_CHAIN: Final = 8
SKEW: Final = timedelta(seconds=10)
"""So much the authority's clock may be apart from the bridge's."""

_LEAST_SHARE: Final = 0.1  # of the life that was asked for; a device renews half-way, and must not do so all the time
_LEGACY_SUBJECT: Final = "CN=gateway"  # what gateways up to 0.1 ask for, whoever they are
_UNREADABLE: Final = (ValueError, TypeError, UnsupportedAlgorithm, x509.InvalidVersion, x509.UnsupportedGeneralNameType)
_UNUSABLE: Final = (*_UNREADABLE, x509.ExtensionNotFound, x509.DuplicateExtension)


@dataclass(frozen=True, slots=True)
class Answer:
    """A certificate beside what it was asked for. `others`: what came after it in its chain."""

    request: CertificateRequest
    leaf: x509.Certificate
    others: tuple[x509.Certificate, ...]
    anchors: tuple[x509.Certificate, ...]
    at: datetime


def check_key(answer: Answer) -> None:
    """Check that the certificate is for the key of the request, whose private half the device has.

    Raises:
        AuthorityError: it is not.
    """
    key = answer.leaf.public_key()
    if not isinstance(key, PublicKey) or _spki(key) != _spki(answer.request.key):
        raise _unfit(
            "is for another key than the request's; the authority must sign the key of the request it is given"
        )


def check_subject(answer: Answer) -> None:
    """Check that the CN is the gateway's id, and the only one: brokers know a device by nothing else.

    Raises:
        AuthorityError: it is not.
    """
    names = [str(one.value) for one in answer.leaf.subject.get_attributes_for_oid(NameOID.COMMON_NAME)]
    if names != [answer.request.gateway]:
        wanted = answer.request.gateway
        raise _unfit(f"has the common names {names} instead of {wanted!r}; have it set the subject to CN={wanted}")


def check_names(answer: Answer) -> None:
    """Check that the SPIFFE ID is the only alternative name.

    Raises:
        AuthorityError: it is not.
    """
    found = list(answer.leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value)
    if found != [x509.UniformResourceIdentifier(answer.request.spiffe_id)]:
        names = ", ".join(str(one.value) for one in found)
        raise _unfit(
            f"has the alternative names [{names}] instead of the URI {answer.request.spiffe_id} alone; have the"
            " authority put in this one and no host name"
        )


def check_purpose(answer: Answer) -> None:
    """Check that it signs for a client, and can certify nobody.

    Raises:
        AuthorityError: it is for something else.
    """
    extensions = answer.leaf.extensions
    if extensions.get_extension_for_class(x509.BasicConstraints).value.ca:
        raise _unfit("is an authority itself; have it made for an end entity (CA:FALSE)")
    usage = extensions.get_extension_for_class(x509.KeyUsage).value
    if not usage.digital_signature or usage.key_cert_sign or usage.crl_sign:
        raise _unfit("needs the key usage digitalSignature, and may not sign certificates or lists")
    if ExtendedKeyUsageOID.CLIENT_AUTH not in extensions.get_extension_for_class(x509.ExtendedKeyUsage).value:
        raise _unfit("is not for TLS clients; it needs the extended key usage clientAuth")


def check_life(answer: Answer) -> None:
    """Check that it holds now, and not for longer than was asked for.

    Raises:
        AuthorityError: it does not.
    """
    leaf, life, at = answer.leaf, answer.request.life, answer.at
    if leaf.not_valid_before_utc > at + SKEW:
        raise _unfit(f"begins at {leaf.not_valid_before_utc:%F %T} and it is {at:%F %T} here; compare the clocks")
    if leaf.not_valid_after_utc > life.not_after + SKEW:
        raise _unfit(
            f"ends at {leaf.not_valid_after_utc:%F %T}, and {life.not_after:%F %T} is the latest (UTC); have the"
            " authority keep to the time of the request (`identity.certificate_seconds`)"
        )
    if leaf.not_valid_after_utc - at < (life.not_after - at) * _LEAST_SHARE:
        raise _unfit(f"ends at {leaf.not_valid_after_utc:%F %T} already, and it is {at:%F %T} here; compare the clocks")


def check_chain(answer: Answer) -> None:
    """Check that it leads to what brokers trust, and that all on the way are good now.

    Raises:
        AuthorityError: it does not.
    """
    verifier = (
        verification.PolicyBuilder()
        .store(verification.Store(list(answer.anchors)))
        # To the authority's clock, which may be a little ahead.
        .time(max(answer.at, answer.leaf.not_valid_before_utc).replace(tzinfo=None))
        .extension_policies(
            ca_policy=verification.ExtensionPolicy.webpki_defaults_ca(),
            ee_policy=verification.ExtensionPolicy.permit_all(),  # looked at above, by the rules of SPIFFE
        )
        .build_client_verifier()
    )
    try:
        verifier.verify(answer.leaf, list(answer.others))
    except verification.VerificationError as error:
        raise _unfit(
            f"does not lead to `identity.issuer.trust_anchors` ({error}); the chain must hold every intermediate,"
            " and that file the root"
        ) from error


AnswerCheck = Callable[[Answer], None]
ANSWER_CHECKS: Final[tuple[AnswerCheck, ...]] = (
    check_key,
    check_subject,
    check_names,
    check_purpose,
    check_life,
    check_chain,
)


def accept(
    chain_pem: bytes,
    request: CertificateRequest,
    anchors: Sequence[x509.Certificate],
    at: datetime,
    checks: Sequence[AnswerCheck] = ANSWER_CHECKS,
) -> Issued:
    """Judge what an authority has answered, and return what may be handed out: without roots.

    Args:
        chain_pem: PEM, the device's certificate first.
        request: what was asked for.
        anchors: whom brokers trust.
        at: now, UTC.
        checks: always all; a test leaves one out.

    Raises:
        AuthorityError: `unfit`, with what the authority has to do.
    """
    try:
        chain = x509.load_pem_x509_certificates(chain_pem)
    except _UNREADABLE as error:
        raise _unfit(f"cannot be read: {error}; a chain in PEM is expected, the device's own first") from error
    if len(chain) > MAX_CHAIN:
        raise _unfit(f"comes with a chain of {len(chain)}; at most {MAX_CHAIN} are taken")
    answer = Answer(request, chain[0], tuple(chain[1:]), tuple(anchors), at)
    try:
        for check in checks:
            check(answer)
    except _UNUSABLE as error:
        raise _unfit(f"is no X.509-SVID: {error}") from error
    # Intermediates go along though a broker may know them: of new ones it learns when it is started.
    handed_out = [answer.leaf, *(one for one in answer.others if one.subject != one.issuer)]
    return Issued(
        b"".join(pem(one) for one in handed_out),
        f"{answer.leaf.serial_number:x}",
        answer.leaf.not_valid_before_utc,
        answer.leaf.not_valid_after_utc,
    )


def check_request(request: CertificateRequest) -> None:
    """Check that a request asks for nothing but this device, before somebody signs it who may copy what it says.

    Raises:
        RefusedError: `csr-unfit`.
    """
    csr = x509.load_der_x509_csr(request.csr)
    subject = csr.subject.rfc4514_string()
    if subject not in {"", f"CN={request.gateway}", _LEGACY_SUBJECT}:
        raise _asks_for(f"the subject {subject!r}, and may ask for CN={request.gateway}")
    try:
        extensions = list(csr.extensions)
    except _UNUSABLE as error:
        raise RefusedError("csr-unfit", f"the certificate request cannot be read: {error}") from error
    wanted = [x509.UniformResourceIdentifier(request.spiffe_id)]
    for one in extensions:
        if not isinstance(one.value, x509.SubjectAlternativeName):
            raise _asks_for(f"the extension {one.oid.dotted_string}, and may ask for an alternative name alone")
        if list(one.value) != wanted:
            raise _asks_for(f"other names than {request.spiffe_id}")


def _asks_for(what: str) -> RefusedError:
    return RefusedError("csr-unfit", f"the certificate request asks for {what}")


def _unfit(what: str) -> AuthorityError:
    return AuthorityError("unfit", f"the authority's certificate {what}")


def _spki(key: PublicKey) -> bytes:
    return key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
