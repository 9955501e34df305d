"""TPM2_MakeCredential without a TPM: a secret that only the TPM with this EK and this AK can open. Pure but for
the randomness.

TPM 2.0 Library, part 1: §24 (credential protection), §11.4.10 (KDFa, KDFe), annex B.10.4 (RSA) and C.6.4 (ECC).
"""

import hashlib
import hmac
import os
from typing import Final

from cryptography.hazmat.decrepit.ciphers.modes import CFB
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms

from cloud_bridge.identity.structures import Public
from gateway.wire.identity import Credential

SECRET_BYTES: Final = 32
_LABEL: Final = b"IDENTITY\0"


def make_credential(ek: Public, ak_name: bytes, secret: bytes) -> Credential:
    """Wrap a secret of at most 32 bytes for the TPM that holds both keys.

    ek: after the TCG templates (SHA-256, AES-128-CFB); ak_name: the TPM's name of the attestation key.
    """
    seed, encrypted_seed = _rsa_seed(ek) if not isinstance(ek.key, ec.EllipticCurvePublicKey) else _ecc_seed(ek.key)
    storage_key = kdf_a(seed, b"STORAGE", ak_name, 128)
    encryptor = Cipher(algorithms.AES(storage_key), CFB(bytes(16))).encryptor()
    encrypted = encryptor.update(_sized(secret)) + encryptor.finalize()
    integrity_key = kdf_a(seed, b"INTEGRITY", b"", 256)
    integrity = hmac.digest(integrity_key, encrypted + ak_name, "sha256")
    return Credential(blob=_sized(_sized(integrity) + encrypted), encrypted_secret=_sized(encrypted_seed))


def _rsa_seed(ek: Public) -> tuple[bytes, bytes]:
    assert not isinstance(ek.key, ec.EllipticCurvePublicKey)
    seed = os.urandom(32)
    oaep = padding.OAEP(padding.MGF1(hashes.SHA256()), hashes.SHA256(), label=_LABEL)
    return seed, ek.key.encrypt(seed, oaep)


def _ecc_seed(ek: ec.EllipticCurvePublicKey) -> tuple[bytes, bytes]:
    ephemeral = ec.generate_private_key(ec.SECP256R1())
    point = ephemeral.public_key().public_numbers()
    x, y = point.x.to_bytes(32, "big"), point.y.to_bytes(32, "big")
    shared = ephemeral.exchange(ec.ECDH(), ek)
    ek_x = ek.public_numbers().x.to_bytes(32, "big")
    seed = hashlib.sha256((1).to_bytes(4, "big") + shared + _LABEL + x + ek_x).digest()  # KDFe
    return seed, _sized(x) + _sized(y)


def kdf_a(key: bytes, label: bytes, context: bytes, bits: int) -> bytes:
    """Derive up to 256 bits (part 1 §11.4.10.2)."""
    data = (1).to_bytes(4, "big") + label + b"\0" + context + bits.to_bytes(4, "big")
    return hmac.digest(key, data, "sha256")[: bits // 8]


def _sized(data: bytes) -> bytes:
    return len(data).to_bytes(2, "big") + data
