"""Messages of enrolment, attestation and key release: JSON over HTTPS between a device and the bridge.

They travel on the bridge's identity listener, not over MQTT: a device that is not enrolled has no way into a broker
that asks for certificates. All requests but the first are POSTs; every answer that is not 200 carries a `Refusal`.

    GET  /identity/v1/trust                                  → Trust
    POST /identity/v1/enrol       EnrolRequest               → Challenge, with a credential at level `tpm`
    POST /identity/v1/challenge   ChallengeRequest           → Challenge, for a device that is enrolled
    POST /identity/v1/attest      AttestRequest              → Granted

`bytes` are base64 in JSON. TPM structures are marshalled as the TPM 2.0 Library, part 2, says: TPMT_PUBLIC and
TPMS_ATTEST without a size in front, TPM2B_ID_OBJECT and TPM2B_ENCRYPTED_SECRET with theirs.
"""

import hashlib
from collections.abc import Mapping
from typing import Annotated, Final, Literal

import msgspec

PATH_TRUST: Final = "/identity/v1/trust"
PATH_ENROL: Final = "/identity/v1/enrol"
PATH_CHALLENGE: Final = "/identity/v1/challenge"
PATH_ATTEST: Final = "/identity/v1/attest"

MAX_BODY_BYTES: Final = 64 * 1024
"""A longer body is refused before it is read; an enrolment with a chain of certificates takes about 8 kB."""

MAX_PCR: Final = 23
CONTENT_KEY_BYTES: Final = 32

Level = Literal["tpm", "software"]
"""Where the device's keys live: in a TPM, or (in development) in a file."""

RefusalCode = Literal[
    # The message itself.
    "malformed",  # not JSON, not this message, a field that cannot be read
    "too-large",
    "too-many-requests",  # retry_after_seconds says when to come back
    # Who asks.
    "unknown-device",  # not enrolled under this name: enrol first
    "revoked-device",
    "other-tpm",  # the name is enrolled with another TPM: a cloned disk, or a replaced board
    "wrong-key",  # the attestation key or the software key is not the one that is enrolled
    "software-not-allowed",
    # Enrolment.
    "claim-needed",  # neither a claim token nor an endorsement key that was announced
    "claim-unknown",
    "claim-expired",
    "claim-used",
    "ek-untrusted",  # the endorsement key's certificate does not lead to a trusted root, or is missing
    "ek-unfit",  # not an RSA-2048 or P-256 endorsement key after the TCG templates
    "ek-mismatch",  # the certificate is of another key than the one that was sent
    "ak-unfit",  # the attestation key is not restricted, not fixed to its TPM, or of another kind
    "wrong-secret",  # the credential was not activated: attestation key and endorsement key are not in one TPM
    # Attestation.
    "session-unknown",  # never opened for this device, or forgotten: ask for a new challenge
    "session-used",  # a session is good for one try: a replay, or an answer that was lost
    "session-expired",
    "quote-malformed",
    "quote-signature",
    "quote-nonce",  # made for another challenge, another CSR or another recipient: a replay
    "quote-pcrs",  # the quote does not cover the registers asked for, or their values are not those it signs
    "wrong-pcr",  # no approved boot state has these values; `pcrs` names the registers
    "no-approved-state",
    "csr-unfit",
    "recipient-unfit",
    # The bridge.
    "unavailable",  # try again later
]

# A peer sends what it likes: every text and every structure has a limit, far above what real ones need.
GatewayId = Annotated[str, msgspec.Meta(pattern=r"^[a-z0-9-]{1,63}$(?!\n)")]
SessionId = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{32}$(?!\n)")]
Text = Annotated[str, msgspec.Meta(max_length=256)]
Structure = Annotated[bytes, msgspec.Meta(max_length=8192)]
Digest = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}$(?!\n)")]
Nanoseconds = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
Pcr = Annotated[int, msgspec.Meta(ge=0, le=MAX_PCR)]
PcrValues = dict[Annotated[str, msgspec.Meta(pattern=r"^(0|[1-9]|1[0-9]|2[0-3])$(?!\n)")], Structure]
"""Register number as text, and its 32 bytes (bank SHA-256)."""


