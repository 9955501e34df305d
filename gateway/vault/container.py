"""Sealed weights: a file that can be copied to a whole fleet and read only with the content key of its release.

    magic "SLUICEW" and the version (1 byte) | length of the header (4 bytes, big-endian) | header, JSON
    what the algorithm writes first (24 bytes for the stream, nothing for GCM)
    chunk 0 | chunk 1 | … | the last chunk        each: ciphertext and tag

All chunks hold `chunk_bytes` of plaintext but the last, which may hold less; an empty file has one empty chunk. Each
chunk is authenticated together with SHA-256 of everything before the chunks, its number, and whether it is the last.

The content key is never used for encryption itself. Each container has a key of its own, derived with HKDF-SHA256
(RFC 5869) from the content key and a random salt of 32 bytes, so no two containers share a key, and counting chunks
is a safe nonce also when one release has several files or is sealed again. `key` in the header is a hash of the
content key: it commits the file to that key, which GCM alone does not.

Nothing in it is about a device: who may read it is decided by whom the content key is wrapped for.

Pure: bytes in, bytes out.
"""

import hashlib
import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Annotated, Final

import msgspec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from gateway.vault.aead import KEY_BYTES, OVERHEAD_BYTES, PREFIX_BYTES, Algorithm, ChunkOpener, opener_for, sealer_for
from gateway.vault.errors import DamagedContainerError, WrongKeyError
from gateway.wire.manifest import FileName, ReleaseName, SemanticVersion, Sha256

MAGIC: Final = b"SLUICEW\x01"
CHUNK_BYTES: Final = 64 * 1024
SALT_BYTES: Final = 32
MAX_HEADER_BYTES: Final = 4096
MAX_CHUNK_BYTES: Final = 16 << 20
FIXED_BYTES: Final = len(MAGIC) + 4

MakeOpener = Callable[[Algorithm, bytes, bytes], ChunkOpener]

_KEY_ID: Final = b"sluice content key id v1"
_CONTAINER_KEY: Final = b"sluice container key v1"


