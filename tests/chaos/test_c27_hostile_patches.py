"""C27: patches that are signed and bad: the full file is fetched instead, if the link can carry that."""

import bz2
import os
import struct
from collections.abc import Callable, Iterator

import bsdiff4
import numpy as np
import pytest

from gateway.ota.patch import BSDIFF
from gateway.wire.manifest import Plain, WindowInput
from tests.chaos.experiment import Experiment
from tests.gateway.inference.graphs import dense
from tests.gateway.ota.releases import release
from tests.gateway.ota.rig import Device, digest
from tests.simulators.release_repository import ReleaseRepository, difference
from tests.simulators.waiting import wait_for

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(180)]

SPEC = WindowInput(samples=256, hop_samples=256, rate_hz=100.0, features=Plain())
OLD = dense(np.random.default_rng(1).normal(size=(1, 256)).astype(np.float32), np.zeros(1, np.float32))
NEW = dense(np.random.default_rng(1).normal(size=(1, 256)).astype(np.float32), np.full(1, 0.01, np.float32))


def bomb(size: int) -> bytes:
    """Return a patch of a few hundred bytes that makes `size` bytes, 1 GiB of a thousand."""
    control, diff = bz2.compress(struct.pack("<qqq", 0, size, 0)), bz2.compress(b"")
    compressor = bz2.BZ2Compressor()
    extra = b"".join(compressor.compress(bytes(1 << 20)) for _ in range(max(1, size >> 20))) + compressor.flush()
    return struct.pack("<8sqqq", b"BSDIFF40", len(control), len(diff), size) + control + diff + extra


PATCHES: dict[str, Callable[[], bytes]] = {
    "of another base": lambda: difference(BSDIFF, OLD[:300] + bytes(b ^ 1 for b in OLD[300:400]) + OLD[400:], NEW),
    "with another result": lambda: difference(BSDIFF, OLD, NEW[:-8] + bytes(8)),
    "bomb": lambda: bomb(256 << 20),
    "bomb that names the right size": lambda: bomb(256 << 20)[:24] + struct.pack("<q", len(NEW)) + bomb(256 << 20)[32:],
    "cut short": lambda: difference(BSDIFF, OLD, NEW)[:-200],
    "noise": lambda: os.urandom(300),
}


@pytest.fixture
def device(experiment: Experiment) -> Iterator[Device]:
    repository = ReleaseRepository(experiment.directory / "repository", packed=False)
    made = Device(experiment.directory / "device", repository)
    release(made.releases, "1.0.0", OLD, golden=None, spec=SPEC)
    repository.plain[digest(OLD)] = OLD
    yield made
    made.stop()


def give(device: Device, patch: bytes | None) -> None:
    folder = release(device.repository.directory / "plain", "2.0.0", NEW, golden=None, spec=SPEC)
    device.repository.publish(folder, bases=(digest(OLD),), patch=patch)
    device.start()
    device.desire("2.0.0", token=1)


def stored(device: Device) -> bool:
    return ("probe", "2.0.0") in device.there()


def fetched(device: Device) -> list[str]:
    return ["patch" if ".patch." in path else "full" for path in device.repository.fetched]


@pytest.mark.parametrize("kind", PATCHES)
def test_c27_a_bad_patch_costs_its_bytes_and_nothing_else(device: Device, kind: str) -> None:
    give(device, PATCHES[kind]())
    wait_for(lambda: stored(device), seconds=60, what="the release")
    assert [*dict.fromkeys(fetched(device))] == ["patch", "full"]
    wait_for(lambda: device.slot.told is not None and "patch could not be used" in device.slot.told.reason, seconds=30)
    artefact = device.store().find("probe@2.0.0").manifest.artefacts[0]
    with device.vault.open_weights(device.models.directory / "probe/2.0.0", artefact) as weights:
        assert bytes(weights.view) == NEW


def test_c27_on_a_thin_link_the_full_file_is_not_fetched_behind_somebodys_back(device: Device) -> None:
    patch = PATCHES["with another result"]()
    device.room = len(patch) + 1000
    assert device.room < len(NEW)
    give(device, patch)
    device.reaches("waiting", "2.0.0", "budget", seconds=60)
    assert "full" not in fetched(device)
    assert not stored(device)


def test_c27_a_good_patch_is_enough(device: Device) -> None:
    """The control: with a patch that is right, the full file is not fetched."""
    give(device, None)
    wait_for(lambda: stored(device), seconds=60, what="the release")
    assert {*fetched(device)} == {"patch"}
    wait_for(lambda: device.slot.told is not None and device.slot.told.full_bytes > device.slot.told.fetched_bytes > 0)


@pytest.mark.parametrize("kind", ["of another base", "with another result"])
def test_c27_control_whoever_believes_a_patch_gets_another_model(kind: str) -> None:
    made = bsdiff4.patch(OLD, PATCHES[kind]())
    assert len(made) == len(NEW)
    assert made != NEW


def test_c27_control_whoever_unpacks_before_counting_takes_what_the_bomb_makes() -> None:
    patch = bomb(64 << 20)
    assert len(patch) < 1000
    assert len(bsdiff4.patch(OLD, patch)) == 64 << 20


@pytest.mark.parametrize("kind", ["cut short", "noise"])
def test_c27_control_whoever_has_no_other_way_is_left_without_the_release(kind: str) -> None:
    with pytest.raises((ValueError, OSError, EOFError)):
        bsdiff4.patch(OLD, PATCHES[kind]())
