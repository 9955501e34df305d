"""The virtual board alone: these tests damage disks, cut power at chosen moments, and compare devices.

They need no cloud. `make test-image` gives them the image of uefi-amd64 in its variant for rigs.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest

from hil.rig.device import Device
from hil.rig.machine import Board, Machine, boots

REPO = Path(__file__).parents[2]
IMAGE = REPO / "var" / "image" / "uefi-amd64"
DISK = IMAGE / "disk-rig.raw"
BOOT_SECONDS = 900.0


class MachineShell:
    """The guest agent of a machine in the form that `Device` takes."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine

    def run(self, command: str, timeout: float = 60.0) -> tuple[list[str], list[str], int]:
        answer = self._machine.agent.run(command, seconds=timeout)
        return answer.out.splitlines(), answer.err.splitlines(), answer.code


@pytest.fixture(scope="session")
def image() -> Path:
    """The folder of the image; without it, nothing here can be said."""
    if not DISK.is_file():
        pytest.skip(f"{DISK} is not there: make image TARGET=uefi-amd64 ARGS=--rig")
    return IMAGE


@pytest.fixture
def machine(image: Path, tmp_path: Path) -> Iterator[Machine]:
    """A board as it leaves the factory, switched off."""
    made = Machine(Board(image=DISK, directory=tmp_path / "board"))
    made.flash()
    try:
        yield made
    finally:
        made.close()
        for file in tmp_path.rglob("*.raw"):
            file.unlink()


@pytest.fixture(scope="session")
def first_boot(image: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    """A board that has booted once, with a snapshot `booted` of that. Not to be changed without `restored`."""
    made = Machine(Board(image=DISK, directory=tmp_path_factory.mktemp("booted") / "board"))
    made.flash()
    try:
        up(made)
        made.save("booted")
        yield made
    finally:
        made.close()


@pytest.fixture
def booted(first_boot: Machine) -> Machine:
    """The board that has booted once, as it was then."""
    if not first_boot.running:
        first_boot.power_on()
    first_boot.restore("booted")
    return first_boot


def up(machine: Machine, *, seconds: float = BOOT_SECONDS) -> Device:
    """Switch a board on, and wait until its boot is finished."""
    machine.power_on()
    boots(machine, seconds=seconds)
    device = Device(MachineShell(machine))
    device.eventually("systemctl is-active -q multi-user.target", "the boot is finished", seconds=seconds)
    return device


def device_of(machine: Machine) -> Device:
    """Return the device of a board that has booted."""
    return Device(MachineShell(machine))
