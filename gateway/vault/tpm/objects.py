"""Public areas, the storage root key, and salted sessions under it (part 1 §19, §21; TCG EK credential profile 2.x)."""

import contextlib
from collections.abc import Iterator
from typing import Any, Final

from gateway.vault.errors import KeyStoreError
from gateway.vault.tpm.connection import Tpm

SRK_HANDLE: Final = 0x8100_0001

_ECC, _RSA, _KEYED_HASH = b"\x00\x23", b"\x00\x01", b"\x00\x08"
_SHA256: Final = b"\x00\x0b"
_NONE: Final = b"\x00\x10"
_AES128_CFB: Final = b"\x00\x06\x00\x80\x00\x43"
_P256: Final = b"\x00\x03"
_EMPTY: Final = b"\x00\x00"
_ZERO_POINT: Final = 2 * (b"\x00\x20" + bytes(32))

# TPMA_OBJECT, part 2 §8.3. noDA everywhere: a power cut in the middle of a use must not count as a wrong password.
_FIXED_TPM, _FIXED_PARENT, _ORIGIN, _USER, _ADMIN = 0x2, 0x10, 0x20, 0x40, 0x80
_NO_DA, _RESTRICTED, _DECRYPT, _SIGN = 0x400, 0x1_0000, 0x2_0000, 0x4_0000

# PolicySecret(TPM_RH_ENDORSEMENT), EK credential profile B.3.
EK_POLICY: Final = bytes.fromhex("837197674484b3f81a90cc8d46a5d724fd52d76e06520b64f2a1da1b331469aa")


def storage_root() -> bytes:
    """Return the template of the storage root key: P-256, as TPMT_PUBLIC."""
    attributes = _FIXED_TPM | _FIXED_PARENT | _ORIGIN | _USER | _NO_DA | _RESTRICTED | _DECRYPT
    return _ECC + _SHA256 + _u32(attributes) + _EMPTY + _AES128_CFB + _NONE + _P256 + _NONE + _ZERO_POINT


def endorsement_rsa() -> bytes:
    """Return the template L-1 of the EK credential profile: RSA-2048."""
    head = _RSA + _SHA256 + _u32(_EK_ATTRIBUTES) + _sized(EK_POLICY) + _AES128_CFB + _NONE
    return head + b"\x08\x00" + _u32(0) + _sized(bytes(256))


def endorsement_p256() -> bytes:
    """Return the template L-2 of the EK credential profile: P-256."""
    head = _ECC + _SHA256 + _u32(_EK_ATTRIBUTES) + _sized(EK_POLICY) + _AES128_CFB + _NONE
    return head + _P256 + _NONE + _ZERO_POINT


def attestation_key(unique: bytes) -> bytes:
    """Return the template of an attestation key: P-256, restricted to what the TPM itself has made.

    Args:
        unique: 32 random bytes, which make it another key than everybody else's from this template.
    """
    attributes = _FIXED_TPM | _FIXED_PARENT | _ORIGIN | _USER | _NO_DA | _RESTRICTED | _SIGN
    scheme = b"\x00\x18" + _SHA256  # ECDSA
    point = _sized(unique) + _sized(bytes(32))
    return _ECC + _SHA256 + _u32(attributes) + _EMPTY + _NONE + scheme + _P256 + _NONE + point


def sealed_data(policy: bytes) -> bytes:
    """Return the template of a sealed secret that opens by a policy alone."""
    attributes = _FIXED_TPM | _FIXED_PARENT | _ADMIN | _NO_DA
    return _KEYED_HASH + _SHA256 + _u32(attributes) + _sized(policy) + _NONE + _EMPTY


def public_of(tpm: Tpm, area: bytes) -> Any:
    """Make a TPM2B_PUBLIC of a TPMT_PUBLIC."""
    return tpm.pytss.TPM2B_PUBLIC(publicArea=tpm.pytss.TPMT_PUBLIC.unmarshal(area)[0])


def provision_root(tpm: Tpm) -> bytes:
    """Make the storage root key if there is none; return its name.

    The owner's hierarchy has no password, as TPMs are delivered.
    """
    root = _persistent_root(tpm)
    if root is None:
        pytss = tpm.pytss
        made = tpm.esys.create_primary(None, public_of(tpm, storage_root()), pytss.ESYS_TR.OWNER)
        with tpm.flushed(made[0]):
            root = tpm.esys.evict_control(pytss.ESYS_TR.OWNER, made[0], SRK_HANDLE)
    return bytes(tpm.esys.tr_get_name(root))


def root_name(tpm: Tpm) -> bytes:
    """Return the name of the storage root key that is there.

    Raises:
        KeyStoreError: there is none.
    """
    return bytes(tpm.esys.tr_get_name(_require_root(tpm)))


def open_root(tpm: Tpm, pinned: bytes) -> Any:
    """Return the handle of the storage root key.

    Sessions are salted with it, so it is what keeps a listener on the bus out. A listener who could also put a key
    of his own in its place is stopped by comparing its name.

    Raises:
        KeyStoreError: it is not there, or another one than at provisioning.
    """
    root = _require_root(tpm)
    name = bytes(tpm.esys.tr_get_name(root))
    if name != pinned:
        raise KeyStoreError(
            f"the TPM's storage root key is {name.hex()[4:20]}…, this vault was made with {pinned.hex()[4:20]}…: "
            "another TPM, a TPM that was cleared, or somebody between; `gateway vault init --anew` begins again"
        )
    return root


def _require_root(tpm: Tpm) -> Any:
    root = _persistent_root(tpm)
    if root is None:
        raise KeyStoreError(
            f"the TPM has no storage root key at {SRK_HANDLE:#x}: it was cleared or replaced, and what it had sealed "
            "is lost; `gateway vault init --anew` begins again"
        )
    return root


def _persistent_root(tpm: Tpm) -> Any | None:
    if SRK_HANDLE not in tpm.handles(SRK_HANDLE):
        return None
    return tpm.esys.tr_from_tpmpublic(SRK_HANDLE)


@contextlib.contextmanager
def salted_session(tpm: Tpm, root: Any, kind: str) -> Iterator[Any]:
    """Open a session whose parameters are encrypted on the bus in both directions, with AES-128-CFB.

    Args:
        tpm: the connection.
        root: the storage root key; `open_root`.
        kind: `HMAC` or `POLICY`.
    """
    pytss, none = tpm.pytss, tpm.pytss.ESYS_TR.NONE
    cipher = pytss.TPMT_SYM_DEF.parse("aes128cfb")
    session = tpm.esys.start_auth_session(root, none, getattr(pytss.TPM2_SE, kind), cipher, pytss.TPM2_ALG.SHA256)
    with tpm.flushed(session):
        attributes = pytss.TPMA_SESSION
        tpm.esys.trsess_set_attributes(session, attributes.DECRYPT | attributes.ENCRYPT | attributes.CONTINUESESSION)
        yield session


_EK_ATTRIBUTES: Final = _FIXED_TPM | _FIXED_PARENT | _ORIGIN | _ADMIN | _RESTRICTED | _DECRYPT


def _u32(value: int) -> bytes:
    return value.to_bytes(4, "big")


def _sized(value: bytes) -> bytes:
    return len(value).to_bytes(2, "big") + value
