"""What an authority outside of the bridge may not get away with; and that each check is what stops it."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Final

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from cloud_bridge.identity import issued as under_test
from cloud_bridge.identity.errors import AuthorityError, RefusedError
from cloud_bridge.identity.issued import ANSWER_CHECKS, MAX_CHAIN, AnswerCheck, accept, check_request
from cloud_bridge.identity.issuer import CertificateRequest, Issued, Key, life_from, new_key, pem
from gateway.wire.identity import spiffe_id

NOW: Final = datetime(2026, 9, 21, 12, tzinfo=UTC)
LIFE: Final = life_from(NOW, seconds=3600, backdate_seconds=120)
ID: Final = spiffe_id("sluice.test", "dock-7")
DAY: Final = timedelta(days=1)
KEY: Final = new_key()


def usage(*allowed: str) -> x509.KeyUsage:
    known = ["digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement"]
    known += ["key_cert_sign", "crl_sign", "encipher_only", "decipher_only"]
    return x509.KeyUsage(**{name: name in allowed for name in known})


@dataclass(frozen=True)
class Authority:
    """A root, or an intermediate below another one."""

    key: Key
    certificate: x509.Certificate


def authority(name: str, above: Authority | None = None, *, until: datetime = NOW + 30 * DAY) -> Authority:
    key = new_key()
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    signer = key if above is None else above.key
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject if above is None else above.certificate.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(NOW - 30 * DAY)
        .not_valid_after(until)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(usage("key_cert_sign", "crl_sign"), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False)
    )
    return Authority(key, builder.sign(signer, hashes.SHA256()))


@cache
def trusted() -> tuple[Authority, Authority]:
    root = authority("Example Root")
    return root, authority("Example Devices", root)


@dataclass(frozen=True, kw_only=True)
class Made:
    """A certificate, good by itself; each field makes it another one."""

    key: Key = KEY
    names: Sequence[str] = ("dock-7",)
    alternatives: Sequence[x509.GeneralName] = (x509.UniformResourceIdentifier(ID),)
    is_authority: bool = False
    allowed: Sequence[str] = ("digital_signature",)
    purposes: Sequence[x509.ObjectIdentifier] = (ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH)
    begins: datetime = LIFE.not_before
    ends: datetime = LIFE.not_after
    below: Authority = field(default_factory=lambda: trusted()[1])
    with_intermediate: bool = True

    def chain(self) -> bytes:
        common = [x509.NameAttribute(NameOID.COMMON_NAME, name) for name in self.names]
        builder = (
            x509.CertificateBuilder()
            .subject_name(x509.Name(common))
            .issuer_name(self.below.certificate.subject)
            .public_key(self.key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(self.begins)
            .not_valid_after(self.ends)
            .add_extension(x509.BasicConstraints(ca=self.is_authority, path_length=None), critical=True)
            .add_extension(usage(*self.allowed), critical=True)
            .add_extension(x509.ExtendedKeyUsage(self.purposes), critical=False)
            .add_extension(x509.SubjectAlternativeName(self.alternatives), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self.below.key.public_key()), critical=False
            )
        )
        leaf = pem(builder.sign(self.below.key, hashes.SHA256()))
        return leaf + pem(self.below.certificate) if self.with_intermediate else leaf


def csr(subject: str = "dock-7", *extensions: x509.ExtensionType) -> bytes:
    names = [x509.NameAttribute(NameOID.COMMON_NAME, subject)] if subject else []
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name(names))
    for one in extensions:
        builder = builder.add_extension(one, critical=False)
    return builder.sign(KEY, hashes.SHA256()).public_bytes(serialization.Encoding.DER)


def request(der: bytes = b"") -> CertificateRequest:
    return CertificateRequest("dock-7", ID, der or csr(), KEY.public_key(), LIFE)


def judged(chain: bytes, checks: Sequence[AnswerCheck] = ANSWER_CHECKS) -> Issued:
    return accept(chain, request(), [trusted()[0].certificate], NOW, checks)


def uri(text: str) -> x509.UniformResourceIdentifier:
    return x509.UniformResourceIdentifier(text)


def test_an_honest_answer_is_handed_out_with_its_intermediate_and_without_the_root() -> None:
    found = judged(Made().chain() + pem(trusted()[0].certificate))
    names = [one.subject.rfc4514_string() for one in x509.load_pem_x509_certificates(found.chain_pem)]
    assert names == ["CN=dock-7", "CN=Example Devices"]
    assert (found.not_before, found.not_after) == (LIFE.not_before, LIFE.not_after)
    assert int(found.serial, 16) == x509.load_pem_x509_certificate(found.chain_pem).serial_number


FAULTS: Final[dict[str, tuple[AnswerCheck, Made, str]]] = {
    "another key": (under_test.check_key, Made(key=new_key()), "another key"),
    "another device": (under_test.check_subject, Made(names=["dock-8"]), "CN=dock-7"),
    "two devices": (under_test.check_subject, Made(names=["dock-7", "dock-8"]), "CN=dock-7"),
    "nobody": (under_test.check_subject, Made(names=[]), "CN=dock-7"),
    "another SPIFFE ID": (under_test.check_names, Made(alternatives=[uri("spiffe://sluice.test/bridge")]), "alone"),
    "another domain": (under_test.check_names, Made(alternatives=[uri("spiffe://x.test/gateway/dock-7")]), "alone"),
    "two SPIFFE IDs": (under_test.check_names, Made(alternatives=[uri(ID), uri(ID + "0")]), "alone"),
    "a host name too": (under_test.check_names, Made(alternatives=[uri(ID), x509.DNSName("x.test")]), "no host name"),
    "an authority": (under_test.check_purpose, Made(is_authority=True), "CA:FALSE"),
    "signs certificates": (
        under_test.check_purpose,
        Made(allowed=["digital_signature", "key_cert_sign"]),
        "digitalSignature",
    ),
    "does not sign": (under_test.check_purpose, Made(allowed=["key_agreement"]), "digitalSignature"),
    "no client": (under_test.check_purpose, Made(purposes=[ExtendedKeyUsageOID.SERVER_AUTH]), "clientAuth"),
    "a day": (under_test.check_life, Made(ends=NOW + DAY), "certificate_seconds"),
    "begins in an hour": (under_test.check_life, Made(begins=NOW + timedelta(minutes=30)), "clocks"),
    "over": (under_test.check_life, Made(ends=NOW + timedelta(minutes=3)), "clocks"),
    "another authority": (under_test.check_chain, Made(below=authority("Example Devices")), "trust_anchors"),
    "no intermediate": (under_test.check_chain, Made(with_intermediate=False), "every intermediate"),
    "an intermediate that is over": (
        under_test.check_chain,
        Made(below=authority("Old Devices", trusted()[0], until=NOW - DAY)),
        "trust_anchors",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_an_answer_that_is_not_what_was_asked_for_is_refused_with_the_remedy(fault: str) -> None:
    _, made, remedy = FAULTS[fault]
    with pytest.raises(AuthorityError, match=remedy) as caught:
        judged(made.chain())
    assert caught.value.fault == "unfit"


@pytest.mark.parametrize("fault", FAULTS)
def test_control_without_its_check_it_would_be_handed_out(fault: str) -> None:
    left_out, made, _ = FAULTS[fault]
    assert judged(made.chain(), [check for check in ANSWER_CHECKS if check is not left_out]).chain_pem


def test_every_check_has_a_fault_that_it_alone_finds() -> None:
    assert {check for check, _, _ in FAULTS.values()} == set(ANSWER_CHECKS)


def test_the_authoritys_clock_may_be_a_little_ahead() -> None:
    ahead = timedelta(seconds=5)
    judged(Made(begins=NOW + ahead, ends=LIFE.not_after + ahead).chain())


@pytest.mark.parametrize(
    "chain",
    [b"", b"no certificate", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"],
)
def test_what_is_no_chain_is_refused(chain: bytes) -> None:
    with pytest.raises(AuthorityError, match="PEM"):
        judged(chain)


def test_a_chain_without_end_is_refused() -> None:
    with pytest.raises(AuthorityError, match=f"at most {MAX_CHAIN}"):
        judged(Made().chain() + pem(trusted()[1].certificate) * MAX_CHAIN)


def test_a_certificate_without_the_extensions_of_an_svid_is_refused() -> None:
    issuer = trusted()[0]
    bare = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "dock-7")]))
        .issuer_name(issuer.certificate.subject)
        .public_key(KEY.public_key())
        .serial_number(7)
        .not_valid_before(LIFE.not_before)
        .not_valid_after(LIFE.not_after)
        .sign(issuer.key, hashes.SHA256())
    )
    with pytest.raises(AuthorityError, match=r"no X\.509-SVID"):
        judged(pem(bare))


@pytest.mark.parametrize(
    "der",
    [
        csr(),
        csr(""),
        csr("gateway"),  # as gateways asked before they knew of other authorities
        csr("dock-7", x509.SubjectAlternativeName([uri(ID)])),
    ],
)
def test_a_request_may_hold_the_devices_own_names(der: bytes) -> None:
    check_request(request(der))


@pytest.mark.parametrize(
    "der",
    [
        csr("dock-8"),
        csr("dock-7", x509.SubjectAlternativeName([uri("spiffe://sluice.test/gateway/dock-8")])),
        csr("dock-7", x509.SubjectAlternativeName([uri(ID), x509.DNSName("broker.example")])),
        csr("dock-7", x509.BasicConstraints(ca=True, path_length=None)),
        csr("dock-7", usage("key_cert_sign")),
    ],
)
def test_a_request_for_anything_else_never_reaches_the_authority(der: bytes) -> None:
    with pytest.raises(RefusedError, match="asks for") as caught:
        check_request(request(der))
    assert caught.value.code == "csr-unfit"
