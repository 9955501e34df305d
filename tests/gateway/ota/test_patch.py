"""Patches: applied in a child, under limits, believed by digest alone."""

import bz2
import hashlib
import os
import signal
import struct
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from gateway.ota.patch import BSDIFF, MAX_RATIO, ZSTD, PatchError, Recipe, make
from gateway.ota.patch_child import BadPatchError, Output, apply_bsdiff, sum_of_bytes
from gateway.vault.memory import PlaintextMemory
from tests.simulators.release_repository import difference

OLD = np.random.default_rng(1).integers(0, 256, 300_000, dtype=np.uint8).tobytes()
NEW = OLD[:100_000] + b"something else" * 100 + bytes(b ^ 1 for b in OLD[100_000:100_200]) + OLD[100_200:]


def memory(content: bytes) -> int:
    fd = os.memfd_create("test", os.MFD_CLOEXEC)
    os.write(fd, content)
    return fd


def recipe(method: str, result: bytes = NEW) -> Recipe:
    return Recipe("probe 2.0.0", method, len(result), hashlib.sha256(result).hexdigest())


def result_of(made: PlaintextMemory) -> bytes:
    with made.map() as mapping:
        content = bytes(mapping[:])
    made.close()
    return content


@pytest.mark.parametrize("method", [BSDIFF, ZSTD])
def test_a_patch_makes_the_new_file_of_the_old(method: str) -> None:
    patch = difference(method, OLD, NEW)
    assert len(patch) < len(NEW) // 50
    assert result_of(make(recipe(method), memory(patch), memory(OLD))) == NEW


def test_a_compressed_file_is_unpacked_without_a_base() -> None:
    assert result_of(make(recipe(ZSTD), memory(zstandard.compress(NEW)))) == NEW


@pytest.mark.parametrize("seed", range(6))
def test_patches_of_the_reference_implementation_are_understood(seed: int) -> None:
    rng = np.random.default_rng(seed)
    old = rng.integers(0, 4, int(rng.integers(1, 5000)), dtype=np.uint8).tobytes()
    pieces = [old[a : a + int(rng.integers(0, 900))] for a in rng.integers(0, len(old), 8)]
    new = b"".join([*pieces, rng.integers(0, 256, 50, dtype=np.uint8).tobytes(), *pieces[::-1]])
    fd = memory(b"")
    apply_bsdiff(memoryview(old), memoryview(difference(BSDIFF, old, new)), Output(fd, len(new)))
    assert os.pread(fd, len(new) + 1, 0) == new
    os.close(fd)


@pytest.mark.parametrize("method", [BSDIFF, ZSTD])
def test_the_wrong_base_is_noticed_by_the_digest(method: str) -> None:
    patch = difference(method, OLD, NEW)
    with pytest.raises(PatchError):
        make(recipe(method), memory(patch), memory(bytes(len(OLD))))


