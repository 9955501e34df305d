"""How a batch of records becomes the payload of `records/<class>`, and back.

Three forms, told apart by their first byte, because MQTT 3.1.1 has no content type:

* `{`      the JSON of a `RecordBatch`;
* `0x78`   the same, compressed with zlib (RFC 1950), used when it pays;
* `S`      `SLB1`, the length of the JSON (4 bytes, big endian), the JSON, and the blobs of its records in order.
"""

import hashlib
import itertools
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from gateway.wire.errors import MalformedMessageError
from gateway.wire.messages import Record, RecordBatch, decode, encode

CONTENT_JSON: Final = "application/json"
CONTENT_ZLIB: Final = "application/json+zlib"
CONTENT_FRAMED: Final = "application/vnd.sluice.records"

MAX_JSON_BYTES: Final = 16 * 1024 * 1024
"""A compressed payload may not unfold to more than this, whoever sent it."""

_MAGIC: Final = b"SLB1"
_HEADER: Final = struct.Struct(">4sI")
WORTH_COMPRESSING: Final = 512
"""A single event of 700 bytes becomes 380 in 45 µs; below this, little is left to save."""


@dataclass(frozen=True, slots=True)
class Packed:
    """A payload and its MQTT 5 content type."""

    payload: bytes
    content_type: str


@dataclass(frozen=True, slots=True)
class Unpacked:
    """A batch with the blobs of its records, by position; b"" where a record has none."""

    batch: RecordBatch
    blobs: Sequence[bytes]


def pack(batch: RecordBatch, blobs: Sequence[bytes] = (), *, compress_from: int = WORTH_COMPRESSING) -> Packed:
    """Encode a batch; `blobs` holds one entry for each record, or nothing at all.

    JSON of `compress_from` bytes and more is compressed if that pays.
    """
    body = encode(batch)
    if any(blobs):
        if [len(blob) for blob in blobs] != [record.blob_bytes for record in batch.records]:
            raise ValueError("the lengths of the blobs do not match the records")
        return Packed(b"".join((_HEADER.pack(_MAGIC, len(body)), body, *blobs)), CONTENT_FRAMED)
    if len(body) >= compress_from:
        squeezed = zlib.compress(body, 1)
        if len(squeezed) < len(body) * 0.9:
            return Packed(squeezed, CONTENT_ZLIB)
    return Packed(body, CONTENT_JSON)


def payload_digest(payload: bytes) -> str:
    """Name a payload as it travels: the first 32 hexadecimal digits of its SHA-256."""
    return hashlib.sha256(payload).hexdigest()[:32]


def unpack(payload: bytes) -> Unpacked:
    """Decode a payload of `records/<class>`.

    Raises:
        MalformedMessageError: none of the three forms, too large, or the blobs do not fit the records.
    """
    match payload[:1]:
        case b"{":
            return _checked(decode(payload, RecordBatch), memoryview(b""))
        case b"\x78":
            return _checked(decode(_inflate(payload), RecordBatch), memoryview(b""))
        case b"S":
            return _unframe(payload)
        case b"":
            raise MalformedMessageError("RecordBatch: the payload is empty")
        case first:
            raise MalformedMessageError(f"RecordBatch: no form begins with byte 0x{first.hex()}")


def _inflate(payload: bytes) -> bytes:
    inflater = zlib.decompressobj()
    try:
        body = inflater.decompress(payload, MAX_JSON_BYTES)
    except zlib.error as error:
        raise MalformedMessageError(f"RecordBatch: {error}") from error
    if not inflater.eof:
        raise MalformedMessageError(f"RecordBatch: truncated, or larger than {MAX_JSON_BYTES} bytes when inflated")
    if inflater.unused_data:
        raise MalformedMessageError(f"RecordBatch: {len(inflater.unused_data)} bytes follow the compressed JSON")
    return body


def _unframe(payload: bytes) -> Unpacked:
    if len(payload) < _HEADER.size or payload[:4] != _MAGIC:
        raise MalformedMessageError("RecordBatch: the frame has no SLB1 header")
    _, length = _HEADER.unpack_from(payload)
    end = _HEADER.size + length
    if end > len(payload):
        raise MalformedMessageError("RecordBatch: the frame is shorter than its header says")
    view = memoryview(payload)
    return _checked(decode(view[_HEADER.size : end], RecordBatch), view[end:])


def _checked(batch: RecordBatch, tail: memoryview) -> Unpacked:
    records = batch.records
    if not records:
        raise MalformedMessageError("RecordBatch: no records")
    if batch.base > records[0].seq:
        raise MalformedMessageError("RecordBatch: base is above the first record")
    if any(later.seq <= earlier.seq for earlier, later in itertools.pairwise(records)):
        raise MalformedMessageError("RecordBatch: the records are not in order")
    if min(record.blob_bytes for record in records) < 0 or sum(r.blob_bytes for r in records) != len(tail):
        raise MalformedMessageError("RecordBatch: the blobs do not fit the records")
    return Unpacked(batch, _cut(records, tail))


def _cut(records: Sequence[Record], tail: memoryview) -> list[bytes]:
    blobs: list[bytes] = []
    at = 0
    for record in records:
        blobs.append(bytes(tail[at : at + record.blob_bytes]))
        at += record.blob_bytes
    return blobs
