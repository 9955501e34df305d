"""TPM structures, read without a TPM library. Pure.

Names and numbers are those of the TPM 2.0 Library, part 2 (structures), rev. 1.59. Only what an endorsement key and an
attestation key need is understood; everything else is a MalformedStructureError, and nothing else comes out.
"""

import hashlib
import struct
from dataclasses import dataclass
from typing import Final

from cryptography.hazmat.primitives.asymmetric import ec, rsa

from cloud_bridge.identity.errors import MalformedStructureError

ALG_RSA: Final = 0x0001
ALG_AES: Final = 0x0006
ALG_SHA256: Final = 0x000B
ALG_NULL: Final = 0x0010
ALG_RSASSA: Final = 0x0014
ALG_RSAPSS: Final = 0x0016
ALG_ECDSA: Final = 0x0018
ALG_ECC: Final = 0x0023
ALG_CFB: Final = 0x0043
CURVE_P256: Final = 0x0003

GENERATED_VALUE: Final = 0xFF544347  # TPM_GENERATED_VALUE: no restricted key signs other data that begins so
ST_ATTEST_QUOTE: Final = 0x8018

# TPMA_OBJECT, part 2 §8.3
FIXED_TPM: Final = 1 << 1
FIXED_PARENT: Final = 1 << 4
SENSITIVE_DATA_ORIGIN: Final = 1 << 5
RESTRICTED: Final = 1 << 16
DECRYPT: Final = 1 << 17
SIGN: Final = 1 << 18

_ECC_SCHEMES_WITH_HASH: Final = frozenset({0x0018, 0x0019, 0x001B, 0x001C})
_RSA_SCHEMES_WITH_HASH: Final = frozenset({0x0014, 0x0016, 0x0017})
_EXPONENT: Final = 65537
_MAX_SELECTIONS: Final = 16


@dataclass(frozen=True, slots=True)
class Public:
    """TPMT_PUBLIC of a key: RSA-2048, or on the curve P-256.

    `symmetric` is (algorithm, bits, mode), None without one; `scheme` is (algorithm, hash).
    """

    blob: bytes
    kind: int
    attributes: int
    symmetric: tuple[int, int, int] | None
    scheme: tuple[int, int] | None
    key: rsa.RSAPublicKey | ec.EllipticCurvePublicKey

    @property
    def name(self) -> bytes:
        """The TPM's name of the key: algorithm and digest of the structure (part 1 §16)."""
        return struct.pack(">H", ALG_SHA256) + hashlib.sha256(self.blob).digest()

    def has(self, attributes: int) -> bool:
        """Tell whether all these attributes are set."""
        return self.attributes & attributes == attributes


@dataclass(frozen=True, slots=True)
class Quote:
    """TPMS_ATTEST of a quote. `clock` is the TPM's, in milliseconds; the counters count reboots and resumes."""

    extra_data: bytes
    clock_ms: int
    reset_count: int
    restart_count: int
    safe: bool
    firmware_version: int
    selections: tuple[tuple[int, frozenset[int]], ...]
    pcr_digest: bytes


@dataclass(frozen=True, slots=True)
class Signature:
    """TPMT_SIGNATURE: `parts` are r and s, or the one RSA signature."""

    scheme: int
    hash: int
    parts: tuple[bytes, ...]


class _Reader:
    """Reads big-endian fields; running out of bytes is an error."""

    def __init__(self, data: bytes, what: str) -> None:
        self._data = data
        self._what = what
        self._at = 0

    def take(self, count: int) -> bytes:
        end = self._at + count
        if end > len(self._data):
            raise MalformedStructureError(f"{self._what} ends after {len(self._data)} bytes, too early")
        taken = self._data[self._at : end]
        self._at = end
        return taken

    def u8(self) -> int:
        return self.take(1)[0]

    def u16(self) -> int:
        return int.from_bytes(self.take(2), "big")

    def u32(self) -> int:
        return int.from_bytes(self.take(4), "big")

    def u64(self) -> int:
        return int.from_bytes(self.take(8), "big")

    def sized(self) -> bytes:
        return self.take(self.u16())

    def end(self) -> None:
        left = len(self._data) - self._at
        if left:
            raise MalformedStructureError(f"{self._what} has {left} bytes too many")

    def wrong(self, why: str) -> MalformedStructureError:
        return MalformedStructureError(f"{self._what}: {why}")


