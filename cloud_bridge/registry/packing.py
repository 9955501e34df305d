"""How a file travels: compressed as a whole, or as a patch against what a device has; whatever is smallest counts.

Measured in docs/decisions/0016-deltas.md. Everything is made in memory; a release is tens of megabytes.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, Literal

import bsdiff4
import zstandard

from cloud_bridge.registry.errors import RegistryError

Packed = Literal["", "zstd"]
Method = Literal["bsdiff4", "zstd"]

LEVEL: Final = 19
WORTH_SHARE: Final = 0.9
"""A patch that saves less than a tenth is not made: it costs a file, and needs the very base."""
MAX_BSDIFF_BYTES: Final = 64 << 20
"""Sorting suffixes takes 8 bytes of memory for each byte of the base, and minutes beyond this."""
_MIN_WINDOW_LOG: Final = 10
_MAX_WINDOW_LOG: Final = 27  # 128 MiB; what every decoder takes without being asked


MAX_RATIO: Final = 200
"""Devices refuse what is to become more than so many times as much, base and patch together (`gateway.ota.patch`)."""


@dataclass(frozen=True, slots=True)
class Patch:
    """A patch and how it is applied."""

    method: Method
    content: bytes


def pack(content: bytes) -> tuple[Packed, bytes]:
    """Return a file as it travels as a whole: compressed, unless that makes it no smaller, or so small that devices
    would take it for a bomb.
    """
    parameters = zstandard.ZstdCompressionParameters.from_level(
        LEVEL, source_size=len(content), window_log=window_log(len(content)), enable_ldm=1
    )
    compressed = zstandard.ZstdCompressor(compression_params=parameters).compress(content)
    fits = len(compressed) < len(content) <= MAX_RATIO * len(compressed)
    return ("zstd", compressed) if fits else ("", content)


def unpack(packed: str, content: bytes, size_bytes: int) -> bytes:
    """Undo `pack`.

    Raises:
        RegistryError: it is damaged, or not as large as it should be.
    """
    if packed == "":
        return content
    try:
        plain = zstandard.ZstdDecompressor(max_window_size=1 << _MAX_WINDOW_LOG).decompress(
            content, max_output_size=size_bytes
        )
    except zstandard.ZstdError as error:
        raise RegistryError(f"compressed file is damaged: {error}") from error
    if len(plain) != size_bytes:
        raise RegistryError(f"compressed file has {len(plain)} bytes in it, {size_bytes} expected")
    return plain


def window_log(size_bytes: int) -> int:
    """Return the window that reaches over everything, as a power of two."""
    return min(_MAX_WINDOW_LOG, max(_MIN_WINDOW_LOG, size_bytes.bit_length()))


def by_bsdiff(base: bytes, content: bytes) -> bytes:
    """Return a patch in the format BSDIFF40 (Percival 2003), which survives shifted and slightly changed bytes."""
    return bytes(bsdiff4.diff(base, content))


def by_zstd(base: bytes, content: bytes) -> bytes:
    """Return a zstd frame that refers to the base as a raw dictionary: what `zstd --patch-from` makes."""
    parameters = zstandard.ZstdCompressionParameters.from_level(
        LEVEL, source_size=len(content), window_log=window_log(len(base) + len(content)), enable_ldm=1
    )
    dictionary = zstandard.ZstdCompressionDict(base, dict_type=zstandard.DICT_TYPE_RAWCONTENT)
    return zstandard.ZstdCompressor(compression_params=parameters, dict_data=dictionary).compress(content)


def apply(patch: Patch, base: bytes, size_bytes: int) -> bytes:
    """Return what a patch makes of its base. For patches made here; devices use limits of their own.

    Raises:
        RegistryError: it does not fit.
    """
    try:
        if patch.method == "bsdiff4":
            return bytes(bsdiff4.patch(base, patch.content))
        dictionary = zstandard.ZstdCompressionDict(base, dict_type=zstandard.DICT_TYPE_RAWCONTENT)
        decompressor = zstandard.ZstdDecompressor(dict_data=dictionary, max_window_size=1 << _MAX_WINDOW_LOG)
        return decompressor.decompress(patch.content, max_output_size=size_bytes)
    except (zstandard.ZstdError, ValueError, OSError, EOFError) as error:
        raise RegistryError(f"the {patch.method} patch cannot be applied: {error}") from error


METHODS: Final[Mapping[Method, Callable[[bytes, bytes], bytes]]] = {"bsdiff4": by_bsdiff, "zstd": by_zstd}


def best_patch(base: bytes, content: bytes, full_bytes: int) -> Patch | None:
    """Return the smallest patch from a base that is worth it against `full_bytes`; each was applied once to prove it.

    Raises:
        RegistryError: a patch does not give the file back.
    """
    made = [
        Patch(method, make(base, content))
        for method, make in METHODS.items()
        if method != "bsdiff4" or max(len(base), len(content)) <= MAX_BSDIFF_BYTES
    ]
    made = [each for each in made if len(content) <= MAX_RATIO * (len(base) + len(each.content))]
    best = min(made, key=lambda patch: len(patch.content), default=None)
    if best is None or len(best.content) >= WORTH_SHARE * full_bytes:
        return None
    if apply(best, base, len(content)) != content:
        raise RegistryError(f"a {best.method} patch does not give back what it was made of")
    return best
