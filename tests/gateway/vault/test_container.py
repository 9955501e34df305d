"""Sealed weights give back what was put in, or nothing."""

import hashlib

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.vault.aead import GCM, STREAM, Algorithm, preferred_algorithm
from gateway.vault.container import (
    FIXED_BYTES,
    MAGIC,
    Contents,
    Opening,
    Sealer,
    key_id,
    new_header,
    opened,
    read_header,
    sealed,
)
from gateway.vault.errors import DamagedContainerError, WrongKeyError

KEY = bytes(range(32))
CHUNK = 64  # small, so that a few hundred bytes are several chunks

algorithms = st.sampled_from([GCM, STREAM])
plains = st.binary(max_size=4 * CHUNK + 7)
sizes = pytest.mark.parametrize("size", [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK, 5 * CHUNK + 3])
each_algorithm = pytest.mark.parametrize("algorithm", [GCM, STREAM])


def container(plain: bytes, algorithm: Algorithm = GCM, key: bytes = KEY, file: str = "model.tflite") -> bytes:
    contents = Contents("probe", "1.0.0", "0" * 64, file, hashlib.sha256(plain).hexdigest(), len(plain))
    return sealed(contents, key, plain, algorithm, CHUNK)


def header_end(data: bytes) -> int:
    return read_header(data)[1]


@sizes
@each_algorithm
def test_what_was_sealed_comes_out_again(size: int, algorithm: Algorithm) -> None:
    plain = bytes(number % 251 for number in range(size))
    assert opened(container(plain, algorithm), KEY) == plain


