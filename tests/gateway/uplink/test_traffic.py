"""Whose bytes pass over a connection, however they come."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.uplink.exchange import Outgoing
from gateway.uplink.traffic import Direction, PacketStream, Tap


def length_of(value: int) -> bytes:
    found = bytearray()
    while True:
        value, low = divmod(value, 128)
        found.append(low | (0x80 if value else 0))
        if not value:
            return bytes(found)


def publish(topic: bytes, body: bytes) -> bytes:
    content = len(topic).to_bytes(2) + topic + body
    return b"\x32" + length_of(len(content)) + content


def other(kind: int, body: bytes) -> bytes:
    return bytes([kind << 4]) + length_of(len(body)) + body


packets = st.lists(
    st.one_of(
        st.tuples(st.sampled_from([b"a", b"sluice/v1/gw/records/bulk", b""]), st.binary(max_size=400)),
        st.tuples(st.sampled_from([1, 2, 4, 8, 9, 12, 13, 14]), st.binary(max_size=300)),
    ),
    max_size=8,
)


@given(packets, st.lists(st.integers(min_value=1, max_value=90), min_size=1, max_size=30))
def test_however_the_bytes_are_cut_each_is_counted_once_for_its_packet(
    sent: list[tuple[bytes, bytes] | tuple[int, bytes]], cuts: list[int]
) -> None:
    expected: Counter[bytes | None] = Counter()
    data = b""
    for head, body in sent:
        packet = publish(head, body) if isinstance(head, bytes) else other(head, body)
        expected[head if isinstance(head, bytes) else None] += len(packet)
        data += packet
    stream, found, at, turn = PacketStream(), Counter[bytes | None](), 0, 0
    while at < len(data):
        size = cuts[turn % len(cuts)]
        for topic, count in stream.feed(data[at : at + size]):
            found[topic] += count
        at, turn = at + size, turn + 1
    assert found == expected
    assert stream.finish() == 0


def test_a_large_packet_is_counted_as_it_comes() -> None:
    packet = publish(b"t", bytes(300_000))
    stream = PacketStream()
    assert stream.feed(packet[:1000]) == [(b"t", 7), (b"t", 993)]
    assert stream.feed(packet[1000:]) == [(b"t", len(packet) - 1000)]


def test_a_connection_that_ends_within_a_head_leaves_nothing_out() -> None:
    counted: list[tuple[bytes | None, Direction, int]] = []
    tap = Tap(lambda topic, direction, size: counted.append((topic, direction, size)))
    tap.passed("out", publish(b"topic", b"x")[:6])
    tap.passed("in", b"\xd0\x00")
    tap.finish()
    tap.finish()
    assert counted == [(None, "in", 2), (None, "out", 6)]


@pytest.mark.parametrize(
    "garbage", [b"\xff" * 50, b"\x32\xff\xff\xff\xff\xff\xff", b"\x30\x01\x00\x00\x00", b"\x32\x00"]
)
def test_garbage_neither_raises_nor_is_lost(garbage: bytes) -> None:
    stream = PacketStream()
    counted = sum(size for _, size in stream.feed(garbage * 20))
    assert counted + stream.finish() == 20 * len(garbage)


@pytest.mark.parametrize("size", [0, 90, 91, 92, 100, 127, 128, 16_200, 16_383, 16_384, 2_097_000, 2_097_152])
def test_the_size_of_a_packet_is_known_before_it_is_made(size: int) -> None:
    message = Outgoing("sluice/v1/gw/records/event", bytes(size))
    body = bytes(size)
    assert message.exact_bytes(is_v5=False, qos=0) == len(publish(message.topic.encode(), body))
    assert message.exact_bytes(is_v5=False, qos=1) == len(publish(message.topic.encode(), b"id" + body))
    assert message.exact_bytes(is_v5=True, qos=1) == len(publish(message.topic.encode(), b"id\0" + body))
    assert message.exact_bytes(is_v5=True, qos=1) <= message.packet_bytes