@pytest.mark.parametrize("method", [BSDIFF, ZSTD])
def test_every_cut_and_every_flipped_byte_is_refused_or_makes_the_right_file(method: str) -> None:
    patch = difference(method, OLD, NEW)
    rng = np.random.default_rng(3)
    for position in [0, 8, 16, 24, 33, *(int(p) for p in rng.integers(0, len(patch), 5))]:
        bad = bytearray(patch)
        bad[position % len(bad)] ^= 0x55
        try:
            made = make(recipe(method), memory(bytes(bad)), memory(OLD))
        except PatchError:
            continue
        assert result_of(made) == NEW
    with pytest.raises(PatchError):
        make(recipe(method), memory(patch[: len(patch) // 2]), memory(OLD))


def bomb(size: int) -> bytes:
    """Return a patch that makes `size` zeros out of less than a thousand bytes a GiB."""
    control = bz2.compress(struct.pack("<qqq", 0, size, 0))
    compressor = bz2.BZ2Compressor()
    extra = b"".join(compressor.compress(bytes(1 << 20)) for _ in range(size >> 20)) + compressor.flush()
    diff = bz2.compress(b"")
    return struct.pack("<8sqqq", b"BSDIFF40", len(control), len(diff), size) + control + diff + extra


def test_a_bomb_is_refused_before_it_makes_anything() -> None:
    packed = bomb(64 << 20)
    assert len(packed) < 1000
    with pytest.raises(PatchError, match=f"more than {MAX_RATIO} times"):
        make(Recipe("bomb", BSDIFF, 64 << 20, "0" * 64), memory(packed), memory(OLD))


def test_a_bomb_that_lies_about_its_size_makes_no_more_than_was_announced() -> None:
    packed = zstandard.compress(bytes(512 << 20))
    with pytest.raises(PatchError, match="more than was announced"):
        make(Recipe("bomb", ZSTD, 1 << 20, "0" * 64), memory(packed), memory(OLD))


def test_without_the_bound_the_bomb_would_go_off() -> None:
    """The control: the same bytes, taken at their word, become what they say."""
    with zstandard.ZstdDecompressor().stream_reader(zstandard.compress(bytes(64 << 20))) as reader:
        assert sum(len(block) for block in iter(lambda: reader.read(1 << 20), b"")) == 64 << 20


def test_steps_that_make_nothing_are_no_way_to_run_for_ever() -> None:
    control = bz2.compress(struct.pack("<qqq", 0, 0, 0) * 1_000_000)
    patch = struct.pack("<8sqqq", b"BSDIFF40", len(control), 14, len(OLD)) + control + bz2.compress(b"") * 2
    with pytest.raises(BadPatchError, match="make nothing"):
        apply_bsdiff(memoryview(OLD), memoryview(patch), Output(memory(b""), len(OLD)))


def test_memory_is_limited(tmp_path: Path) -> None:
    """A frame that asks for a window of 2 GiB is refused; the child never takes so much."""
    parameters = zstandard.ZstdCompressionParameters.from_level(1, window_log=31)
    compressor = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    packed = compressor.compress(os.urandom(1000)) + compressor.flush()
    with pytest.raises(PatchError):
        make(Recipe("bomb", ZSTD, 1000, "0" * 64), memory(packed))


def slow_patch() -> bytes:
    """Return a patch whose application takes long: a step for each byte."""
    steps = struct.pack("<qqq", 0, 1, 0) * (1 << 20)
    control, extra = bz2.compress(steps), bz2.compress(os.urandom(1 << 20))
    diff = bz2.compress(b"")
    return struct.pack("<8sqqq", b"BSDIFF40", len(control), len(diff), 1 << 20) + control + diff + extra


def test_a_patch_whose_child_is_killed_for_memory_makes_room_for_the_full_file() -> None:
    me, stopped = threading.get_native_id(), threading.Event()

    def kill() -> None:
        while not stopped.wait(0.02):
            for pid in Path(f"/proc/self/task/{me}/children").read_text().split():
                os.kill(int(pid), signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        with pytest.raises(PatchError, match="was killed"):
            make(Recipe("slow", BSDIFF, 1 << 20, "0" * 64), memory(slow_patch()), memory(OLD))
    finally:
        stopped.set()
        killer.join()


def test_an_unknown_method_is_named() -> None:
    with pytest.raises(PatchError, match="xdelta"):
        make(recipe("xdelta"), memory(b"x"), memory(OLD))


@given(st.binary(max_size=600), st.binary(max_size=600))
def test_strings_of_bytes_are_added_byte_by_byte_and_no_carry_reaches_the_next(one: bytes, other: bytes) -> None:
    size = min(len(one), len(other))
    expected = bytes((a + b) % 256 for a, b in zip(one, other, strict=False))
    assert sum_of_bytes(memoryview(one)[:size], other[:size]) == expected


def test_the_child_that_applies_patches_starts_without_numpy() -> None:
    loaded = "import sys, {}; print('numpy' in sys.modules)"
    for module, expected in (("gateway.ota.patch_child", "False"), ("gateway.ota.canary_child", "True")):
        run = subprocess.run([sys.executable, "-c", loaded.format(module)], check=True, capture_output=True, text=True)
        assert run.stdout.strip() == expected, module
