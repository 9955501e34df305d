"""The claim file: what an unprovisioned device needs to become a certain gateway of a certain fleet.

The bridge writes it (`cloud-bridge identity token create … --claim-file`), a person carries it on a stick, on the boot
partition or as a QR code, and the device applies it once. As YAML for people; as a QR code in the compact form of
`to_qr`, because a camera must be able to read it from arm's length.
"""

import zlib
from typing import Annotated, Any, Final, Literal

import msgspec

from gateway.wire.errors import MalformedMessageError
from gateway.wire.identity import ClaimCode, claim_code

CLAIM_VERSION: Final = 1
CLAIM_FILE_NAME: Final = "sluice-claim.yaml"
MAX_CLAIM_BYTES: Final = 256 * 1024
MAX_QR_CHARACTERS: Final = 640
"""Of the compact form: up to here a QR code of error correction M has at most 81 modules a side (version 16), which a
camera of 640 × 480 pixels reads when the code fills most of its picture."""

_QR_PREFIX: Final = "SLUICE1:"
_BASE45: Final = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ $%*+-./:"
_MAX_UNPACKED: Final = 64 * 1024
_TOKEN_ALPHABET: Final = "abcdefghjkmnpqrstuvwxyz023456789"  # noqa: S105  # as the bridge draws them: 5 bits each
_TOKEN_CHARACTERS: Final = 32

GatewayId = Annotated[str, msgspec.Meta(pattern="^[a-z0-9-]{1,63}$")]
SecretName = Annotated[str, msgspec.Meta(pattern="^[a-z0-9][a-z0-9_-]{0,62}$")]
LabelKey = Annotated[str, msgspec.Meta(pattern="^[a-z][a-z0-9_.-]{0,31}$")]
Sha256 = Annotated[str, msgspec.Meta(pattern="^[0-9a-fA-F]{64}$")]


class _Part(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """Base of all parts: unknown keys are errors."""


class EthernetNetwork(_Part, frozen=True, kw_only=True):
    """How one wired interface, or all that a pattern names, gets its address. Without any entry: DHCP on all."""

    interface: Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9*?\[\]_.-]{1,32}$")] = "en*"
    address: str | None = None  # 192.0.2.7/24 or 2001:db8::7/64; null: DHCP
    gateway: str | None = None
    dns: list[str] = []


class ClaimFile(_Part, frozen=True, kw_only=True):
    """Everything but the configuration fragment, whose types each side knows by itself.

    Fields are only ever added, with a default; a file that an older image must not take gets a new version.
    """

    version: Literal[1]
    gateway: GatewayId  # who the device becomes
    identity: str  # https://bridge.example:8471, the bridge's identity listener
    code: str | None = None  # sluice1.<token>.<fingerprint>: single use, a secret
    fingerprint: Sha256 | None = None  # in place of `code` where the bridge knows this TPM's endorsement certificate
    brokers: list[str] = []  # mqtts://broker.example:8883, in order of preference
    registry: str | None = None  # https://bridge.example:8472, where releases come from
    registry_root: str | None = None  # the repository's first root.json, where the image does not bring it
    ca: str | None = None  # the bridge's authority, PEM; must have the fingerprint of the code
    level: Literal["tpm", "software"] = "tpm"  # of the vault; the appliance takes tpm alone
    only_for: list[str] = []  # serial numbers or MAC addresses; a device that has none of them passes the file over
    labels: dict[LabelKey, str] = {}
    time_zone: str = "UTC"
    ntp: list[str] = []  # servers; none: what the image or DHCP says
    network: list[EthernetNetwork] = []
    ssh: list[str] = []  # public keys in the form of authorized_keys; none: SSH stays off
    secrets: dict[SecretName, str] = {}  # become files that the configuration names as `secrets/<name>`
    reset_digest: Sha256 | None = None  # SHA-256 of the code that a reset stick must carry; none: no reset by stick


class CarriedClaim(ClaimFile, frozen=True, kw_only=True):
    """A claim file as the bridge writes it and a QR code carries it; the fragment is for the device to judge."""

    config: dict[str, Any] = {}  # sources, pipelines and more, laid over the image's own gateway.yaml


