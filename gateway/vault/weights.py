"""Sealed weights, decrypted into anonymous memory that a runtime opens like a file.

The plaintext exists in one place: a memfd (memfd_create(2)), locked against swap where the process may, left out of
core dumps, and sealed against writing before anybody gets to see it. Nothing is written to a file system.
"""

import contextlib
import hashlib
import itertools
import mmap
import os
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from gateway.statefiles import is_passing
from gateway.vault.aead import PREFIX_BYTES
from gateway.vault.container import (
    FIXED_BYTES,
    MAX_HEADER_BYTES,
    ContainerHeader,
    Opening,
    read_header,
    size_complaint,
)
from gateway.vault.errors import DamagedContainerError, VaultError
from gateway.vault.memory import PlaintextMemory, scratch

_START_BYTES: Final = FIXED_BYTES + MAX_HEADER_BYTES + max(PREFIX_BYTES.values())
_BLOCK_BYTES: Final = 1 << 20
_BLOCKS: Final = 4  # so many may wait to be taken


class SealedWeights:
    """The plaintext of one artefact, in memory, until `close`.

    A runtime that has opened `path` keeps its own mapping, so the weights may be closed once it is loaded.
    """

    def __init__(self, header: ContainerHeader, memory: PlaintextMemory) -> None:
        """Take memory that is filled and sealed."""
        self.header = header
        self.locked = memory.locked  # kept out of swap
        self._memory = memory
        self._mapping: mmap.mmap | None = None

    @property
    def fd(self) -> int:
        """A read-only descriptor, to be inherited by a child process."""
        self._require_open()
        return self._memory.fd

    @property
    def path(self) -> str:
        """A path for runtimes that want one; of use to this process only."""
        return f"/proc/self/fd/{self.fd}"

    @property
    def view(self) -> memoryview:
        """The bytes themselves, read-only. Let go of it before `close`."""
        self._require_open()
        if self._memory.size_bytes == 0:
            return memoryview(b"")
        if self._mapping is None:
            self._mapping = self._memory.map()
        return memoryview(self._mapping)

    def close(self) -> None:
        """Give the memory back; may be called twice.

        Raises:
            BufferError: somebody still holds a `view`.
        """
        if self._mapping is not None:
            self._mapping.close()
            self._mapping = None
        self._memory.close()

    def _require_open(self) -> None:
        if self._memory.fd < 0:
            raise VaultError(f"the weights {self.header.file} are closed")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def header_of(container: Path) -> ContainerHeader:
    """Read the header of a container, without any key: nothing of it is authenticated.

    Raises:
        DamagedContainerError: it cannot be read, or is none.
        VaultError: it cannot be read now, which may pass.
    """
    try:
        with container.open("rb") as file:
            return read_header(file.read(_START_BYTES))[0]
    except OSError as error:
        raise _unreadable(container, error) from error
    except DamagedContainerError as error:
        raise _at(container, error) from error


def require_size(container: Path) -> None:
    """Make sure that a container has the size that its header says; that needs no key.

    Raises:
        DamagedContainerError: it has not, or cannot be read, or is none.
        VaultError: it cannot be read now, which may pass.
    """
    try:
        with container.open("rb", buffering=0) as file:
            _size_checked(file)
    except OSError as error:
        raise _unreadable(container, error) from error
    except DamagedContainerError as error:
        raise _at(container, error) from error


def read_ahead(container: Path) -> None:
    """Have the kernel read a container while its key is still being asked for; a TPM may take half a second."""
    with contextlib.suppress(OSError), container.open("rb", buffering=0) as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_WILLNEED)


