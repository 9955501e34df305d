"""Makes the plaintext of a release from a patch or a compressed file, in a process of its own.

    python -m gateway.ota.patch_child METHOD BASE PATCH OUTPUT SIZE MEMORY SECONDS

`BASE`, `PATCH` and `OUTPUT` are numbers of open descriptors, `-` where there is no base. What it reads was fetched, so
it runs under limits, and once its libraries are loaded it can open no file, no socket and start no program
(`gateway.ota.sandbox`). Nothing is believed of the input: everything it makes is counted against `SIZE`, which a signed
document has named, and the caller compares the digest.

The patch of bsdiff (Percival 2003, format BSDIFF40) is read here rather than by a library, block by block: libraries
decompress it whole, and one of 874 bytes can make 1 GiB of that.

It imports next to nothing: for a file of some megabytes the start of this process is most of the time, and numpy alone
would double both that and its memory.
"""

import bz2
import functools
import mmap
import os
import struct
import sys
from collections.abc import Iterator
from typing import Final, Protocol

import zstandard

from gateway.ota.sandbox import Limits, confine

EXIT_BAD: Final = 65  # EX_DATAERR of sysexits.h: what was fetched cannot be used
_BLOCK: Final = 1 << 18
_IDLE_STEPS: Final = 100_000
_HEADER: Final = struct.Struct("<8sqqq")


class BadPatchError(Exception):
    """The input makes something else than was announced, or nothing."""


class _Stream(Protocol):
    def read(self, size: int, /) -> bytes: ...


class Output:
    """Takes what was made; never more than was announced."""

    def __init__(self, fd: int, size: int) -> None:
        self.left = size
        self._fd = fd

    def write(self, block: bytes | memoryview) -> None:
        """Append a block."""
        if len(block) > self.left:
            raise BadPatchError("it makes more than was announced")
        self.left -= len(block)
        view = memoryview(block)
        while view:
            view = view[os.write(self._fd, view) :]


class Bz2Part:
    """One of the three compressed streams of a patch, decompressed as it is read."""

    def __init__(self, packed: memoryview) -> None:
        self._packed = packed
        self._at = 0
        self._decompressor = bz2.BZ2Decompressor()

    def read(self, size: int) -> bytes:
        """Return exactly so many bytes."""
        parts: list[bytes] = []
        while size:
            part = self._next(min(size, _BLOCK))
            parts.append(part)
            size -= len(part)
        return b"".join(parts)

    def _next(self, limit: int) -> bytes:
        while True:
            if self._decompressor.eof:
                raise BadPatchError("a stream of the patch ends early")
            feed = b""
            if self._decompressor.needs_input:
                feed = bytes(self._packed[self._at : self._at + _BLOCK])
                self._at += len(feed)
                if not feed:
                    raise BadPatchError("a stream of the patch is cut short")
            if part := self._decompressor.decompress(feed, max_length=limit):
                return part


def apply_bsdiff(base: memoryview, patch: memoryview, out: Output) -> None:
    """Apply a patch of bsdiff.

    Raises:
        BadPatchError: it is none, or asks for bytes that are not there.
    """
    if len(patch) < _HEADER.size:
        raise BadPatchError("the patch is shorter than its header")
    magic, control_bytes, diff_bytes, size = _HEADER.unpack_from(patch)
    if magic != b"BSDIFF40" or min(control_bytes, diff_bytes) < 0:
        raise BadPatchError("this is no patch of bsdiff")
    if size != out.left:
        raise BadPatchError(f"it would make {size} bytes, {out.left} were announced")
    body = patch[_HEADER.size :]
    if control_bytes + diff_bytes > len(body):
        raise BadPatchError("the patch is cut short")
    control = Bz2Part(body[:control_bytes])
    diff = Bz2Part(body[control_bytes : control_bytes + diff_bytes])
    extra = Bz2Part(body[control_bytes + diff_bytes :])
    position = 0
    idle = _IDLE_STEPS
    while out.left:
        add, copy, seek = (_offset(control.read(8)) for _ in range(3))
        # Steps that only seek are legal, but compressed, a few bytes of patch could hold millions of them.
        idle -= add == 0 and copy == 0
        if add < 0 or copy < 0 or idle < 0:
            raise BadPatchError("steps of the patch make nothing")
        if add + copy > out.left:
            raise BadPatchError("it makes more than was announced")
        for size_ in _blocks(add):
            out.write(_added(base, position, diff.read(size_)))
            position += size_
        for size_ in _blocks(copy):
            out.write(extra.read(size_))
        position += seek