class ContainerHeader(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What stands in clear before the chunks; every byte of it is authenticated."""

    algorithm: Algorithm
    key: Sha256  # which content key: `key_id` of it
    salt: Sha256  # 32 random bytes
    name: ReleaseName
    version: SemanticVersion
    release: Sha256  # SHA-256 of the release's manifest.json
    file: FileName
    sha256: Sha256  # of the plaintext
    size_bytes: Annotated[int, msgspec.Meta(ge=0, le=1 << 40)]
    chunk_bytes: Annotated[int, msgspec.Meta(ge=1, le=MAX_CHUNK_BYTES)] = CHUNK_BYTES

    @property
    def chunks(self) -> int:
        """How many chunks follow."""
        return max(1, -(-self.size_bytes // self.chunk_bytes))

    @property
    def sealed_chunk_bytes(self) -> int:
        """The size of a full chunk on disk."""
        return self.chunk_bytes + OVERHEAD_BYTES[self.algorithm]

    @property
    def body_bytes(self) -> int:
        """The size of everything after the header."""
        return PREFIX_BYTES[self.algorithm] + self.size_bytes + self.chunks * OVERHEAD_BYTES[self.algorithm]


@dataclass(frozen=True, slots=True)
class Contents:
    """What a container is to hold, and what it belongs to."""

    name: str
    version: str
    release: str  # SHA-256 of the manifest, hex
    file: str
    sha256: str  # hex
    size_bytes: int


def key_id(content_key: bytes) -> str:
    """Return the public name of a content key, 64 hex digits."""
    return _derived(content_key, b"", _KEY_ID).hex()


def new_header(
    contents: Contents, content_key: bytes, algorithm: Algorithm, chunk: int = CHUNK_BYTES
) -> ContainerHeader:
    """Draw a salt and describe the container."""
    return ContainerHeader(
        algorithm=algorithm,
        key=key_id(content_key),
        salt=secrets.token_hex(SALT_BYTES),
        name=contents.name,
        version=contents.version,
        release=contents.release,
        file=contents.file,
        sha256=contents.sha256,
        size_bytes=contents.size_bytes,
        chunk_bytes=chunk,
    )


class Sealer:
    """Encrypts one container: `start`, then each chunk in order."""

    def __init__(self, header: ContainerHeader, content_key: bytes) -> None:
        self.header = header
        encoded = msgspec.json.encode(header)
        self.start = MAGIC + len(encoded).to_bytes(4, "big") + encoded
        self._digest = hashlib.sha256(self.start).digest()
        self._cipher = sealer_for(header.algorithm, _container_key(header, content_key))
        self.start += self._cipher.prefix
        self._index = 0

    def seal(self, chunk: bytes | memoryview) -> bytes:
        """Return the next chunk sealed.

        Raises:
            ValueError: it has not the size that the header promises.
        """
        index, header = self._index, self.header
        if index >= header.chunks or len(chunk) != _plain_bytes(header, index):
            raise ValueError(f"chunk {index} of {header.chunks} has {len(chunk)} bytes")
        self._index += 1
        final = index == header.chunks - 1
        return self._cipher.seal(chunk, index, _bound(self._digest, index, final=final), final=final)


def sealed(
    contents: Contents, content_key: bytes, plain: bytes, algorithm: Algorithm, chunk: int = CHUNK_BYTES
) -> bytes:
    """Return a whole container; for files larger than memory use `Sealer`."""
    sealer = Sealer(new_header(contents, content_key, algorithm, chunk), content_key)
    return b"".join((sealer.start, *(sealer.seal(piece) for piece in chunks_of(memoryview(plain), chunk))))


def read_header(start: bytes) -> tuple[ContainerHeader, int]:
    """Return the header and how many bytes of the file it takes, magic included.

    Args:
        start: the first bytes of the file; `FIXED_BYTES + MAX_HEADER_BYTES` are always enough.

    Raises:
        DamagedContainerError: this is no container, or its header cannot be read. Nothing in the header is
            authenticated before the first chunk was opened.
    """
    if len(start) < FIXED_BYTES or not start.startswith(MAGIC[:-1]):
        raise DamagedContainerError("this is no file of sealed weights")
    if start[: len(MAGIC)] != MAGIC:
        raise DamagedContainerError(f"sealed weights of version {start[len(MAGIC) - 1]}; this program reads version 1")
    length = int.from_bytes(start[len(MAGIC) : FIXED_BYTES], "big")
    if length > MAX_HEADER_BYTES or len(start) < FIXED_BYTES + length:
        raise DamagedContainerError("the header is cut short or damaged")
    try:
        header = _header_decoder.decode(start[FIXED_BYTES : FIXED_BYTES + length])
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise DamagedContainerError(f"the header is damaged: {error}") from error
    return header, FIXED_BYTES + length


class Opening:
    """Decrypts one container from blocks of its chunks.

    What was written to the output before an error is authentic but incomplete: throw it away.
    """

    def __init__(self, start: bytes, content_key: bytes, opener: MakeOpener = opener_for) -> None:
        """Take the file's first bytes, at least up to the first chunk. opener: makes what decrypts; a test has its own.

        Raises:
            DamagedContainerError: the header cannot be read.
            WrongKeyError: the container belongs to another content key.
        """
        self.header, end = read_header(start)
        if key_id(content_key) != self.header.key:
            raise WrongKeyError(
                f"{self.header.file} of {self.header.name} {self.header.version} is sealed with the content key "
                f"{self.header.key[:12]}…, this one is {key_id(content_key)[:12]}…"
            )
        prefix_end = end + PREFIX_BYTES[self.header.algorithm]
        if len(start) < prefix_end:
            raise DamagedContainerError("the file ends before the first chunk")
        self.body_offset = prefix_end
        self._digest = hashlib.sha256(start[:end]).digest()
        key = _container_key(self.header, content_key)
        self._cipher: ChunkOpener = opener(self.header.algorithm, key, start[end:prefix_end])
        self._index = 0

    @property
    def is_complete(self) -> bool:
        """Whether the last chunk was opened."""
        return self._index == self.header.chunks

    def decrypt(self, block: memoryview, out: memoryview) -> int:
        """Open all chunks of a block, and return how many bytes of plaintext were written to `out`.

        Args:
            block: any number of whole chunks.
            out: at least as large as their plaintext.

        Raises:
            DamagedContainerError: a chunk is not authentic, cut short, or one too many.
        """
        header, digest, cipher = self.header, self._digest, self._cipher
        last, overhead = header.chunks - 1, header.sealed_chunk_bytes - header.chunk_bytes
        taken = written = 0
        while taken < len(block):
            index = self._index
            if index > last:
                raise DamagedContainerError(f"something follows the last chunk, {last}")
            final = index == last
            plain = _plain_bytes(header, index)
            if len(block) - taken < plain + overhead:
                raise DamagedContainerError(f"chunk {index} of {header.chunks} is cut short")
            chunk = block[taken : taken + plain + overhead]
            cipher.open_into(
                chunk, index, _bound(digest, index, final=final), out[written : written + plain], final=final
            )
            self._index = index + 1
            taken += plain + overhead
            written += plain
        return written


def opened(container: bytes, content_key: bytes) -> bytes:
    """Return the plaintext of a whole container.

    Raises:
        DamagedContainerError: it is not authentic, or its plaintext is not what the header says.
        WrongKeyError: it belongs to another content key.
    """
    opening = Opening(container[: FIXED_BYTES + MAX_HEADER_BYTES + max(PREFIX_BYTES.values())], content_key)
    body = memoryview(container)[opening.body_offset :]
    expected = opening.body_offset - PREFIX_BYTES[opening.header.algorithm] + opening.header.body_bytes
    if len(container) != expected:
        raise DamagedContainerError(size_complaint(expected, len(container)))
    plain = bytearray(opening.header.size_bytes)
    opening.decrypt(body, memoryview(plain))
    if hashlib.sha256(plain).hexdigest() != opening.header.sha256:
        raise DamagedContainerError("the plaintext has not the digest that its header names")
    return bytes(plain)


def size_complaint(expected: int, found: int) -> str:
    """Say that a file has not the size that its header promises."""
    return f"the file should have {expected} bytes and has {found}"


def chunks_of(plain: memoryview, chunk: int = CHUNK_BYTES) -> Iterator[memoryview]:
    """Cut a plaintext as `Sealer` wants it: an empty one is one empty chunk."""
    for start in range(0, max(1, len(plain)), chunk):
        yield plain[start : start + chunk]


_header_decoder: msgspec.json.Decoder[ContainerHeader] = msgspec.json.Decoder(ContainerHeader)


def _plain_bytes(header: ContainerHeader, index: int) -> int:
    return min(header.chunk_bytes, header.size_bytes - index * header.chunk_bytes)


def _bound(digest: bytes, index: int, *, final: bool) -> bytes:
    return digest + index.to_bytes(8, "big") + (b"\1" if final else b"\0")


def _container_key(header: ContainerHeader, content_key: bytes) -> bytes:
    return _derived(content_key, bytes.fromhex(header.salt), _CONTAINER_KEY)


def _derived(content_key: bytes, salt: bytes, purpose: bytes) -> bytes:
    if len(content_key) != KEY_BYTES:
        raise WrongKeyError(f"a content key has {KEY_BYTES} bytes, this one {len(content_key)}")
    return HKDF(algorithm=SHA256(), length=KEY_BYTES, salt=salt, info=purpose).derive(content_key)
