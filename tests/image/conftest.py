"""The virtual board alone: these tests damage disks, cut power at chosen moments, and compare devices.

They need no cloud. `make test-image` gives them the image of uefi-amd64 in its variant for rigs; `SLUICE_RIG_IMAGE`
names another folder with one. With `SLUICE_RIG_STATE` the board that has booted once is kept there for the next time.
"""

import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from hil.rig.device import Device
from hil.rig.machine import Board, Machine, boots
from hil.rig.writes import written_operations

REPO = Path(__file__).parents[2]
IMAGE = Path(os.environ.get("SLUICE_RIG_IMAGE", REPO / "var" / "image" / "uefi-amd64"))
DISK = IMAGE / "disk-rig.raw"
BOOT_SECONDS = 1800.0


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


@dataclass(frozen=True, slots=True)
class FirstBoot:
    """A board that has booted once, with a snapshot `booted` of that; what its first boot took."""

    machine: Machine
    seconds: float
    writes: int


@pytest.fixture(scope="session")
def first_boot(image: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[FirstBoot]:
    """A board that has booted once. It is off, or what the last test has left; `booted` gives it as it was then."""
    place = os.environ.get("SLUICE_RIG_STATE")
    folder = Path(place) / "image-board" if place else tmp_path_factory.mktemp("booted") / "board"
    notes, of = folder / "kept.json", [str(DISK), DISK.stat().st_mtime_ns]
    known = json.loads(notes.read_text()) if notes.exists() else {}
    if known.get("of") == of:
        made = Machine(Board(image=DISK, directory=folder, serial=known["serial"]))
    else:
        made = Machine(Board(image=DISK, directory=folder))
        known = {"of": of, "serial": made.board.serial}
    try:
        if "writes" not in known:
            made.flash()
            begin = time.monotonic()
            up(made)
            known |= {"seconds": time.monotonic() - begin, "writes": written_operations(made)}
            made.save("booted")
            notes.write_text(json.dumps(known))
        yield FirstBoot(made, known["seconds"], known["writes"])
    finally:
        made.close()


@pytest.fixture
def booted(first_boot: FirstBoot) -> Iterator[Machine]:
    """The board that has booted once, as it was then; off again when the test is over: processors are emulated."""
    machine = first_boot.machine
    machine.cut_power()
    machine.power_on()
    machine.restore("booted")
    try:
        yield machine
    finally:
        machine.cut_power()


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
