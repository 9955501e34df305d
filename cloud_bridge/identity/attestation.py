"""Judges what a device presents: its keys, its quote, its proof of possession. Pure; a fault is a RefusedError.

Follows the TPM 2.0 Library, part 1 §18 (authorisations and attestation) and the TCG guidance for remote attestation:
the signature first, so that everything after it is about data that this TPM has signed.
"""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, utils

from cloud_bridge.identity.errors import MalformedStructureError, RefusedError
from cloud_bridge.identity.structures import (
    ALG_AES,
    ALG_CFB,
    ALG_ECDSA,
    ALG_RSAPSS,
    ALG_RSASSA,
    ALG_SHA256,
    DECRYPT,
    FIXED_PARENT,
    FIXED_TPM,
    RESTRICTED,
    SENSITIVE_DATA_ORIGIN,
    SIGN,
    Public,
    Quote,
    Signature,
    read_public,
    read_quote,
    read_signature,
)
from gateway.wire.identity import pcr_digest

_AK_ATTRIBUTES: Final = FIXED_TPM | FIXED_PARENT | SENSITIVE_DATA_ORIGIN | RESTRICTED | SIGN
_EK_ATTRIBUTES: Final = FIXED_TPM | FIXED_PARENT | SENSITIVE_DATA_ORIGIN | RESTRICTED | DECRYPT
_PCR_BYTES: Final = 32


@dataclass(frozen=True, slots=True)
class Attested:
    """A quote that holds, and the register values it vouches for."""

    quote: Quote
    pcrs: dict[int, bytes]


def attestation_key(blob: bytes) -> Public:
    """Read an attestation key: one that signs only what its own TPM has made.

    Raises:
        RefusedError: `ak-unfit`.
    """
    try:
        key = read_public(blob)
    except MalformedStructureError as error:
        raise RefusedError("ak-unfit", f"the attestation key cannot be read: {error}") from error
    if not key.has(_AK_ATTRIBUTES) or key.has(DECRYPT):
        raise RefusedError(
            "ak-unfit",
            f"attributes {key.attributes:#010x} of the attestation key: it must be a restricted signing key"
            " that was made in its TPM and cannot leave it",
        )
    # A restricted signing key has a scheme of its own (part 1 §25.2); the hash must be the one verified below.
    if key.scheme not in ((ALG_ECDSA, ALG_SHA256), (ALG_RSASSA, ALG_SHA256), (ALG_RSAPSS, ALG_SHA256)):
        raise RefusedError("ak-unfit", "the attestation key must sign with ECDSA, RSASSA or RSAPSS over SHA-256")
    return key


def endorsement_key(blob: bytes) -> Public:
    """Read an endorsement key after the TCG templates L-1 (RSA-2048) and L-2 (P-256).

    Raises:
        RefusedError: `ek-unfit`.
    """
    try:
        key = read_public(blob)
    except MalformedStructureError as error:
        raise RefusedError("ek-unfit", f"the endorsement key cannot be read: {error}") from error
    if not key.has(_EK_ATTRIBUTES) or key.has(SIGN) or key.symmetric != (ALG_AES, 128, ALG_CFB):
        raise RefusedError("ek-unfit", "the key is not an endorsement key after the TCG templates L-1 and L-2")
    return key


def verify_quote(
    key: Public,
    quote: bytes,
    signature: bytes,
    *,
    expected: bytes,
    pcrs: frozenset[int],
    values: Mapping[int, bytes],
    checks: "QuoteChecks | None" = None,
) -> Attested:
    """Check a quote against the challenge it must answer. `expected`: its qualifying data, 32 bytes; checks: all.

    Raises:
        RefusedError: `quote-malformed`, `quote-signature`, `quote-nonce` or `quote-pcrs`.
    """
    try:
        signed = read_signature(signature)
    except MalformedStructureError as error:
        raise RefusedError("quote-malformed", str(error)) from error
    checks = checks or QuoteChecks()
    checks.signature(key, signed, quote)
    try:
        found = checks.quote(quote)
    except MalformedStructureError as error:
        raise RefusedError("quote-malformed", str(error), proven=True) from error
    checks.nonce(found, expected)
    checks.selection(found, pcrs)
    given = {number: values[number] for number in values.keys() & pcrs}
    if given.keys() != pcrs or any(len(value) != _PCR_BYTES for value in given.values()):
        raise RefusedError("quote-pcrs", "the values of the registers are incomplete", proven=True)
    checks.values(found, given)
    return Attested(found, given)


