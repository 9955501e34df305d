"""How long a pipeline is without an answer when its model is swapped, and what applying a patch costs."""

import hashlib
import os
import resource
import tempfile
import time
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import zstandard

from gateway.ota.patch import BSDIFF, ZSTD, Recipe, make
from tests.bench.figures import percentiles
from tests.gateway.ota.releases import release, scorer
from tests.gateway.ota.rig import NAME, Device
from tests.simulators.release_repository import ReleaseRepository, difference
from tests.simulators.waiting import wait_for

FPS = 30.0


def swap_many(swaps: int, directory: Path, fps: float = FPS) -> dict[str, Any]:
    """Swap to and fro between two releases under a live stream; every window must get exactly one answer."""
    device = Device(directory, ReleaseRepository(directory / "repository"))
    device.sensor.every_seconds = 1 / fps
    for version in ("1.0.0", "2.0.0"):
        release(device.releases, version, scorer(1.0))
    device.bay.settings = device.settings = _named(device, "1.0.0")
    device.start()
    try:
        wait_for(lambda: len(device.record.versions) > 10, seconds=30)
        for number in range(swaps):
            model = device.load(f"{NAME}@{('2.0.0', '1.0.0')[number % 2]}")
            device.bay.exchange(model, keep_old=False)
            wait_for(lambda number=number: len(device.record.gaps) > number, seconds=10)  # type: ignore[misc]
        sequences = device.record.sequences
        dropped = device.pipeline.dropped()
    finally:
        device.stop()
    missing = sequences[-1] - sequences[0] + 1 - len(set(sequences))
    return {
        "swaps": len(device.record.gaps),
        "fps": fps,
        "windows": len(sequences),
        "lost": missing + sum(dropped.values()),
        "answered_twice": len(sequences) - len(set(sequences)),
        "gap_ms": percentiles([gap * 1e3 for gap in device.record.gaps]),
    }


def _named(device: Device, version: str) -> Any:
    return msgspec.structs.replace(device.settings, model=f"{NAME}@{version}")


def gaps(swaps: int = 100) -> dict[str, Any]:
    """Measure the gaps of some swaps."""
    with tempfile.TemporaryDirectory() as directory:
        return swap_many(swaps, Path(directory))


def patch_apply(megabytes: int = 8) -> dict[str, Any]:
    """Apply patches to a file of weights of which one in a thousand bytes has changed, and unpack the full file."""
    rng = np.random.default_rng(1)
    old = np.clip(rng.normal(0, 20, megabytes << 20), -127, 127).astype(np.int8)
    new = old.copy()
    new[rng.integers(0, len(new), len(new) // 1000)] += 1
    before, after = old.tobytes(), new.tobytes()
    packed = {
        BSDIFF: difference(BSDIFF, before, after),
        ZSTD: difference(ZSTD, before, after),
        "zstd-full": zstandard.ZstdCompressor(level=19).compress(after),
    }
    figures: dict[str, Any] = {"megabytes": megabytes}
    for name, content in packed.items():
        base = None if name == "zstd-full" else before
        figures[name] = _measured(ZSTD if name == "zstd-full" else name, content, base, after)
    return figures


def _measured(method: str, content: bytes, base: bytes | None, after: bytes) -> dict[str, float | int]:
    recipe = Recipe("bench", method, len(after), hashlib.sha256(after).hexdigest())
    packed_fd, base_fd = _memory(content), _memory(base) if base is not None else None
    seconds = []
    for _ in range(3):
        began = time.perf_counter()
        make(recipe, packed_fd, base_fd).close()
        seconds.append(time.perf_counter() - began)
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    for fd in (packed_fd, base_fd):
        if fd is not None:
            os.close(fd)
    return {
        "patch_bytes": len(content),
        "seconds": round(min(seconds), 3),
        "megabytes_per_second": round(len(after) / min(seconds) / 1e6, 1),
        "children_peak_bytes": peak,  # of all children so far: the largest
    }


def _memory(content: bytes) -> int:
    fd = os.memfd_create("bench", os.MFD_CLOEXEC)
    view = memoryview(content)
    while view:
        view = view[os.write(fd, view) :]
    return fd
