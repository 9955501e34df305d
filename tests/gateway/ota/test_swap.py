"""Swaps under a live stream: between two samples, also where the new release wants other windows."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from gateway.errors import InferenceError
from gateway.wire.manifest import Plain, WindowInput
from tests.gateway.inference.graphs import dense
from tests.gateway.ota.releases import release, scorer
from tests.gateway.ota.rig import Device
from tests.simulators.release_repository import ReleaseRepository
from tests.simulators.waiting import wait_for

EIGHT = WindowInput(samples=8, hop_samples=8, rate_hz=100.0, features=Plain())
TWO_CHANNELS = WindowInput(samples=4, hop_samples=4, channels=2, rate_hz=100.0, features=Plain())


@pytest.fixture
def device(tmp_path: Path) -> Iterator[Device]:
    made = Device(tmp_path / "device", ReleaseRepository(tmp_path / "repository"), model="probe@1.0.0")
    release(made.releases, "1.0.0", scorer(1.0))
    yield made
    made.stop()


def answered(device: Device, version: str) -> None:
    wait_for(lambda: device.record.versions[-1] == version, seconds=20)


def test_swaps_lose_no_window_and_answer_none_twice(device: Device) -> None:
    release(device.releases, "2.0.0", scorer(1.0))
    device.start()
    for number in range(10):
        device.bay.exchange(device.load(f"probe@{2 - number % 2}.0.0"), keep_old=False)
        wait_for(lambda number=number: len(device.record.gaps) > number, seconds=10)  # type: ignore[misc]
    sequences = device.record.sequences
    assert sequences == [*range(1, len(sequences) + 1)]
    assert device.pipeline.dropped() == {}


def test_a_release_that_wants_other_windows_takes_over_without_a_restart(device: Device) -> None:
    content = dense(np.full((1, 8), 1 / 8, np.float32), np.zeros(1, np.float32))
    release(device.releases, "2.0.0", content, golden=None, spec=EIGHT)
    device.start()
    device.bay.exchange(device.load("probe@2.0.0"), keep_old=False)
    answered(device, "2.0.0")
    versions = device.record.versions
    first = versions.index("2.0.0")
    assert set(versions[:first]) == {"1.0.0"}, "windows that were cut already are answered by the old release"
    assert device.pipeline.dropped() == {}
    device.bay.exchange(device.load("probe@1.0.0"), keep_old=False)
    answered(device, "1.0.0")


def test_one_for_another_source_is_not_taken(device: Device) -> None:
    content = dense(np.full((1, 8), 1 / 8, np.float32), np.zeros(1, np.float32))
    release(device.releases, "2.0.0", content, golden=None, spec=TWO_CHANNELS)
    device.start()
    with pytest.raises(InferenceError, match="wants other samples"):
        device.bay.exchange(device.load("probe@2.0.0"), keep_old=False)
    assert device.serving == "1.0.0"