def read_public(blob: bytes) -> Public:
    """Read a TPMT_PUBLIC (part 2 §12.2.4).

    Raises:
        MalformedStructureError: it is none, or of a key that is not RSA-2048 or P-256 with SHA-256 names.
    """
    reader = _Reader(blob, "TPMT_PUBLIC")
    kind, name_hash, attributes = reader.u16(), reader.u16(), reader.u32()
    if kind not in (ALG_RSA, ALG_ECC):
        raise reader.wrong(f"key type {kind:#06x} is neither RSA nor ECC")
    if name_hash != ALG_SHA256:
        raise reader.wrong(f"name algorithm {name_hash:#06x} is not SHA-256")
    reader.sized()  # authPolicy
    symmetric = _symmetric(reader)
    scheme = _scheme(reader, _RSA_SCHEMES_WITH_HASH if kind == ALG_RSA else _ECC_SCHEMES_WITH_HASH)
    key = _rsa_key(reader) if kind == ALG_RSA else _ecc_key(reader)
    reader.end()
    return Public(blob, kind, attributes, symmetric, scheme, key)


def _symmetric(reader: _Reader) -> tuple[int, int, int] | None:
    algorithm = reader.u16()
    return None if algorithm == ALG_NULL else (algorithm, reader.u16(), reader.u16())


def _scheme(reader: _Reader, with_hash: frozenset[int]) -> tuple[int, int] | None:
    algorithm = reader.u16()
    if algorithm == ALG_NULL:
        return None
    if algorithm not in with_hash:
        raise reader.wrong(f"scheme {algorithm:#06x} is not taken here")
    return algorithm, reader.u16()


def _rsa_key(reader: _Reader) -> rsa.RSAPublicKey:
    bits, exponent, modulus = reader.u16(), reader.u32(), reader.sized()
    if (
        bits != 2048
        or exponent not in (0, _EXPONENT)
        or len(modulus) != 256
        or modulus[0] < 0x80
        or not modulus[-1] & 1
    ):
        raise reader.wrong("not an RSA key of 2048 bits with the exponent 65537")
    try:
        return rsa.RSAPublicNumbers(_EXPONENT, int.from_bytes(modulus, "big")).public_key()
    except ValueError as error:
        raise reader.wrong(str(error)) from error


def _ecc_key(reader: _Reader) -> ec.EllipticCurvePublicKey:
    curve, kdf = reader.u16(), reader.u16()
    if kdf != ALG_NULL:
        reader.u16()
    x, y = reader.sized(), reader.sized()
    if curve != CURVE_P256 or len(x) > 32 or len(y) > 32:
        raise reader.wrong(f"curve {curve:#06x} is not P-256")
    numbers = ec.EllipticCurvePublicNumbers(int.from_bytes(x, "big"), int.from_bytes(y, "big"), ec.SECP256R1())
    try:
        return numbers.public_key()
    except ValueError as error:
        raise reader.wrong("the point is not on the curve") from error


def read_quote(blob: bytes) -> Quote:
    """Read a TPMS_ATTEST that is a quote (part 2 §10.12.12).

    Raises:
        MalformedStructureError: it is none.
    """
    reader = _Reader(blob, "TPMS_ATTEST")
    if reader.u32() != GENERATED_VALUE:
        raise reader.wrong("it was not made by a TPM (TPM_GENERATED_VALUE is missing)")
    kind = reader.u16()
    if kind != ST_ATTEST_QUOTE:
        raise reader.wrong(f"type {kind:#06x} is not a quote")
    reader.sized()  # qualifiedSigner: the verifier knows the key itself
    extra_data = reader.sized()
    clock, resets, restarts, safe = reader.u64(), reader.u32(), reader.u32(), reader.u8()
    firmware = reader.u64()
    count = reader.u32()
    if count > _MAX_SELECTIONS:
        raise reader.wrong(f"{count} PCR selections are too many")
    selections = tuple(_selection(reader) for _ in range(count))
    digest = reader.sized()
    reader.end()
    return Quote(extra_data, clock, resets, restarts, bool(safe), firmware, selections, digest)


def _selection(reader: _Reader) -> tuple[int, frozenset[int]]:
    bank, bitmap = reader.u16(), reader.take(reader.u8())
    numbers = (8 * octet + bit for octet, bits in enumerate(bitmap) for bit in range(8) if bits >> bit & 1)
    return bank, frozenset(numbers)


def read_signature(blob: bytes) -> Signature:
    """Read a TPMT_SIGNATURE (part 2 §11.3.4).

    Raises:
        MalformedStructureError: it is none, or of a scheme that is not taken here.
    """
    reader = _Reader(blob, "TPMT_SIGNATURE")
    scheme, digest = reader.u16(), reader.u16()
    if scheme == ALG_ECDSA:
        parts: tuple[bytes, ...] = (reader.sized(), reader.sized())
    elif scheme in (ALG_RSASSA, ALG_RSAPSS):
        parts = (reader.sized(),)
    else:
        raise reader.wrong(f"scheme {scheme:#06x} is not taken here")
    reader.end()
    return Signature(scheme, digest, parts)