class IdentityMessage(msgspec.Struct, frozen=True, kw_only=True):
    """Base of all messages here."""


class Trust(IdentityMessage, frozen=True, kw_only=True):
    """`GET /identity/v1/trust`: whom a device may believe.

    A device that has no `bundle` yet fetches this without checking the certificate, then compares `fingerprint`
    (SHA-256 of the first certificate of `bundle`, DER) with the one that came with its claim token, and from then on
    checks every connection, this listener's and the broker's, against `bundle`.
    """

    trust_domain: Text
    bundle: str  # PEM: the authorities of the bridge's and the broker's certificates, the present one first
    fingerprint: Digest
    at: str
    at_ns: Nanoseconds


class EnrolRequest(IdentityMessage, frozen=True, kw_only=True):
    """A device without an identity asks for one.

    Level `tpm`: `ek_public` and `ak_public` are TPMT_PUBLIC (EK: RSA-2048 or P-256 after the TCG EK templates; AK:
    P-256 or RSA-2048, restricted, signing); `ek_certificates` are DER, the EK's own first, then intermediates.
    Level `software`: `ak_public` is the SubjectPublicKeyInfo (DER) of a P-256 key; there is no EK.

    `claim_token` may be left out when the operator announced the EK. An enrolled device may send this again, e.g.
    when the answer was lost or its attestation key had to be made anew: with the same EK it needs no new claim.
    """

    gateway: GatewayId
    level: Level
    ak_public: Structure
    ek_public: Structure = b""
    ek_certificates: Annotated[list[Structure], msgspec.Meta(max_length=8)] = []
    claim_token: Text | None = None
    version: Text = ""


class ChallengeRequest(IdentityMessage, frozen=True, kw_only=True):
    """An enrolled device wants to attest itself."""

    gateway: GatewayId
    level: Level = "tpm"
    version: Text = ""


class Credential(IdentityMessage, frozen=True, kw_only=True):
    """For TPM2_ActivateCredential: only the TPM with this EK and this AK can open it (part 1, §24)."""

    blob: bytes  # TPM2B_ID_OBJECT
    encrypted_secret: bytes  # TPM2B_ENCRYPTED_SECRET


class Challenge(IdentityMessage, frozen=True, kw_only=True):
    """What to sign: the quote covers exactly `pcrs` (bank SHA-256) and carries `binding(...)` as qualifying data."""

    session: SessionId
    nonce: bytes
    expires_seconds: float
    at: str
    at_ns: Nanoseconds
    pcrs: list[Pcr] = []  # none at level `software`
    credential: Credential | None = None  # enrolment at level `tpm`


class AttestRequest(IdentityMessage, frozen=True, kw_only=True):
    """The proof, and the keys that go with it; a session is good for one try.

    `csr` is a PKCS #10 request (DER) for a P-256 key made for this certificate alone; its subject is ignored.
    `recipient` is an X25519 public key (32 bytes) for the content keys.
    Level `tpm`: `quote` is TPMS_ATTEST, `signature` TPMT_SIGNATURE, `pcrs` the values behind the quote.
    Level `software`: `signature` is ECDSA-SHA256 (DER) over `software_message(...)`; no quote, no registers.
    """

    session: SessionId
    gateway: GatewayId
    csr: Structure
    recipient: Structure
    signature: Structure
    quote: Structure = b""
    pcrs: PcrValues = {}
    secret: Structure | None = None  # out of the credential; enrolment at level `tpm` only
    clock_ns: Nanoseconds | None = None  # the device's wall clock, so that the bridge can tell when it is off