class Room:
    """Memory for the plaintext of a container, taken on a thread of its own while its key is still being asked for.

    Taking 100 MB from the kernel costs more than decrypting them, and a TPM is asked for about as long.
    """

    def __init__(self, container: Path) -> None:
        """Begin; use as a context manager, which gives back what nobody has taken."""
        self._thread = ThreadPoolExecutor(1, "weights-room")
        self._made: Future[PlaintextMemory] | None = self._thread.submit(_reserved, container)

    @property
    def is_made(self) -> bool:
        """Whether nobody would have to wait for it."""
        return self._made is None or self._made.done()

    def take(self) -> PlaintextMemory:
        """Return the memory, which is the caller's from now on; once.

        Raises:
            DamagedContainerError: the container cannot be read, or is none.
            VaultError: there is not so much memory.
        """
        made, self._made = self._made, None
        if made is None:
            raise VaultError("this room was taken already")
        return made.result()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._thread.shutdown()
        if self._made is not None and self._made.exception() is None:
            self._made.result().close()


def _reserved(container: Path) -> PlaintextMemory:
    try:
        with container.open("rb", buffering=0) as file:
            header, _ = read_header(_size_checked(file))
    except OSError as error:
        raise _unreadable(container, error) from error
    except DamagedContainerError as error:
        raise _at(container, error) from error
    memory = PlaintextMemory(header.file, header.size_bytes)
    try:
        memory.reserve()
    except BaseException:
        memory.close()
        raise
    return memory


def open_sealed(
    container: Path, content_key: bytes, *, sha256: str | None = None, room: Room | None = None
) -> SealedWeights:
    """Decrypt a container into memory, chunk by chunk, and compare the digest of the plaintext.

    The chunks are authenticated, but whoever has the content key could have made them, and a whole fleet has it: only
    the digest in the signed manifest cannot be made by them.

    Args:
        container: the file.
        content_key: 32 bytes.
        sha256: of the plaintext, as a signed manifest says; default: what the container's own header says.
        room: memory for this container; default: taken block by block.

    Raises:
        DamagedContainerError: the file cannot be read, is not authentic, or holds something else.
        WrongKeyError: it is sealed with another key.
        VaultError: there is no memory for it.
    """
    return _opened(container, content_key, sha256, _fill_and_hash, room)


def open_own(container: Path, content_key: bytes, *, sha256: str, room: Room | None = None) -> SealedWeights:
    """Decrypt a container that this device has sealed itself, with a key that nobody else ever had.

    Its plaintext had the digest when it was sealed (`SealedStore.put`), and nobody but this device could have changed
    it since; so the digest in the authenticated header is believed, and half of the work saved.

    Raises:
        DamagedContainerError, WrongKeyError, VaultError: as `open_sealed`.
    """
    return _opened(container, content_key, sha256, _fill, room)


Fill = Callable[[Opening, FileIO, PlaintextMemory], str]
"""Decrypts everything into the memory; returns the digest of the plaintext, in hexadecimal."""


def _opened(container: Path, content_key: bytes, sha256: str | None, fill: Fill, room: Room | None) -> SealedWeights:
    try:
        with container.open("rb", buffering=0) as file:
            return _open(file, content_key, sha256, fill, room)
    except DamagedContainerError as error:
        raise _at(container, error) from error
    except OSError as error:
        raise _unreadable(container, error) from error


def _open(file: FileIO, content_key: bytes, sha256: str | None, fill: Fill, room: Room | None) -> SealedWeights:
    opening = Opening(_size_checked(file), content_key)
    memory = PlaintextMemory(opening.header.file, opening.header.size_bytes) if room is None else room.take()
    with contextlib.ExitStack() as undo:
        undo.callback(memory.close)
        if memory.size_bytes != opening.header.size_bytes:
            raise DamagedContainerError("the file was replaced while its key was asked for")
        file.seek(opening.body_offset)
        digest = fill(opening, file, memory)
        if digest != opening.header.sha256 or digest != (sha256 or digest):
            wanted = sha256 or opening.header.sha256
            raise DamagedContainerError(
                f"the plaintext has the digest {digest[:12]}…, the manifest says {wanted[:12]}…"
            )
        memory.seal()
        undo.pop_all()
    return SealedWeights(opening.header, memory)


