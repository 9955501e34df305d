"""A device that enrols and attests itself, with a TPM made of software; every step can be made to go wrong.

`SoftTpm` builds the structures of a TPM 2.0 itself and needs no other program; `SwTpm` in `swtpm_device.py`
is the same over a real implementation of a TPM. Both pass the same tests.
"""

import hashlib
import hmac
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final, Protocol, TypeVar

from cryptography import x509
from cryptography.hazmat.decrepit.ciphers.modes import CFB
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa, utils
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from nacl.public import PrivateKey, SealedBox

from gateway.wire.identity import (
    PATH_ATTEST,
    PATH_CHALLENGE,
    PATH_ENROL,
    AttestRequest,
    Challenge,
    ChallengeRequest,
    Credential,
    EnrolRequest,
    Granted,
    IdentityMessage,
    Refusal,
    binding,
    software_message,
)
from gateway.wire.messages import decode, encode

AK_ATTRIBUTES: Final = 0x00050072  # fixedTPM fixedParent sensitiveDataOrigin userWithAuth restricted sign
EK_ATTRIBUTES: Final = 0x000300B2  # TCG templates L-1, L-2: adminWithPolicy restricted decrypt
EK_POLICY: Final = bytes.fromhex("837197674484b3f81a90cc8d46a5d724fd52d76e06520b64f2a1da1b331469aa")
_SHA256: Final = 0x000B
_NULL: Final = 0x0010

M = TypeVar("M", bound=IdentityMessage)

Post = Callable[[str, bytes], bytes]
"""Sends a body to a path of the identity listener; returns the body of the answer."""


def sized(data: bytes) -> bytes:
    return len(data).to_bytes(2, "big") + data


def ecc_public(
    key: ec.EllipticCurvePublicKey, *, attributes: int, policy: bytes, symmetric: bytes, scheme: bytes
) -> bytes:
    point = key.public_numbers()
    unique = sized(point.x.to_bytes(32, "big")) + sized(point.y.to_bytes(32, "big"))
    head = struct.pack(">HHI", 0x0023, _SHA256, attributes) + sized(policy)
    return head + symmetric + scheme + struct.pack(">HH", 0x0003, _NULL) + unique


def rsa_public(key: rsa.RSAPublicKey, *, attributes: int, policy: bytes, symmetric: bytes, scheme: bytes) -> bytes:
    head = struct.pack(">HHI", 0x0001, _SHA256, attributes) + sized(policy)
    modulus = key.public_numbers().n.to_bytes(256, "big")
    return head + symmetric + scheme + struct.pack(">HI", 2048, 0) + sized(modulus)


AES_128_CFB: Final = struct.pack(">HHH", 0x0006, 128, 0x0043)
NO_SYMMETRIC: Final = struct.pack(">H", _NULL)
NO_SCHEME: Final = struct.pack(">H", _NULL)
ECDSA_SHA256: Final = struct.pack(">HH", 0x0018, _SHA256)
RSASSA_SHA256: Final = struct.pack(">HH", 0x0014, _SHA256)


class Tpm(Protocol):
    """What a device asks of its TPM."""

    @property
    def ek_public(self) -> bytes: ...
    @property
    def ak_public(self) -> bytes: ...
    @property
    def ek_key(self) -> rsa.RSAPublicKey | ec.EllipticCurvePublicKey: ...
    def activate(self, credential: Credential) -> bytes: ...
    def quote(self, qualifying: bytes, pcrs: list[int]) -> tuple[bytes, bytes]: ...
    def pcrs(self, numbers: list[int]) -> dict[int, bytes]: ...
    def extend(self, number: int, digest: bytes) -> None: ...


class ActivationError(Exception):
    """TPM_RC_INTEGRITY: the credential is for another pair of keys."""