def to_qr(claim: CarriedClaim) -> str:
    """Return a claim as text for a QR code in its alphanumeric mode: packed, deflated, base45 (RFC 9285).

    Raises:
        ValueError: it is too long to be read by a camera; says how long, and what to leave out.
    """
    body = msgspec.to_builtins(claim)
    code = claim_code(claim.code) if claim.code is not None else None
    if code is not None:  # 32 characters and 64 digits as 52 bytes
        body["code"] = [_packed_token(code.token), bytes.fromhex(code.fingerprint)]
    packed = msgspec.msgpack.encode(body)
    squeezed = zlib.compressobj(9, zlib.DEFLATED, -15)
    text = _QR_PREFIX + to_base45(squeezed.compress(packed) + squeezed.flush())
    if len(text) > MAX_QR_CHARACTERS:
        heavy = [name for name in ("config", "registry_root", "ca", "ssh", "secrets", "network") if name in body]
        raise ValueError(
            f"the claim takes {len(text)} characters, a camera reads at most {MAX_QR_CHARACTERS}: "
            f"leave out {', '.join(heavy) or 'what is not needed'}, or carry it as a file on a stick"
        )
    return text


def from_qr(text: str) -> CarriedClaim | None:
    """Read what `to_qr` has written; None when the code is about something else.

    Raises:
        MalformedMessageError: it is a claim, and damaged, or of a version that is not known here.
    """
    if not text.startswith("SLUICE"):
        return None
    if not text.startswith(_QR_PREFIX):
        raise MalformedMessageError(f"the code is a claim of another version ({text[:8]!r}); this image reads 1")
    try:
        unpacker = zlib.decompressobj(-15)
        packed = unpacker.decompress(from_base45(text.removeprefix(_QR_PREFIX)), _MAX_UNPACKED)
        if not unpacker.eof:
            raise ValueError("it is cut off, or too long")
        body = msgspec.msgpack.decode(packed)
        if isinstance(body, dict) and isinstance(body.get("code"), list):
            token, fingerprint = body["code"]
            body["code"] = ClaimCode(token=_unpacked_token(token), fingerprint=fingerprint.hex()).text()
        return msgspec.convert(body, CarriedClaim)
    except (ValueError, TypeError, AttributeError, OverflowError, zlib.error) as error:  # msgspec's are ValueErrors
        raise MalformedMessageError(f"the code is a damaged claim: {error}; have it made again") from error


def _packed_token(token: str) -> bytes | str:
    """Return the 20 bytes of a token of the bridge; one of another form stays text."""
    if len(token) != _TOKEN_CHARACTERS or not set(token) <= set(_TOKEN_ALPHABET):
        return token
    number = 0
    for character in token:
        number = number << 5 | _TOKEN_ALPHABET.index(character)
    return number.to_bytes(_TOKEN_CHARACTERS * 5 // 8, "big")


def _unpacked_token(packed: bytes | str) -> str:
    if isinstance(packed, str):
        return packed
    number = int.from_bytes(packed, "big")
    return "".join(_TOKEN_ALPHABET[number >> 5 * place & 31] for place in reversed(range(_TOKEN_CHARACTERS)))


def to_base45(data: bytes) -> str:
    """Encode bytes as RFC 9285 §4 has it: two bytes as three characters, a last single one as two."""
    characters: list[str] = []
    for at in range(0, len(data), 2):
        pair = data[at : at + 2]
        number = int.from_bytes(pair, "big")
        for _ in range(3 if len(pair) == 2 else 2):
            number, digit = divmod(number, 45)
            characters.append(_BASE45[digit])
    return "".join(characters)


def from_base45(text: str) -> bytes:
    """Decode what `to_base45` has made.

    Raises:
        ValueError: it is none.
    """
    data = bytearray()
    for at in range(0, len(text), 3):
        digits = [_BASE45.index(character) for character in text[at : at + 3]]
        if len(digits) == 1:
            raise ValueError("a character is missing at its end")
        number = sum(digit * 45**place for place, digit in enumerate(digits))
        data += number.to_bytes(2 if len(digits) == 3 else 1, "big")
    return bytes(data)