def apply_zstd(base: memoryview, packed: memoryview, out: Output) -> None:
    """Decompress one zstd frame; with a base, one that was made with it as prefix (`zstd --patch-from`).

    Raises:
        BadPatchError: it is none.
    """
    # The window of a patch must reach over base and result; more would only be memory for nothing.
    window = 1 << max(20, (len(base) + out.left).bit_length())
    prefix = zstandard.ZstdCompressionDict(base, dict_type=zstandard.DICT_TYPE_RAWCONTENT) if len(base) else None
    decompressor = zstandard.ZstdDecompressor(dict_data=prefix, max_window_size=min(window, 1 << 31))
    try:
        with decompressor.stream_reader(packed) as reader:
            while block := reader.read(_BLOCK):
                out.write(block)
    except zstandard.ZstdError as error:
        raise BadPatchError(f"it cannot be decompressed: {error}") from error


def _added(base: memoryview, position: int, diff: bytes) -> bytes:
    """Add a stretch of the base to a stretch of the patch, byte by byte; beyond its ends the base counts as zeros."""
    first, last = max(0, position), min(len(base), position + len(diff))
    if first >= last:
        return diff
    within = slice(first - position, last - position)
    return diff[: within.start] + sum_of_bytes(base[first:last], diff[within]) + diff[within.stop :]


def sum_of_bytes(one: memoryview | bytes, other: bytes) -> bytes:
    """Add two strings of the same length byte by byte, modulo 256.

    As two large numbers: the upper bit of each byte is added without a carry, so that none reaches the next byte.
    """
    size = len(other)
    if other.count(0) == size:  # most of a patch: what has not changed
        return bytes(one)
    lower, upper = _masks(size)
    a, b = int.from_bytes(one, "little"), int.from_bytes(other, "little")
    return (((a & lower) + (b & lower)) ^ ((a ^ b) & upper)).to_bytes(size, "little")


@functools.lru_cache(maxsize=2)
def _masks(size: int) -> tuple[int, int]:
    """Return what leaves the lower seven bits of each byte, and what leaves the upper one."""
    return int.from_bytes(b"\x7f" * size, "little"), int.from_bytes(b"\x80" * size, "little")


def _offset(encoded: bytes) -> int:
    """Read a number of bsdiff: seven and a half bytes, the sign in the last bit."""
    value = int.from_bytes(encoded, "little")
    return -(value & ~(1 << 63)) if value >> 63 else value


def _blocks(size: int) -> Iterator[int]:
    while size:
        block = min(size, _BLOCK)
        yield block
        size -= block


def _mapped(number: str) -> memoryview:
    """Return the content of a descriptor, or nothing for `-`."""
    if number == "-":
        return memoryview(b"")
    fd = int(number)
    size = os.fstat(fd).st_size
    return memoryview(mmap.mmap(fd, size, mmap.MAP_SHARED, mmap.PROT_READ)) if size else memoryview(b"")


def main(arguments: list[str]) -> int:
    """Do what the arguments say; returns the exit status."""
    method, base_fd, patch_fd, output_fd, size, memory, seconds = arguments
    base, patch, out = _mapped(base_fd), _mapped(patch_fd), Output(int(output_fd), int(size))
    confine(Limits(memory_bytes=int(memory), file_bytes=int(size), cpu_seconds=int(seconds)))
    try:
        if method == "bsdiff4":
            apply_bsdiff(base, patch, out)
        else:
            apply_zstd(base, patch, out)
        if out.left:
            raise BadPatchError(f"{out.left} bytes are missing")
    except (BadPatchError, OSError, ValueError) as error:
        sys.stderr.write(f"{error}\n")
        return EXIT_BAD
    except MemoryError:
        sys.stderr.write("it takes more memory than it is given\n")
        return EXIT_BAD
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