class SoftTpm:
    """A TPM of software. Knobs: `rsa_ek`, `rsa_ak`, `ak_attributes`, `resets`; and to
    forge quotes `magic`, `kind`, `bank`."""

    def __init__(self, *, rsa_ek: bool = False, rsa_ak: bool = False, ak_attributes: int = AK_ATTRIBUTES) -> None:
        self._ek: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey = (
            rsa.generate_private_key(65537, 2048) if rsa_ek else ec.generate_private_key(ec.SECP256R1())
        )
        self._ak: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey = (
            rsa.generate_private_key(65537, 2048) if rsa_ak else ec.generate_private_key(ec.SECP256R1())
        )
        self._ak_attributes = ak_attributes
        self._registers = {number: bytes(32) for number in range(24)}
        self.magic = 0xFF544347
        self.kind = 0x8018
        self.bank = _SHA256
        self.resets = 7

    @property
    def ek_key(self) -> rsa.RSAPublicKey | ec.EllipticCurvePublicKey:
        return self._ek.public_key()

    @property
    def ek_public(self) -> bytes:
        key = self._ek.public_key()
        if isinstance(key, rsa.RSAPublicKey):
            return rsa_public(key, attributes=EK_ATTRIBUTES, policy=EK_POLICY, symmetric=AES_128_CFB, scheme=NO_SCHEME)
        return ecc_public(key, attributes=EK_ATTRIBUTES, policy=EK_POLICY, symmetric=AES_128_CFB, scheme=NO_SCHEME)

    @property
    def ak_public(self) -> bytes:
        key = self._ak.public_key()
        if isinstance(key, rsa.RSAPublicKey):
            return rsa_public(
                key, attributes=self._ak_attributes, policy=b"", symmetric=NO_SYMMETRIC, scheme=RSASSA_SHA256
            )
        return ecc_public(key, attributes=self._ak_attributes, policy=b"", symmetric=NO_SYMMETRIC, scheme=ECDSA_SHA256)

    def new_ak(self) -> None:
        """As after a factory reset."""
        self._ak = ec.generate_private_key(ec.SECP256R1())

    def pcrs(self, numbers: list[int]) -> dict[int, bytes]:
        return {number: self._registers[number] for number in numbers}

    def extend(self, number: int, digest: bytes) -> None:
        self._registers[number] = hashlib.sha256(self._registers[number] + digest).digest()

    def quote(self, qualifying: bytes, pcrs: list[int]) -> tuple[bytes, bytes]:
        return self.quote_of(qualifying, self.pcrs(pcrs))

    def quote_of(self, qualifying: bytes, values: Mapping[int, bytes]) -> tuple[bytes, bytes]:
        bitmap = bytearray(3)
        for number in values:
            bitmap[number // 8] |= 1 << number % 8
        digest = hashlib.sha256(b"".join(values[number] for number in sorted(values))).digest()
        attest = (
            struct.pack(">IH", self.magic, self.kind)
            + sized(bytes(34))
            + sized(qualifying)
            + struct.pack(">QIIBQ", 123456, self.resets, 0, 1, 0x2020031012000000)
            + struct.pack(">IHB", 1, self.bank, 3)
            + bytes(bitmap)
            + sized(digest)
        )
        return attest, self.sign(attest)

    def sign(self, data: bytes) -> bytes:
        if isinstance(self._ak, rsa.RSAPrivateKey):
            signature = self._ak.sign(data, padding.PKCS1v15(), hashes.SHA256())
            return struct.pack(">HH", 0x0014, _SHA256) + sized(signature)
        r, s = utils.decode_dss_signature(self._ak.sign(data, ec.ECDSA(hashes.SHA256())))
        parts = sized(r.to_bytes(32, "big")) + sized(s.to_bytes(32, "big"))
        return struct.pack(">HH", 0x0018, _SHA256) + parts

    def activate(self, credential: Credential) -> bytes:
        """TPM2_ActivateCredential (part 1 §24)."""
        name = struct.pack(">H", _SHA256) + hashlib.sha256(self.ak_public).digest()
        seed = self._seed(credential.encrypted_secret[2:])
        blob = credential.blob[2:]
        length = int.from_bytes(blob[:2], "big")
        integrity, encrypted = blob[2 : 2 + length], blob[2 + length :]
        key = _kdf_a(seed, b"INTEGRITY", b"", 256)
        if not hmac.compare_digest(integrity, hmac.digest(key, encrypted + name, "sha256")):
            raise ActivationError
        decryptor = Cipher(algorithms.AES(_kdf_a(seed, b"STORAGE", name, 128)), CFB(bytes(16))).decryptor()
        plain = decryptor.update(encrypted) + decryptor.finalize()
        return plain[2 : 2 + int.from_bytes(plain[:2], "big")]

    def _seed(self, encrypted: bytes) -> bytes:
        if isinstance(self._ek, rsa.RSAPrivateKey):
            oaep = padding.OAEP(padding.MGF1(hashes.SHA256()), hashes.SHA256(), label=b"IDENTITY\0")
            try:
                return self._ek.decrypt(encrypted, oaep)
            except ValueError as error:
                raise ActivationError from error
        x, y = encrypted[2:34], encrypted[36:68]
        point = ec.EllipticCurvePublicNumbers(int.from_bytes(x, "big"), int.from_bytes(y, "big"), ec.SECP256R1())
        shared = self._ek.exchange(ec.ECDH(), point.public_key())
        own = self._ek.public_key().public_numbers().x.to_bytes(32, "big")
        return hashlib.sha256(b"\0\0\0\1" + shared + b"IDENTITY\0" + x + own).digest()


def _kdf_a(key: bytes, label: bytes, context: bytes, bits: int) -> bytes:
    return hmac.digest(key, b"\0\0\0\1" + label + b"\0" + context + struct.pack(">I", bits), "sha256")[: bits // 8]


class RefusedByBridgeError(Exception):
    """The bridge said no."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(f"{refusal.code}: {refusal.message}")
        self.refusal = refusal


def ask(post: Post, path: str, request: IdentityMessage, kind: type[M]) -> M:
    """Send a request; return the answer, or raise RefusedByBridgeError."""
    answer = post(path, encode(request))
    if b'"code"' in answer[:10]:
        raise RefusedByBridgeError(decode(answer, Refusal))
    return decode(answer, kind)


@dataclass
class AttestedDevice:
    """A device. `last` is the latest request to attest, as it was sent: a recording to replay."""

    gateway: str
    post: Post
    tpm: Tpm
    ek_certificates: list[bytes] = field(default_factory=list)
    clock_ns: int | None = None
    last: AttestRequest | None = None
    csr: Callable[[ec.EllipticCurvePrivateKey], bytes] | None = None  # makes another request than an honest one
    recipient: PrivateKey = field(default_factory=PrivateKey.generate)
    key: ec.EllipticCurvePrivateKey = field(default_factory=lambda: ec.generate_private_key(ec.SECP256R1()))

    def enrol(self, token: str | None = None) -> Granted:
        return self.attest(self.open_enrolment(token))

    def renew(self) -> Granted:
        return self.attest(self.open_challenge())

    def open_enrolment(self, token: str | None = None) -> Challenge:
        request = EnrolRequest(
            gateway=self.gateway,
            level="tpm",
            ak_public=self.tpm.ak_public,
            ek_public=self.tpm.ek_public,
            ek_certificates=self.ek_certificates,
            claim_token=token,
            version="0.1.0",
        )
        return ask(self.post, PATH_ENROL, request, Challenge)

    def open_challenge(self) -> Challenge:
        return ask(self.post, PATH_CHALLENGE, ChallengeRequest(gateway=self.gateway), Challenge)

    def attest(self, challenge: Challenge) -> Granted:
        return self.send(self.proof(challenge))

    def proof(self, challenge: Challenge) -> AttestRequest:
        """Make an honest proof with fresh keys."""
        self.key = ec.generate_private_key(ec.SECP256R1())
        csr = csr_of(self.key, self.gateway) if self.csr is None else self.csr(self.key)
        recipient = bytes(self.recipient.public_key)
        quote, signature = self.tpm.quote(binding(challenge.nonce, csr, recipient, self.gateway), challenge.pcrs)
        secret = None if challenge.credential is None else self.tpm.activate(challenge.credential)
        return AttestRequest(
            session=challenge.session,
            gateway=self.gateway,
            csr=csr,
            recipient=recipient,
            signature=signature,
            quote=quote,
            pcrs={str(number): value for number, value in self.tpm.pcrs(challenge.pcrs).items()},
            secret=secret,
            clock_ns=self.clock_ns,
        )

    def send(self, request: AttestRequest) -> Granted:
        self.last = request
        return ask(self.post, PATH_ATTEST, request, Granted)

    def open_grants(self, granted: Granted) -> dict[str, bytes]:
        """Unwrap the content keys."""
        box = SealedBox(self.recipient)
        return {grant.release: box.decrypt(grant.wrapped_key) for grant in granted.grants}


@dataclass
class SoftwareDevice:
    """A device without a TPM (development)."""

    gateway: str
    post: Post
    identity: ec.EllipticCurvePrivateKey = field(default_factory=lambda: ec.generate_private_key(ec.SECP256R1()))
    recipient: PrivateKey = field(default_factory=PrivateKey.generate)

    def enrol(self, token: str | None = None) -> Granted:
        return self.attest(self.open_enrolment(token))

    def open_enrolment(self, token: str | None = None) -> Challenge:
        spki = self.identity.public_key().public_bytes(
            serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        request = EnrolRequest(gateway=self.gateway, level="software", ak_public=spki, claim_token=token)
        return ask(self.post, PATH_ENROL, request, Challenge)

    def renew(self) -> Granted:
        request = ChallengeRequest(gateway=self.gateway, level="software")
        return self.attest(ask(self.post, PATH_CHALLENGE, request, Challenge))

    def attest(self, challenge: Challenge) -> Granted:
        csr, recipient = csr_of(ec.generate_private_key(ec.SECP256R1())), bytes(self.recipient.public_key)
        message = software_message(challenge.nonce, csr, recipient, self.gateway)
        request = AttestRequest(
            session=challenge.session,
            gateway=self.gateway,
            csr=csr,
            recipient=recipient,
            signature=self.identity.sign(message, ec.ECDSA(hashes.SHA256())),
        )
        return ask(self.post, PATH_ATTEST, request, Granted)


def csr_of(key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey, name: str = "whatever") -> bytes:
    """Make a certificate request; the bridge ignores its subject."""
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    builder = x509.CertificateSigningRequestBuilder().subject_name(subject)
    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.DER)