@given(plains, algorithms, st.data())
@settings(max_examples=300, deadline=None)
def test_any_flipped_bit_is_refused(plain: bytes, algorithm: Algorithm, data: st.DataObject) -> None:
    whole = bytearray(container(plain, algorithm))
    at = data.draw(st.integers(0, len(whole) * 8 - 1))
    whole[at // 8] ^= 1 << at % 8
    with pytest.raises((DamagedContainerError, WrongKeyError)):
        opened(bytes(whole), KEY)


@given(plains, algorithms, st.data())
@settings(max_examples=200, deadline=None)
def test_a_file_cut_short_anywhere_is_refused(plain: bytes, algorithm: Algorithm, data: st.DataObject) -> None:
    whole = container(plain, algorithm)
    with pytest.raises(DamagedContainerError):
        opened(whole[: data.draw(st.integers(0, len(whole) - 1))], KEY)


@given(plains, algorithms, st.binary(min_size=1, max_size=3 * CHUNK))
@settings(max_examples=100, deadline=None)
def test_a_file_with_something_behind_it_is_refused(plain: bytes, algorithm: Algorithm, more: bytes) -> None:
    with pytest.raises(DamagedContainerError):
        opened(container(plain, algorithm) + more, KEY)


def chunks_of_body(whole: bytes) -> tuple[bytes, list[bytes]]:
    opening = Opening(whole, KEY)
    size = opening.header.sealed_chunk_bytes
    body = whole[opening.body_offset :]
    return whole[: opening.body_offset], [body[at : at + size] for at in range(0, len(body), size)]


@given(algorithms, st.permutations(range(4)))
@settings(max_examples=60, deadline=None)
def test_chunks_in_another_order_are_refused(algorithm: Algorithm, order: list[int]) -> None:
    start, chunks = chunks_of_body(container(bytes(4 * CHUNK), algorithm))
    shuffled = start + b"".join(chunks[number] for number in order)
    if order == sorted(order):
        assert opened(shuffled, KEY) == bytes(4 * CHUNK)
    else:
        with pytest.raises(DamagedContainerError):
            opened(shuffled, KEY)


@each_algorithm
@pytest.mark.parametrize("place", range(4))
def test_a_chunk_of_another_file_of_the_same_release_is_refused(algorithm: Algorithm, place: int) -> None:
    start, ours = chunks_of_body(container(bytes(4 * CHUNK), algorithm))
    _, theirs = chunks_of_body(container(bytes(4 * CHUNK), algorithm))
    ours[place] = theirs[place]
    with pytest.raises(DamagedContainerError, match=f"chunk {place} is not authentic"):
        opened(start + b"".join(ours), KEY)


@each_algorithm
def test_the_body_of_another_file_is_refused(algorithm: Algorithm) -> None:
    mine, other = container(bytes(99), algorithm), container(bytes(99), algorithm, file="other.tflite")
    offset = Opening(mine, KEY).body_offset
    other_offset = Opening(other, KEY).body_offset
    with pytest.raises(DamagedContainerError):
        opened(mine[:offset] + other[other_offset:], KEY)


@each_algorithm
def test_a_file_that_ends_at_a_whole_chunk_is_refused_even_if_the_header_agrees(algorithm: Algorithm) -> None:
    # Whoever cuts also writes a fitting size into the header; the digest of the header is what gives him away.
    whole = container(bytes(3 * CHUNK), algorithm)
    start, chunks = chunks_of_body(whole)
    header, end = read_header(whole)
    shorter = msgspec.json.encode(msgspec.structs.replace(header, size_bytes=2 * CHUNK))
    forged = MAGIC + len(shorter).to_bytes(4, "big") + shorter + start[end:] + b"".join(chunks[:2])
    with pytest.raises(DamagedContainerError):
        opened(forged, KEY)


@given(algorithms, st.binary(min_size=32, max_size=32).filter(lambda key: key != KEY))
@settings(max_examples=40, deadline=None)
def test_another_key_is_refused_and_both_are_named(algorithm: Algorithm, key: bytes) -> None:
    with pytest.raises(WrongKeyError, match=key_id(KEY)[:12]) as refused:
        opened(container(b"weights", algorithm), key)
    assert key_id(key)[:12] in str(refused.value)


@given(algorithms, st.binary(min_size=32, max_size=32).filter(lambda key: key != KEY))
@settings(max_examples=40, deadline=None)
def test_another_key_is_refused_also_when_the_header_pretends(algorithm: Algorithm, key: bytes) -> None:
    whole = container(b"weights", algorithm)
    forged = whole.replace(key_id(KEY).encode(), key_id(key).encode())
    assert forged != whole
    with pytest.raises(DamagedContainerError):
        opened(forged, key)


@given(st.binary(max_size=300), st.booleans())
@settings(max_examples=300, deadline=None)
def test_arbitrary_bytes_are_refused_with_one_error(data: bytes, with_magic: bool) -> None:
    with pytest.raises(DamagedContainerError):
        opened((MAGIC if with_magic else b"") + data, KEY)


def test_a_later_version_is_told_apart_from_damage() -> None:
    later = bytearray(container(b"x"))
    later[len(MAGIC) - 1] = 2
    with pytest.raises(DamagedContainerError, match="version 2"):
        opened(bytes(later), KEY)


def test_two_containers_of_the_same_plaintext_share_no_key_and_no_chunk() -> None:
    first, second = container(bytes(CHUNK)), container(bytes(CHUNK))
    assert read_header(first)[0].salt != read_header(second)[0].salt
    assert first[header_end(first) :] != second[header_end(second) :]


def test_nothing_of_the_plaintext_or_the_key_stands_in_the_container() -> None:
    plain = b"canary-weights-" * 40
    both: tuple[Algorithm, ...] = (GCM, STREAM)
    for algorithm in both:
        whole = container(plain, algorithm)
        assert b"canary" not in whole
        assert KEY not in whole
        assert KEY.hex().encode() not in whole


def test_a_sealer_takes_exactly_the_chunks_that_its_header_promises() -> None:
    contents = Contents("probe", "1.0.0", "0" * 64, "m", "0" * 64, CHUNK)
    sealer = Sealer(new_header(contents, KEY, GCM, CHUNK), KEY)
    with pytest.raises(ValueError, match="chunk 0 of 1"):
        sealer.seal(bytes(CHUNK - 1))
    sealer.seal(bytes(CHUNK))
    with pytest.raises(ValueError, match="chunk 1 of 1"):
        sealer.seal(bytes(CHUNK))


def test_a_header_longer_than_allowed_is_not_read() -> None:
    start = MAGIC + (1 << 30).to_bytes(4, "big")
    with pytest.raises(DamagedContainerError, match="header"):
        read_header(start + bytes(100))
    assert len(start) == FIXED_BYTES


@pytest.mark.parametrize(
    ("cpuinfo", "expected"),
    [
        ("processor : 0\nflags\t\t: fpu vme aes avx\n", GCM),
        ("processor : 0\nFeatures\t: fp asimd aes pmull sha1\n", GCM),
        ("processor : 0\nFeatures\t: fp asimd evtstrm crc32\n", STREAM),
        ("processor : 0\nflags : vaes\n", STREAM),
        ("", STREAM),
    ],
)
def test_aes_is_chosen_where_the_cpu_has_it(cpuinfo: str, expected: Algorithm) -> None:
    assert preferred_algorithm(cpuinfo) == expected
