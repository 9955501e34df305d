"""The frame of a part, and what is no such frame."""

import pytest

from gateway.wire.errors import MalformedMessageError
from gateway.wire.messages import FetchReply
from gateway.wire.parts import pack_part, unpack_part

REPLY = FetchReply(request_id="r-1", path="targets/x", offset=5, length=3, total=8)


def test_a_part_comes_back_as_it_went() -> None:
    assert unpack_part(pack_part(REPLY, b"abc")) == (REPLY, b"abc")


def test_a_part_of_another_length_is_not_packed() -> None:
    with pytest.raises(ValueError, match="3 bytes"):
        pack_part(REPLY, b"ab")


@pytest.mark.parametrize(
    "payload",
    [b"", b"SLB1", b"{}", pack_part(REPLY, b"abc")[:-1], pack_part(REPLY, b"abc") + b"d", b"SLB1\xff\xff\xff\xff{}"],
    ids=["empty", "header", "json", "cut", "long", "lie"],
)
def test_what_is_no_frame_is_malformed(payload: bytes) -> None:
    with pytest.raises(MalformedMessageError):
        unpack_part(payload)