def check_nonce(quote: Quote, expected: bytes) -> None:
    """Check that a quote answers this challenge, for these keys and this device.

    Raises:
        RefusedError: `quote-nonce`.
    """
    if quote.extra_data != expected:
        message = "the quote was made for another challenge, other keys or another device: perhaps a replay"
        raise RefusedError("quote-nonce", message, proven=True)


def check_selection(quote: Quote, pcrs: frozenset[int]) -> None:
    """Check that a quote covers the registers that were asked for, and no others.

    Raises:
        RefusedError: `quote-pcrs`.
    """
    if quote.selections != ((ALG_SHA256, pcrs),):
        wanted = ", ".join(map(str, sorted(pcrs)))
        raise RefusedError("quote-pcrs", f"the quote must cover exactly PCR {wanted} of the bank SHA-256", proven=True)


def check_values(quote: Quote, values: Mapping[int, bytes]) -> None:
    """Check that the quote signs the values that came beside it, of the registers that it covers.

    Raises:
        RefusedError: `quote-pcrs`.
    """
    covered = frozenset().union(*(numbers for _, numbers in quote.selections))
    if pcr_digest({number: value for number, value in values.items() if number in covered}) != quote.pcr_digest:
        raise RefusedError("quote-pcrs", "the values of the registers are not those that the quote signs", proven=True)


def check_signature(key: Public, signature: Signature, data: bytes) -> None:
    """Check that the enrolled attestation key has signed.

    Raises:
        RefusedError: `quote-signature`.
    """
    if key.scheme != (signature.scheme, signature.hash):
        raise RefusedError("quote-signature", "the quote is signed with another scheme than its attestation key's")
    try:
        if isinstance(key.key, ec.EllipticCurvePublicKey):
            r, s = (int.from_bytes(part, "big") for part in signature.parts)
            key.key.verify(utils.encode_dss_signature(r, s), data, ec.ECDSA(hashes.SHA256()))
        elif signature.scheme == ALG_RSASSA:
            key.key.verify(signature.parts[0], data, padding.PKCS1v15(), hashes.SHA256())
        else:
            pss = padding.PSS(padding.MGF1(hashes.SHA256()), padding.PSS.AUTO)
            key.key.verify(signature.parts[0], data, pss, hashes.SHA256())
    except (InvalidSignature, ValueError) as error:
        message = "the quote is not signed by the attestation key that is enrolled"
        raise RefusedError("quote-signature", message) from error


@dataclass(frozen=True, slots=True)
class QuoteChecks:
    """What a quote is held against, one check for each thing.

    `signature`: of the enrolled key. `quote`: made by a TPM, and as a quote. `nonce`: for this challenge, these keys
    and this device. `selection`: exactly the registers asked for. `values`: those that the quote signs.
    """

    signature: Callable[[Public, Signature, bytes], None] = check_signature
    quote: Callable[[bytes], Quote] = read_quote
    nonce: Callable[[Quote, bytes], None] = check_nonce
    selection: Callable[[Quote, frozenset[int]], None] = check_selection
    values: Callable[[Quote, Mapping[int, bytes]], None] = check_values


def software_key(spki: bytes) -> ec.EllipticCurvePublicKey:
    """Read the key of a device at level `software`: SubjectPublicKeyInfo (DER), P-256.

    Raises:
        RefusedError: `ak-unfit`.
    """
    try:
        key = serialization.load_der_public_key(spki)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise RefusedError("ak-unfit", "the software key is not a SubjectPublicKeyInfo") from error
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise RefusedError("ak-unfit", "the software key must be on the curve P-256")
    return key


def verify_software(key: ec.EllipticCurvePublicKey, signature: bytes, message: bytes) -> None:
    """Check the proof of a device at level `software`.

    Raises:
        RefusedError: `wrong-key`.
    """
    try:
        key.verify(signature, message, ec.ECDSA(hashes.SHA256()))
    except (InvalidSignature, ValueError) as error:
        raise RefusedError("wrong-key", "the proof is not signed by the software key that is enrolled") from error


def key_digest(blob: bytes) -> str:
    """Return the digest under which a key is remembered, as hexadecimal digits."""
    return hashlib.sha256(blob).hexdigest()
