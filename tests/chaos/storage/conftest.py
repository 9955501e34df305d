"""Fixtures of the storage experiments."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hil.loopback.rig import Rig
from tests.chaos.experiment import Experiment
from tests.chaos.storage import fusedisk
from tests.chaos.storage.fusedisk import FuseDisk
from tests.e2e.conftest import sites

Site = Callable[..., Rig]
MakeDisk = Callable[..., FuseDisk]


@pytest.fixture
def fuse_disk(experiment: Experiment) -> Iterator[MakeDisk]:
    """Make recorded disks; they are healed and unmounted at the end. Skips where there can be none."""
    if reason := fusedisk.missing():
        pytest.skip(f"no recorded disk here: {reason}")
    disks: list[FuseDisk] = []

    def make(size_mib: int = 24, base: Path | None = None) -> FuseDisk:
        disk = FuseDisk(experiment.directory / f"disk-{len(disks)}", size_mib, base=base)
        disks.append(disk)
        disk.open()
        return disk

    try:
        yield make
    finally:
        for disk in disks:
            disk.close()


@pytest.fixture
def site(experiment: Experiment, fuse_disk: MakeDisk) -> Iterator[Site]:
    """Make rigs of a broker, a bridge and a gateway; they are gone before their disks are."""
    yield from sites(experiment.directory)
