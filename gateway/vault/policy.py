"""Which states of a machine the TPM gives the key out in, and who says so (pure).

The key is sealed once under "whatever the policy key has approved" (TPM2_PolicyAuthorize, part 3 §23.16). What is
approved comes as signed files, so an update of the system brings its own approval and nothing is sealed again:

* `boot`: these platform registers AND a counter that is not above a bound. Once the counter has moved past the bound,
  the old image's approval is worth nothing, though its registers are right.
* `first`: the counter may be counted for the first time. The same for all devices.
* `advance`: the counter may go from exactly one value to the next. Worth nothing afterwards, so it cannot be replayed.

A second counter holds the floor of updates of models. It may be moved in whatever state the key is given out in, so it
needs no approvals of its own.

The counter is an NV index that only such approvals can move, and whose name follows from its number and the policy
key: the build side computes every digest here without a TPM. Approvals are signed with ECDSA P-256, because a TPM
cannot check Ed25519; this key has no other use.

Digests as in TPM 2.0 Library part 3; tests compare each with a TPM's own trial session.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Final

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ec import (
    ECDSA,
    SECP256R1,
    EllipticCurvePrivateKey,
    EllipticCurvePublicKey,
)
from cryptography.hazmat.primitives.asymmetric.utils import (
    Prehashed,
    decode_dss_signature,
    encode_dss_signature,
)
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import load_pem_private_key, load_pem_public_key

from gateway.vault.errors import VaultConfigError, VaultError
from gateway.wire.manifest import Sha256

POLICY_SUFFIX: Final = ".policy.json"
DEFAULT_COUNTER_INDEX: Final = 0x0180_51CE
"""In the range that the TCG's registry of handles leaves to the owner."""
FLOOR_COUNTER_INDEX: Final = 0x0180_51CF
"""Of the counter that the floor of updates is bound to; the device itself moves it."""
FORECAST_INDEX: Final = 0x0180_51D0
"""Of a counter that is made and removed again, to learn with what value the next one begins."""

ALG_SHA256: Final = 0x000B
ZERO: Final = bytes(32)

_CC_NV_INCREMENT: Final = 0x134
_CC_POLICY_NV: Final = 0x149
_CC_POLICY_AUTHORIZE: Final = 0x16A
_CC_POLICY_COMMAND_CODE: Final = 0x16C
_CC_POLICY_PCR: Final = 0x17F
_CC_POLICY_NV_WRITTEN: Final = 0x18F
EO_EQ: Final = 0x0000
EO_UNSIGNED_LE: Final = 0x0009

# TPMA_NV, part 2 §13.4: counter, written by policy alone, read by anybody, no dictionary attack counting.
NV_ATTRIBUTES: Final = 0x0000_0008 | 0x0000_0010 | 0x0002_0000 | 0x0004_0000 | 0x0200_0000
NV_WRITTEN: Final = 0x2000_0000
NV_COUNTER_BYTES: Final = 8

# TPMA_OBJECT, part 2 §8.3: userWithAuth, sign.
_SIGNING_ATTRIBUTES: Final = 0x0004_0040

KEY_REF: Final = b"sluice vault key v1"
COUNTER_REF: Final = b"sluice vault counter v1"
"""What an approval is for: a signature for one cannot be used for the other."""

Counter = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
PcrNumber = Annotated[str, msgspec.Meta(pattern=r"^([0-9]|1[0-9]|2[0-3])$(?!\n)")]


