"""How long a pipeline is without an answer when its model is swapped, and what applying a patch costs."""

import hashlib
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
import zstandard

from gateway.inference.model import Model
from gateway.ota.patch import BSDIFF, ZSTD, Recipe, make
from gateway.values import Capture, SampleBlock
from tests.bench.figures import elapsed, percentiles
from tests.bench.table import Row, at_most, row
from tests.gateway.ota.releases import release, scorer
from tests.gateway.ota.rig import NAME, Device, Record, Sensor
from tests.simulators.release_repository import ReleaseRepository, difference
from tests.simulators.waiting import wait_for

FPS = 30.0
BETWEEN: Final = 5
"""Windows that the new model answers before the next swap."""
BUFFERS: Final = 32
"""Windows that a driver keeps for who comes late (VIDEO_MAX_FRAME of V4L2): a busy machine loses none by that."""
GAP_P99_MS: Final = 10.0
"""Aim for the time that a swap adds to the period of the stream."""
GAP_MAX_MS: Final = 100.0
"""Bound for the longest of them: three windows at that pace."""


class Stream(Sensor):
    """Makes a window every so often, whether somebody takes it or not, as a sensor does behind a driver with buffers.

    What came while it was closed, and what the buffers could not keep, is counted in `missed`.
    """

    def __init__(self, fps: float) -> None:
        super().__init__(every_seconds=1 / fps)
        self.missed = 0
        self._due: float | None = None  # when the next window comes

    def captures(self) -> Iterator[Capture]:
        """Yield blocks as they come due, until closed."""
        self._closed = threading.Event()
        if self._due is not None:
            self._pass_over(keep=0)  # a closed device keeps nothing
        while True:
            self._due = self._due or time.monotonic() + self.every_seconds
            if self._closed.wait(max(0.0, self._due - time.monotonic())):
                return
            self._pass_over(keep=BUFFERS)
            self._due += self.every_seconds
            block = np.full((4, self.channels), self.value, np.float32)
            yield SampleBlock(self.name, time.time_ns(), time.monotonic_ns(), 100.0, block)

    def _pass_over(self, keep: int) -> None:
        waiting = int((time.monotonic() - (self._due or 0.0)) / self.every_seconds)
        if (lost := waiting - keep) > 0:
            self.missed += lost
            self._due = (self._due or 0.0) + lost * self.every_seconds


Exchange = Callable[[Device, Model], None]


def in_place(device: Device, model: Model) -> None:
    """Swap as updates do: from the next sample on the new model answers."""
    device.bay.exchange(model, keep_old=False)


def swap_many(swaps: int, directory: Path, fps: float = FPS, exchange: Exchange = in_place) -> dict[str, Any]:
    """Swap to and fro between two releases under a live stream; every window must get exactly one answer.

    The next model is loaded and warmed up beside the stream; `BETWEEN` windows pass from one swap to the next, so that
    a gap stands beside the usual time between two answers.
    """
    device = Device(directory, ReleaseRepository(directory / "repository"))
    device.sensor = stream = Stream(fps)
    for version in ("1.0.0", "2.0.0"):
        release(device.releases, version, scorer(1.0))
    device.bay.settings = device.settings = _named(device, "1.0.0")
    device.start()
    try:
        wait_for(lambda: len(device.record.versions) > 10, seconds=30)
        for number in range(swaps):
            wanted = ("2.0.0", "1.0.0")[number % 2]
            exchange(device, device.load(f"{NAME}@{wanted}"))
            passed = [wanted] * BETWEEN
            wait_for(lambda passed=passed: device.record.versions[-BETWEEN:] == passed, seconds=20)  # type: ignore[misc]
        sequences = list(device.record.sequences)
        others = _late_without_a_swap(device.record, 1 / fps)
        dropped = device.pipeline.dropped()
    finally:
        device.stop()
    unanswered = max(0, sequences[-1] - sequences[0] + 1 - len(set(sequences)))
    lost = {"source": stream.missed, "unanswered": unanswered, **dropped}
    gaps = device.record.gaps
    return {
        "swaps": swaps,
        "fps": fps,
        "windows": len(sequences),
        "lost": sum(lost.values()),
        "lost_by": lost,
        "answered_twice": len(sequences) - len(set(sequences)),
        "gaps_seen": len(gaps),
        "gap_ms": percentiles([gap * 1e3 for gap in gaps]) if gaps else {},
        "others_ms": percentiles([late * 1e3 for late in others]) if others else {},
    }