def _size_checked(file: FileIO) -> bytes:
    """Return the first bytes of a container whose size is what its header says.

    Compared before any memory is taken. A file with holes passes: whoever knows the artefact compares that size too.
    """
    start = file.read(_START_BYTES)
    header, end = read_header(start)
    found, expected = os.fstat(file.fileno()).st_size, end + header.body_bytes
    if found != expected:
        raise DamagedContainerError(size_complaint(expected, found))
    return start


def _fill(opening: Opening, file: FileIO, memory: PlaintextMemory) -> str:
    """Decrypt everything; returns the digest that the header names, which the chunks have authenticated."""
    _decrypt_blocks(opening, file, [memory.append])
    return opening.header.sha256


def _fill_and_hash(opening: Opening, file: FileIO, memory: PlaintextMemory) -> str:
    """Decrypt everything; returns the digest of the plaintext."""
    digest = hashlib.sha256()
    _decrypt_blocks(opening, file, [memory.append, digest.update])
    return digest.hexdigest()


def _decrypt_blocks(opening: Opening, file: FileIO, takers: Sequence[Callable[[memoryview], None]]) -> None:
    """Decrypt block by block, while other cores take the blocks before: one thread for each taker, in order.

    A block stays in the caches while it is decrypted, copied and hashed; and neither taking new memory from the kernel,
    which costs as much as decrypting, nor hashing, which costs more than both, holds up the rest. With 100 MB that is
    what takes the time.
    """
    header = opening.header
    chunks = _chunks_of_a_block(header)
    sealed = memoryview(bytearray(chunks * header.sealed_chunk_bytes))
    turns = [_Turn(scratch(chunks * header.chunk_bytes)) for _ in range(min(_BLOCKS, header.chunks))]
    with contextlib.ExitStack() as threads:
        hands = [(threads.enter_context(ThreadPoolExecutor(1, "weights")), take) for take in takers]
        for turn in itertools.cycle(turns):
            if opening.is_complete:
                break
            turn.wait()
            size = _decrypt_block(opening, file, sealed, turn.block)
            turn.taken = [thread.submit(_take, take, turn.block, size) for thread, take in hands]
        for turn in turns:
            turn.wait()


def _chunks_of_a_block(header: ContainerHeader) -> int:
    return max(1, min(_BLOCK_BYTES // header.sealed_chunk_bytes, header.chunks))


def _decrypt_block(opening: Opening, file: FileIO, sealed: memoryview, block: mmap.mmap) -> int:
    """Read and decrypt the next block; returns the size of the plaintext in `block`."""
    filled = _read_block(file, sealed)
    if filled == 0:
        raise DamagedContainerError("the file became shorter while it was read")
    with memoryview(block) as room:
        return opening.decrypt(sealed[:filled], room)


@dataclass(slots=True)
class _Turn:
    """A block of plaintext that is used again and again, and the taking of what it held last."""

    block: mmap.mmap
    taken: Sequence[Future[None]] = ()

    def wait(self) -> None:
        """Wait until all have taken what it holds; raises what they have raised."""
        for each in self.taken:
            each.result()


def _take(take: Callable[[memoryview], None], block: mmap.mmap, size: int) -> None:
    with memoryview(block) as whole, whole[:size] as plain:
        take(plain)


def _read_block(file: FileIO, block: memoryview) -> int:
    """Fill the block as far as the file goes; a file that shrinks meanwhile gives a chunk cut short."""
    filled = 0
    while filled < len(block):
        count = file.readinto(block[filled:])
        if not count:
            break
        filled += count
    return filled


def _unreadable(container: Path, error: OSError) -> VaultError:
    words = f"{container} cannot be read: {error.strerror or error}"
    return VaultError(words) if is_passing(error) else DamagedContainerError(words)


def _at(container: Path, error: DamagedContainerError) -> DamagedContainerError:
    return DamagedContainerError(f"{container}: {error}; put the release there again: `gateway vault import`")