class Grant(IdentityMessage, frozen=True, kw_only=True):
    """The content key of a release: a libsodium sealed box to `recipient`, 80 bytes.

    After `lease_until_ns` the device must attest itself again before it may use the key.
    """

    release: str
    digest: str
    wrapped_key: bytes
    lease_until: str
    lease_until_ns: Nanoseconds


class Granted(IdentityMessage, frozen=True, kw_only=True):
    """A certificate for a short time, and the content keys."""

    certificate_chain: str  # PEM: the device's certificate first, then intermediates if there are any
    spiffe_id: str
    not_before_ns: Nanoseconds
    not_after: str
    not_after_ns: Nanoseconds
    renew_at_ns: Nanoseconds  # half-way; the bridge's clock
    bundle: str  # PEM, as in Trust; replaces the one the device has
    grants: list[Grant] = []
    state: str = ""  # the name of the approved boot state that the quote matched
    notice: str = ""  # for people: e.g. that the claim it was asked with was not needed
    at: str
    at_ns: Nanoseconds


class Refusal(IdentityMessage, frozen=True, kw_only=True):
    """Why not. `code` is for programs, `message` for people; `refusal_id` finds it among the bridge's events."""

    code: Text  # a RefusalCode; a newer bridge may know more of them
    message: str
    refusal_id: str = ""
    pcrs: list[Pcr] = []  # with `wrong-pcr`: the registers that differ from the nearest approved state
    retry_after_seconds: float | None = None


class ClaimCode(IdentityMessage, frozen=True, kw_only=True):
    """What a person copies to the device: the secret of the claim, and whom to believe."""

    token: str
    fingerprint: str

    def text(self) -> str:
        """Write it as one word."""
        return f"{_CLAIM_PREFIX}.{self.token}.{self.fingerprint}"


_CLAIM_PREFIX: Final = "sluice1"
_BINDING: Final = b"sluice identity v1 binding"
_SOFTWARE: Final = b"sluice identity v1 software proof"


def spiffe_id(trust_domain: str, gateway: str) -> str:
    """Return the SPIFFE ID of a gateway, which is in its certificates."""
    return f"spiffe://{trust_domain}/gateway/{gateway}"


def claim_code(text: str) -> ClaimCode | None:
    """Read what `ClaimCode.text` has written; None when it is something else."""
    parts = text.strip().split(".")
    if len(parts) != 3 or parts[0] != _CLAIM_PREFIX or not parts[1] or len(parts[2]) != 64:
        return None
    return ClaimCode(token=parts[1], fingerprint=parts[2])


def binding(nonce: bytes, csr: bytes, recipient: bytes, gateway: str) -> bytes:
    """Return the 32 bytes that a quote must carry, so that it proves nothing for other keys or another challenge."""
    return _digest(_BINDING, nonce, csr, recipient, gateway.encode("utf-8"))


def software_message(nonce: bytes, csr: bytes, recipient: bytes, gateway: str) -> bytes:
    """Return what a device at level `software` signs in place of a quote."""
    return _SOFTWARE + binding(nonce, csr, recipient, gateway)


def pcr_digest(values: Mapping[int, bytes]) -> bytes:
    """Return the digest that a quote carries over registers: SHA-256 over their values in ascending order."""
    return hashlib.sha256(b"".join(values[number] for number in sorted(values))).digest()


def _digest(*parts: bytes) -> bytes:
    digest = hashlib.sha256()
    for part in parts:  # with their lengths, so that no part can reach into its neighbour
        digest.update(len(part).to_bytes(4, "big") + part)
    return digest.digest()


IDENTITY_MESSAGES: Final[dict[str, type[IdentityMessage]]] = {
    "identity-trust": Trust,
    "identity-enrol": EnrolRequest,
    "identity-challenge-request": ChallengeRequest,
    "identity-challenge": Challenge,
    "identity-attest": AttestRequest,
    "identity-granted": Granted,
    "identity-refusal": Refusal,
}
"""The messages by the name under which schema and sample are published."""