class _Approval(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    name: str  # for people: which image, which step
    counter_index: Annotated[int, msgspec.Meta(ge=0x0100_0000, le=0x01FF_FFFF)] = DEFAULT_COUNTER_INDEX


class BootState(_Approval, frozen=True, kw_only=True, tag="boot", tag_field="kind"):
    """Registers (bank SHA-256, hex) that an image leaves behind, and the highest counter it may still run at."""

    pcrs: Annotated[dict[PcrNumber, Sha256], msgspec.Meta(min_length=1)]
    counter_at_most: Counter


class FirstCount(_Approval, frozen=True, kw_only=True, tag="first", tag_field="kind"):
    """The new counter may be counted once, which makes it readable."""


class Advance(_Approval, frozen=True, kw_only=True, tag="advance", tag_field="kind"):
    """The counter may go from `counter` to the next value."""

    counter: Counter


Approval = BootState | FirstCount | Advance


class SignedApproval(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An approval with the signature of the policy key over the digest that follows from it."""

    approval: Approval
    key: Sha256  # of the policy key's TPM public area
    signature: str  # ECDSA over `message_digest`, DER, hex


@dataclass(frozen=True, slots=True)
class PolicyKey:
    """The public key whose approvals count."""

    public: EllipticCurvePublicKey

    @property
    def area(self) -> bytes:
        """Its TPMT_PUBLIC."""
        numbers = self.public.public_numbers()
        return (
            _u16(0x0023)  # ECC
            + _u16(ALG_SHA256)
            + _u32(_SIGNING_ATTRIBUTES)
            + _sized(b"")
            + _u16(0x0010)  # no symmetric cipher
            + _u16(0x0018)  # ECDSA
            + _u16(ALG_SHA256)
            + _u16(0x0003)  # P-256
            + _u16(0x0010)  # no KDF
            + _sized(numbers.x.to_bytes(32, "big"))
            + _sized(numbers.y.to_bytes(32, "big"))
        )

    @property
    def name(self) -> bytes:
        """Its TPM name: algorithm and SHA-256 of the public area."""
        return _u16(ALG_SHA256) + hashlib.sha256(self.area).digest()

    @property
    def fingerprint(self) -> str:
        """The name without the algorithm, hex."""
        return self.name[2:].hex()


def read_policy_key(pem: bytes) -> PolicyKey:
    """Read a public key.

    Raises:
        VaultConfigError: it is not a P-256 public key in PEM.
    """
    try:
        key = load_pem_public_key(pem)
    except ValueError as error:
        raise VaultConfigError(f"the policy key is no public key in PEM: {error}") from error
    if not isinstance(key, EllipticCurvePublicKey) or not isinstance(key.curve, SECP256R1):
        raise VaultConfigError("the policy key must be ECDSA P-256: TPMs cannot check Ed25519")
    return PolicyKey(key)


def read_signing_key(pem: bytes) -> EllipticCurvePrivateKey:
    """Read the private key of the build side.

    Raises:
        VaultConfigError: it is not an unencrypted P-256 private key in PEM.
    """
    try:
        key = load_pem_private_key(pem, password=None)
    except (ValueError, TypeError) as error:
        raise VaultConfigError(f"the signing key is no unencrypted private key in PEM: {error}") from error
    if not isinstance(key, EllipticCurvePrivateKey) or not isinstance(key.curve, SECP256R1):
        raise VaultConfigError("the signing key must be ECDSA P-256: TPMs cannot check Ed25519")
    return key


# ---- digests -------------------------------------------------------------------------------------


def authorized(key: PolicyKey, ref: bytes) -> bytes:
    """Return the policy digest of "whatever `key` has approved for `ref`"; this is what is sealed under."""
    first = hashlib.sha256(ZERO + _u32(_CC_POLICY_AUTHORIZE) + key.name).digest()
    return hashlib.sha256(first + ref).digest()


def selection(numbers: Mapping[int, bytes] | list[int]) -> bytes:
    """Return the TPML_PCR_SELECTION of registers of the bank SHA-256."""
    bits = sum(1 << number for number in numbers)
    return _u32(1) + _u16(ALG_SHA256) + b"\x03" + bits.to_bytes(3, "little")


def with_pcrs(policy: bytes, values: Mapping[int, bytes]) -> bytes:
    """Extend a policy by "these registers have these values" (TPM2_PolicyPCR)."""
    digest = hashlib.sha256(b"".join(values[number] for number in sorted(values))).digest()
    return hashlib.sha256(policy + _u32(_CC_POLICY_PCR) + selection(values) + digest).digest()


def with_counter(policy: bytes, name: bytes, operand: int, operation: int) -> bytes:
    """Extend a policy by "the counter compares so with the operand" (TPM2_PolicyNV)."""
    arguments = operand.to_bytes(NV_COUNTER_BYTES, "big") + _u16(0) + _u16(operation)
    return hashlib.sha256(policy + _u32(_CC_POLICY_NV) + hashlib.sha256(arguments).digest() + name).digest()


def with_increment_only(policy: bytes) -> bytes:
    """Extend a policy by "for TPM2_NV_Increment alone" (TPM2_PolicyCommandCode)."""
    return hashlib.sha256(policy + _u32(_CC_POLICY_COMMAND_CODE) + _u32(_CC_NV_INCREMENT)).digest()


def with_not_written(policy: bytes) -> bytes:
    """Extend a policy by "the index was never written" (TPM2_PolicyNvWritten)."""
    return hashlib.sha256(policy + _u32(_CC_POLICY_NV_WRITTEN) + b"\0").digest()


def counter_public(key: PolicyKey, index: int, *, written: bool) -> bytes:
    """Return the TPMS_NV_PUBLIC of the counter against old images."""
    return _counter_public(authorized(key, COUNTER_REF), index, written=written)


def floor_counter_public(key: PolicyKey, index: int = FLOOR_COUNTER_INDEX, *, written: bool) -> bytes:
    """Return the TPMS_NV_PUBLIC of the counter of updates, which moves under the policy of the vault key."""
    return _counter_public(authorized(key, KEY_REF), index, written=written)


def _counter_public(policy: bytes, index: int, *, written: bool) -> bytes:
    attributes = NV_ATTRIBUTES | (NV_WRITTEN if written else 0)
    return _u32(index) + _u16(ALG_SHA256) + _u32(attributes) + _sized(policy) + _u16(NV_COUNTER_BYTES)


def counter_name(key: PolicyKey, index: int) -> bytes:
    """Return the TPM name of the counter once it has been counted."""
    return _u16(ALG_SHA256) + hashlib.sha256(counter_public(key, index, written=True)).digest()


def approved_digest(approval: Approval, key: PolicyKey) -> bytes:
    """Return the policy digest that an approval approves."""
    name = counter_name(key, approval.counter_index)
    match approval:
        case BootState():
            return with_counter(with_pcrs(ZERO, pcr_values(approval)), name, approval.counter_at_most, EO_UNSIGNED_LE)
        case FirstCount():
            return with_increment_only(with_not_written(ZERO))
        case Advance():
            return with_increment_only(with_counter(ZERO, name, approval.counter, EO_EQ))


def pcr_values(state: BootState) -> dict[int, bytes]:
    """Return the approved registers."""
    return {int(number): bytes.fromhex(value) for number, value in state.pcrs.items()}


def ref_of(approval: Approval) -> bytes:
    """Return what an approval is for."""
    return KEY_REF if isinstance(approval, BootState) else COUNTER_REF


# ---- signing -------------------------------------------------------------------------------------


def sign(approval: Approval, private: EllipticCurvePrivateKey) -> SignedApproval:
    """Approve; the build side's half."""
    key = PolicyKey(private.public_key())
    signature = private.sign(message_digest(approval, key), ECDSA(Prehashed(SHA256())))
    return SignedApproval(approval=approval, key=key.fingerprint, signature=signature.hex())


def message_digest(approval: Approval, key: PolicyKey) -> bytes:
    """Return the digest that is signed: SHA-256 over the approved policy and what it is for (part 3 §23.16.1)."""
    return hashlib.sha256(approved_digest(approval, key) + ref_of(approval)).digest()


def verified(signed: SignedApproval, key: PolicyKey) -> Approval:
    """Return the approval if `key` has signed it; the TPM checks again by itself.

    Raises:
        VaultError: it has not.
    """
    if signed.key != key.fingerprint:
        raise VaultError(f"signed by {signed.key[:12]}…, this device trusts {key.fingerprint[:12]}…")
    try:
        raw = bytes.fromhex(signed.signature)
        key.public.verify(raw, message_digest(signed.approval, key), ECDSA(Prehashed(SHA256())))
    except (InvalidSignature, ValueError) as error:
        raise VaultError("its signature is wrong") from error
    return signed.approval


def tpm_signature(signed: SignedApproval) -> bytes:
    """Return the signature as TPMT_SIGNATURE."""
    r, s = decode_dss_signature(bytes.fromhex(signed.signature))
    return _u16(0x0018) + _u16(ALG_SHA256) + _sized(r.to_bytes(32, "big")) + _sized(s.to_bytes(32, "big"))


def der_signature(r: bytes, s: bytes) -> bytes:
    """Return an ECDSA signature of a TPM in DER."""
    return encode_dss_signature(int.from_bytes(r, "big"), int.from_bytes(s, "big"))


_decoder: msgspec.json.Decoder[SignedApproval] = msgspec.json.Decoder(SignedApproval)


def decode(document: bytes) -> SignedApproval:
    """Read a signed approval; nothing of it is verified yet.

    Raises:
        VaultError: it is none.
    """
    try:
        return _decoder.decode(document)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise VaultError(f"no signed policy: {error}") from error


def encode(signed: SignedApproval) -> bytes:
    """Write a signed approval, for people too."""
    return msgspec.json.format(msgspec.json.encode(signed), indent=2) + b"\n"


# ---- explaining ----------------------------------------------------------------------------------


def objections(state: BootState, pcrs: Mapping[int, bytes], counter: int | None) -> list[str]:
    """Say why a boot state is not the present one; empty when it is.

    Args:
        state: what is approved.
        pcrs: the present values of at least its registers.
        counter: its present value, None when there is none.
    """
    reasons = [
        f"PCR {number} is {pcrs[number].hex()[:16]}…, approved is {approved.hex()[:16]}…"
        for number, approved in sorted(pcr_values(state).items())
        if pcrs[number] != approved
    ]
    if counter is None:
        reasons.append(f"the counter {state.counter_index:#x} is not there: run `gateway vault init`")
    elif counter > state.counter_at_most:
        reasons.append(f"the counter is {counter}, approved up to {state.counter_at_most}: this image is too old")
    return reasons


def _u16(value: int) -> bytes:
    return value.to_bytes(2, "big")


def _u32(value: int) -> bytes:
    return value.to_bytes(4, "big")


def _sized(value: bytes) -> bytes:
    return _u16(len(value)) + value