def _late_without_a_swap(record: Record, period_seconds: float) -> list[float]:
    """Return by how many seconds answers came late between which nothing was swapped: what the machine itself does."""
    answers = list(zip(record.versions, record.times, strict=False))  # one may come meanwhile
    return [
        max(0.0, after[1] - before[1] - period_seconds) for before, after in pairwise(answers) if before[0] == after[0]
    ]


def _named(device: Device, version: str) -> Any:
    return msgspec.structs.replace(device.settings, model=f"{NAME}@{version}")


def gaps(swaps: int = 100) -> dict[str, Any]:
    """Measure the gaps of some swaps, beyond the period of the stream."""
    with tempfile.TemporaryDirectory() as directory:
        figures = swap_many(swaps, Path(directory))
    gap = figures["gap_ms"]
    stream = f"{figures['swaps']} swaps under a stream of {figures['fps']:g} windows/s"
    return {
        "rows": [
            at_most(f"{stream}: windows without an answer", figures["lost"], 0),
            at_most(f"{stream}: windows answered twice", figures["answered_twice"], 0),
            at_most(f"{stream}: time without a model, p99", gap["p99"], GAP_P99_MS, unit="ms"),
            at_most(f"{stream}: the same, longest", gap["max"], GAP_MAX_MS, unit="ms"),
        ],
        **figures,
    }


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
    figures["rows"] = [_patch_row(megabytes, name, figures[name]) for name in packed]
    return figures


def _patch_row(megabytes: int, name: str, found: dict[str, float | int]) -> Row:
    return row(
        f"applying a patch to {megabytes} MB, {name}: speed with the start of the child, and its peak memory beyond one"
        f" that only starts ({found['bare_child_peak_bytes'] / 1e6:.0f} MB)",
        f"{found['megabytes_per_second']:g} MB/s, {found['beyond_the_bare_child_bytes'] / 1e6:.1f} MB",
    )


def _measured(method: str, content: bytes, base: bytes | None, after: bytes) -> dict[str, float | int]:
    recipe = Recipe("bench", method, len(after), hashlib.sha256(after).hexdigest())
    packed_fd, base_fd = _memory(content), _memory(base) if base is not None else None
    peak, bare = _peak(method, packed_fd, base_fd, len(after)), _peak()
    start = min(elapsed(_start_child) for _ in range(3))
    seconds = []
    for _ in range(3):
        began = time.perf_counter()
        make(recipe, packed_fd, base_fd).close()
        seconds.append(time.perf_counter() - began)
    for fd in (packed_fd, base_fd):
        if fd is not None:
            os.close(fd)
    return {
        "patch_bytes": len(content),
        "seconds": round(min(seconds), 3),
        "megabytes_per_second": round(len(after) / min(seconds) / 1e6, 1),
        "of_that_start_of_the_child_seconds": round(start, 3),
        "megabytes_per_second_beyond_the_start": round(len(after) / max(min(seconds) - start, 1e-3) / 1e6, 1),
        "child_peak_bytes": peak,  # with the pages of base and result, which are shared with the caller
        "bare_child_peak_bytes": bare,
        "beyond_the_bare_child_bytes": peak - bare,
        "base_and_result_bytes": len(after) + (len(base) if base is not None else 0),
    }


def _start_child() -> None:
    subprocess.run([sys.executable, "-I", "-c", "import gateway.ota.patch_child"], check=True)


def _peak(method: str = "", packed_fd: int = -1, base_fd: int | None = None, size: int = 0) -> int:
    """Return the most memory that a child had resident; without arguments, of one that only starts."""
    command = [sys.executable, "-I", str(Path(__file__).with_name("patch_peak.py"))]
    if not method:
        return int(subprocess.run(command, check=True, capture_output=True).stdout)
    output = os.memfd_create("bench")
    handed = [fd for fd in (packed_fd, base_fd, output) if fd is not None]
    numbers = ["-" if base_fd is None else str(base_fd), str(packed_fd), str(output), str(size)]
    try:
        run = subprocess.run(
            [*command, method, *numbers, str(1 << 30), "120"], pass_fds=handed, check=True, capture_output=True
        )
    finally:
        os.close(output)
    return int(run.stdout)


def _memory(content: bytes) -> int:
    fd = os.memfd_create("bench", os.MFD_CLOEXEC)
    view = memoryview(content)
    while view:
        view = view[os.write(fd, view) :]
    return fd
