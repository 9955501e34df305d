"""How a part of a file becomes the payload of `ota/reply`, and back.

`SLB1`, the length of the JSON (4 bytes, big endian), the JSON of a `FetchReply`, and the bytes of the part: the frame
that `records` have. A refusal has no bytes.
"""

import struct
from typing import Final

from gateway.wire.errors import MalformedMessageError
from gateway.wire.messages import FetchReply, decode, encode

CONTENT_PART: Final = "application/vnd.sluice.part"

_MAGIC: Final = b"SLB1"
_HEADER: Final = struct.Struct(">4sI")


def pack_part(reply: FetchReply, content: bytes = b"") -> bytes:
    """Encode a reply with its part.

    Raises:
        ValueError: `reply.length` is not the length of the part.
    """
    if reply.length != len(content):
        raise ValueError(f"the reply says {reply.length} bytes, the part has {len(content)}")
    body = encode(reply)
    return b"".join((_HEADER.pack(_MAGIC, len(body)), body, content))


def unpack_part(payload: bytes) -> tuple[FetchReply, bytes]:
    """Decode a payload of `ota/reply`.

    Raises:
        MalformedMessageError: not such a frame, or its part is not as long as it says.
    """
    if len(payload) < _HEADER.size or payload[:4] != _MAGIC:
        raise MalformedMessageError("FetchReply: the frame has no SLB1 header")
    _, length = _HEADER.unpack_from(payload)
    end = _HEADER.size + length
    if end > len(payload):
        raise MalformedMessageError("FetchReply: the frame is shorter than its header says")
    reply = decode(memoryview(payload)[_HEADER.size : end], FetchReply)
    content = payload[end:]
    if reply.length != len(content):
        raise MalformedMessageError(f"FetchReply: says {reply.length} bytes, {len(content)} follow")
    return reply, content
