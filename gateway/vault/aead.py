"""The two ciphers of the container: AES-256-GCM where the CPU has AES, XChaCha20-Poly1305 where it has not.

Both are readable everywhere; the choice is made by who writes. See docs/decisions/0010-weights-cipher.md.
"""

from pathlib import Path
from typing import Final, Literal, Protocol

import nacl.bindings
import nacl.exceptions
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from gateway.vault.errors import DamagedContainerError

Algorithm = Literal["aes-256-gcm", "xchacha20-poly1305-stream"]

GCM: Final = "aes-256-gcm"
STREAM: Final = "xchacha20-poly1305-stream"
KEY_BYTES: Final = 32
OVERHEAD_BYTES: Final[dict[Algorithm, int]] = {
    GCM: 16,
    STREAM: nacl.bindings.crypto_secretstream_xchacha20poly1305_ABYTES,
}
PREFIX_BYTES: Final[dict[Algorithm, int]] = {
    GCM: 0,
    STREAM: nacl.bindings.crypto_secretstream_xchacha20poly1305_HEADERBYTES,
}
"""What an algorithm itself writes before the first chunk."""

_CPUINFO: Final = Path("/proc/cpuinfo")
_FINAL_TAG: Final[int] = nacl.bindings.crypto_secretstream_xchacha20poly1305_TAG_FINAL
_MESSAGE_TAG: Final[int] = nacl.bindings.crypto_secretstream_xchacha20poly1305_TAG_MESSAGE


def preferred_algorithm(cpuinfo: str) -> Algorithm:
    """Choose by the text of /proc/cpuinfo: `flags` names AES on x86, `Features` on ARM."""
    for line in cpuinfo.splitlines():
        key, _, words = line.partition(":")
        if key.strip() in ("flags", "Features"):
            return GCM if "aes" in words.split() else STREAM
    return STREAM


def this_machines_algorithm() -> Algorithm:
    """Choose for this machine; without /proc the one that is fast everywhere."""
    try:
        return preferred_algorithm(_CPUINFO.read_text(encoding="utf-8", errors="replace"))
    except OSError:
        return STREAM


class ChunkSealer(Protocol):
    """Encrypts the chunks of one container, in order."""

    prefix: bytes

    def seal(self, chunk: bytes | memoryview, index: int, bound: bytes, *, final: bool) -> bytes:
        """Return ciphertext and tag; `bound` is authenticated with it."""


class ChunkOpener(Protocol):
    """Decrypts the chunks of one container, in order."""

    def open_into(self, sealed: memoryview, index: int, bound: bytes, out: memoryview, *, final: bool) -> None:
        """Write the plaintext to `out`, which has its size. Raises DamagedContainerError if it is not authentic."""


def sealer_for(algorithm: Algorithm, key: bytes) -> ChunkSealer:
    """Return what encrypts; `key` must never have been used for another container."""
    return _GcmChunks(key) if algorithm == GCM else _StreamSealer(key)


def opener_for(algorithm: Algorithm, key: bytes, prefix: bytes) -> ChunkOpener:
    """Return what decrypts; `prefix` is what the sealer wrote before the first chunk."""
    return _GcmChunks(key) if algorithm == GCM else _StreamOpener(key, prefix)


class _GcmChunks:
    """AES-256-GCM. The key serves one container, so a counter is a nonce that never repeats."""

    prefix = b""

    def __init__(self, key: bytes) -> None:
        self._cipher = AESGCM(key)

    def seal(self, chunk: bytes | memoryview, index: int, bound: bytes, *, final: bool) -> bytes:
        return self._cipher.encrypt(_nonce(index, final=final), chunk, bound)

    def open_into(self, sealed: memoryview, index: int, bound: bytes, out: memoryview, *, final: bool) -> None:
        try:
            self._cipher.decrypt_into(_nonce(index, final=final), sealed, bound, out)
        except InvalidTag as error:
            raise DamagedContainerError(f"chunk {index} is not authentic") from error


def _nonce(index: int, *, final: bool) -> bytes:
    """Number and place of the chunk: the STREAM construction of Hoang, Reyhanitabar, Rogaway and Vizár (2015)."""
    return index.to_bytes(11, "big") + (b"\1" if final else b"\0")


class _StreamSealer:
    """libsodium's secretstream; it draws a random nonce of 192 bits for the container and counts on from there."""

    def __init__(self, key: bytes) -> None:
        self._state = nacl.bindings.crypto_secretstream_xchacha20poly1305_state()
        self.prefix = nacl.bindings.crypto_secretstream_xchacha20poly1305_init_push(self._state, key)

    def seal(self, chunk: bytes | memoryview, index: int, bound: bytes, *, final: bool) -> bytes:  # noqa: ARG002
        tag = _FINAL_TAG if final else _MESSAGE_TAG
        push = nacl.bindings.crypto_secretstream_xchacha20poly1305_push
        return push(self._state, bytes(chunk), bound, tag)


class _StreamOpener:
    def __init__(self, key: bytes, prefix: bytes) -> None:
        self._state = nacl.bindings.crypto_secretstream_xchacha20poly1305_state()
        nacl.bindings.crypto_secretstream_xchacha20poly1305_init_pull(self._state, prefix, key)

    def open_into(self, sealed: memoryview, index: int, bound: bytes, out: memoryview, *, final: bool) -> None:
        pull = nacl.bindings.crypto_secretstream_xchacha20poly1305_pull
        try:
            plain, tag = pull(self._state, bytes(sealed), bound)
        except (nacl.exceptions.RuntimeError, nacl.exceptions.ValueError) as error:
            raise DamagedContainerError(f"chunk {index} is not authentic") from error
        # libsodium refuses reordering by itself, but leaves it to the caller to miss the end.
        if (tag == _FINAL_TAG) is not final:
            raise DamagedContainerError(f"chunk {index} is not authentic")
        out[:] = plain
