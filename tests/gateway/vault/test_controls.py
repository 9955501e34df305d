"""What would happen to sealed weights without one of the things that protect them."""

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from gateway.vault.aead import GCM, Algorithm
from gateway.vault.container import Contents, Opening, read_header, sealed
from gateway.vault.errors import DamagedContainerError
from gateway.vault.weights import open_own, open_sealed

KEY = bytes(range(32))
CHUNK, TAG = 64, 16
PLAIN = os.urandom(3 * CHUNK)


class Careless:
    """AES-256-GCM that does not look at the tag: AES in counter mode (NIST SP 800-38D, 7.2, without step 8)."""

    def __init__(self, _: Algorithm, key: bytes, __: bytes) -> None:
        self._key = key

    def open_into(self, sealed: memoryview, index: int, bound: bytes, out: memoryview, *, final: bool) -> None:
        del bound
        nonce = index.to_bytes(11, "big") + (b"\1" if final else b"\0")
        decryptor = Cipher(algorithms.AES(self._key), modes.CTR(nonce + (2).to_bytes(4, "big"))).decryptor()
        out[:] = decryptor.update(bytes(sealed[:-TAG]))


def container(plain: bytes = PLAIN, sha256: str = "") -> bytes:
    digest = sha256 or hashlib.sha256(plain).hexdigest()
    return sealed(Contents("probe", "1.0.0", "0" * 64, "m", digest, len(plain)), KEY, plain, GCM, CHUNK)


def chunks_of(whole: bytes) -> tuple[bytes, list[bytes]]:
    start = read_header(whole)[1]
    size = CHUNK + TAG
    return whole[:start], [whole[at : at + size] for at in range(start, len(whole), size)]


def flipped(whole: bytes) -> bytes:
    start = read_header(whole)[1]
    return whole[: start + 5] + bytes([whole[start + 5] ^ 1]) + whole[start + 6 :]


def reordered(whole: bytes) -> bytes:
    start, chunks = chunks_of(whole)
    return start + b"".join([chunks[1], chunks[0], *chunks[2:]])


def spliced(whole: bytes) -> bytes:
    start, chunks = chunks_of(whole)
    return start + b"".join([chunks[0], chunks_of(container(os.urandom(3 * CHUNK)))[1][1], *chunks[2:]])


def decrypted(whole: bytes, **opener: type[Careless]) -> bytes:
    opening = Opening(whole, KEY, **opener)
    out = bytearray(len(PLAIN))
    opening.decrypt(memoryview(whole)[opening.body_offset :], memoryview(out))
    return bytes(out)


@pytest.mark.parametrize("change", [flipped, reordered, spliced])
def test_what_was_changed_on_the_disk_would_be_taken_without_the_tags(change: Callable[[bytes], bytes]) -> None:
    whole = container()
    with pytest.raises(DamagedContainerError, match="not authentic"):
        decrypted(change(whole))
    assert decrypted(whole, opener=Careless) == PLAIN
    assert decrypted(change(whole), opener=Careless) != PLAIN


def test_weights_that_another_holder_of_the_key_has_made_are_refused_by_their_digest_alone(tmp_path: Path) -> None:
    """A device of the fleet that was broken into has the content key, and the header of the release it forges."""
    released = hashlib.sha256(PLAIN).hexdigest()
    forged = os.urandom(len(PLAIN))
    file = tmp_path / "m.sealed"
    file.write_bytes(container(forged, sha256=released))
    with pytest.raises(DamagedContainerError, match="the manifest says"):
        open_sealed(file, KEY, sha256=released)
    # Without that look, it is used: so that is left out only where nobody else has the key.
    with open_own(file, KEY, sha256=released) as weights:
        assert bytes(weights.view) == forged


def test_own_weights_are_still_held_against_manifest_and_tags(tmp_path: Path) -> None:
    file = tmp_path / "m.sealed"
    whole = container()
    released = hashlib.sha256(PLAIN).hexdigest()
    file.write_bytes(whole)
    with open_own(file, KEY, sha256=released) as weights:
        assert bytes(weights.view) == PLAIN
    with pytest.raises(DamagedContainerError, match="the manifest says"):
        open_own(file, KEY, sha256="0" * 64)
    for change in (flipped, reordered, spliced):
        file.write_bytes(change(whole))
        with pytest.raises(DamagedContainerError, match="not authentic"):
            open_own(file, KEY, sha256=released)
