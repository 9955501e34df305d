"""Patches give back what they were made of, and the smallest way is taken."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloud_bridge.registry.errors import RegistryError
from cloud_bridge.registry.packing import MAX_RATIO, METHODS, Method, Patch, apply, best_patch, pack, unpack
from gateway.ota import patch as device
from tests.cloud_bridge.registry.kit import weights


@settings(max_examples=40, deadline=None)
@given(base=st.binary(max_size=2000), content=st.binary(max_size=2000))
@pytest.mark.parametrize("method", list(METHODS))
def test_a_patch_gives_back_what_it_was_made_of(method: Method, base: bytes, content: bytes) -> None:
    assert apply(Patch(method, METHODS[method](base, content)), base, len(content)) == content


@settings(max_examples=40, deadline=None)
@given(content=st.binary(max_size=4000))
def test_what_is_packed_comes_out_again(content: bytes) -> None:
    kind, packed = pack(content)
    assert len(packed) <= len(content)
    assert unpack(kind, packed, len(content)) == content


def test_a_packed_file_of_another_size_is_refused() -> None:
    kind, packed = pack(bytes(1000))
    for size in (999, 1001):
        with pytest.raises(RegistryError):
            unpack(kind, packed, size)


def test_the_smallest_patch_is_taken_and_none_that_is_not_worth_it() -> None:
    base, content = weights(1), weights(1, 0.1)
    full = len(pack(content)[1])
    best = best_patch(base, content, full)
    assert best is not None
    assert len(best.content) == min(len(make(base, content)) for make in METHODS.values())
    assert best_patch(weights(2), content, full) is None


def test_what_devices_would_take_for_a_bomb_travels_as_it_is() -> None:
    assert MAX_RATIO == device.MAX_RATIO
    zeros = bytes(10_000_000)
    assert pack(zeros) == ("", zeros)
    packed, content = pack(weights(1) + bytes(100_000))  # the control
    assert packed == "zstd"
    assert len(content) < 100_000
    # Of a patch its base counts; one that no device would take is not made.
    assert best_patch(bytes(20_000), zeros, len(zeros)) is None
    assert best_patch(bytes(200_000), zeros, len(zeros)) is not None
