"""The virtual board: how it is started, and that what is one board's own is not another's. No image is needed."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from hil.loopback.children import RigError
from hil.rig.machine import NIC, Board, Machine
from hil.rig.qmp import QmpError

LACKING = [name for name in ("qemu-system-x86_64", "qemu-img", "swtpm", "swtpm_setup") if shutil.which(name) is None]
LACKING += [] if any(Path("/usr/share/OVMF").glob("OVMF_CODE*.fd")) else ["ovmf"]
pytestmark = pytest.mark.skipif(bool(LACKING), reason=f"not installed: {', '.join(LACKING)}")


@pytest.fixture
def board(tmp_path: Path) -> Iterator[Machine]:
    """A board with an empty disk: its firmware looks for something to boot, for ever."""
    image = tmp_path / "empty.raw"
    with image.open("wb") as out:
        out.truncate(16 << 20)
    made = Machine(Board(image=image, directory=tmp_path / "board", disk_bytes=32 << 20, memory_mib=256))
    try:
        yield made
    finally:
        made.close()


def test_the_processors_are_emulated_whatever_the_machine_offers(board: Machine) -> None:
    words = board.command()
    assert words[words.index("-accel") + 1].startswith("tcg")
    assert not [word for word in words if "kvm" in word]


def test_a_board_is_kept_and_brought_back_with_its_tpm_and_its_variables(board: Machine) -> None:
    board.flash()
    board.power_on()
    board.save("early")
    board.qmp.command("set_link", name=NIC, up=False)
    board.restore("early")
    assert board.qmp.command("query-status")["status"] == "running"
    with pytest.raises(QmpError, match="loadvm never"):
        board.restore("never")
    board.cut_power()
    assert not board.running
    # The power was cut, the snapshot is on the disk.
    board.power_on()
    board.restore("early")
    assert board.qmp.command("query-status")["running"]


def test_every_flash_makes_another_device_inside(board: Machine) -> None:
    board.flash()
    first = {file.name: file.read_bytes() for file in (board.directory / "tpm").iterdir() if file.name != ".lock"}
    board.flash()
    second = {file.name: file.read_bytes() for file in (board.directory / "tpm").iterdir() if file.name != ".lock"}
    assert first.keys() == second.keys()
    assert first != second


def test_two_boards_differ_in_serial_number_and_address(board: Machine, tmp_path: Path) -> None:
    other = Machine(Board(image=board.board.image, directory=tmp_path / "other"))
    assert board.mac != other.mac
    assert board.mac.startswith("52:")
    assert board.board.serial != other.board.serial


def test_what_is_missing_is_named(board: Machine, tmp_path: Path) -> None:
    board.board.image.unlink()
    with pytest.raises(RigError, match="make image TARGET=uefi-amd64"):
        board.flash()
    with pytest.raises(RigError, match="the virtual board is off"):
        board.qmp.command("query-status")
