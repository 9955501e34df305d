"""boot.cmd and bootchooser-board of the Coral board under a real U-Boot: which slot is started, and when it is left.

Real: U-Boot (Debian's build for QEMU's arm64 machine), its commands, its environment across resets and power cuts,
boot.scr as the image builder wraps it, the boot partition as it lays it out, RAUC's back end with libubootenv's tools.
Stood in for: the kernel images (an EFI application that says its slot and waits), the board's own build of U-Boot, eMMC
(virtio, and flash for the environment), RAUC (the two calls it makes around an installation).
"""

import re
import subprocess
import tomllib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from hil.loopback.children import RigError
from hil.rig import uboot
from hil.rig.disk import flip_bit
from hil.rig.uboot import UBootMachine
from image.builder import boards

IMAGE = Path(__file__).parents[2] / "image"
BOARD = boards.load(IMAGE, "coral-devboard")
SCRIPT = (BOARD.folder / "boot.cmd").read_bytes()
CHOOSER = BOARD.folder / "overlay/usr/lib/sluice/bootchooser-board"
SLOTS = {slot: uboot.says(f"slot {slot} runs") for slot in "ab"}
SAVED = "Saving Environment"

pytestmark = pytest.mark.image

New = Callable[..., UBootMachine]


@pytest.fixture
def new(tmp_path: Path) -> Iterator[New]:
    """Make boards, switched off. Their kernels: both slots', if nothing else is said."""
    made: list[UBootMachine] = []

    def board(kernels: Mapping[str, bytes] = SLOTS, script: bytes = SCRIPT) -> UBootMachine:
        try:
            made.append(UBootMachine(tmp_path / f"board-{len(made)}", BOARD, script, kernels))
        except RigError as error:
            pytest.skip(str(error))
        return made[-1]

    # Debian 12's 7.2.18: "Flash buffer write timeout" after the first block of a sector, and no valid environment.
    try:
        told = subprocess.run([uboot.QEMU, "--version"], capture_output=True, text=True, check=False).stdout
    except FileNotFoundError:
        pytest.skip(f"{uboot.QEMU} is not installed: apt-get install qemu-system-arm")
    version = re.search(r"version ([0-9]+)\.", told)
    if version is None or int(version[1]) < 9:
        pytest.skip("this QEMU loses what U-Boot writes to flash; take that of Debian 13, or of bookworm-backports")
    try:
        yield board
    finally:
        for each in made:
            each.close()


def boot(machine: UBootMachine, *, reset: bool = False) -> str:
    """Start a board, after a power cut or by its reset button; returns the slot that runs."""
    if reset:
        machine.reset()
    else:
        machine.cut_power()
        machine.power_on()
    said = machine.wait_for(" runs")
    found = re.search(r"slot ([ab]) runs", said)
    assert found is not None, said
    return found[1]


def used(machine: UBootMachine, order: str, a: int, b: int) -> UBootMachine:
    """Give a board the environment of one that has been in use; it is off."""
    boot(machine)  # the rest of the environment is U-Boot's own
    machine.cut_power()
    machine.set_variables({"BOOT_ORDER": order, "BOOT_a_LEFT": str(a), "BOOT_b_LEFT": str(b)})
    return machine


def left(machine: UBootMachine) -> tuple[str | None, str | None]:
    return machine.variable("BOOT_a_LEFT"), machine.variable("BOOT_b_LEFT")


def say(machine: UBootMachine, *words: str, running: str) -> str:
    """Run RAUC's back end while slot `running` runs."""
    machine.cut_power()
    status, text = machine.run_chooser(CHOOSER, *words, running=running)
    assert status == 0, words
    return text


def install(machine: UBootMachine, slot: str, *, running: str) -> None:
    """What RAUC says to its back end around an installation, and what the bundle's hook puts on the boot partition."""
    say(machine, "set-state", slot, "bad", running=running)
    machine.change_files(BOARD, {f"EFI/sluice/{slot}.efi": SLOTS[slot]})
    say(machine, "set-primary", slot, running=running)


def test_a_new_board_starts_slot_a_and_writes_its_environment_once(new: New) -> None:
    machine = new({"a": SLOTS["a"]})
    assert boot(machine) == "a"
    assert SAVED in machine.said()
    assert left(machine) == ("99", "0")
    assert boot(machine, reset=True) == "a"
    assert boot(machine) == "a"
    assert SAVED not in machine.said(), "a power cut while it is written loses it"
    assert say(machine, "get-primary", running="a") == "a"
    assert say(machine, "get-state", "a", running="a") == "good"


def test_each_start_takes_a_try_of_a_new_slot_and_after_the_last_one_the_old_slot_runs(new: New) -> None:
    machine = new({"a": SLOTS["a"]})
    assert boot(machine) == "a"
    install(machine, "b", running="a")
    seen = [(boot(machine, reset=reset), *left(machine)) for reset in (False, True, False, True)]
    assert seen == [("b", "99", "2"), ("b", "99", "1"), ("b", "99", "0"), ("a", "99", "0")]
    assert say(machine, "get-state", "b", running="a") == "bad"
    assert boot(machine) == "a"


def test_a_slot_that_was_marked_good_stays(new: New) -> None:
    machine = used(new(), "a b", 99, 0)
    install(machine, "b", running="a")
    assert boot(machine) == "b"
    say(machine, "set-state", "b", "good", running="b")
    assert [boot(machine, reset=reset) for reset in (False, True, True, True, True)] == ["b"] * 5
    assert left(machine) == ("99", "99")
    assert SAVED not in machine.said()


def test_with_a_script_that_does_not_count_a_new_slot_is_tried_for_ever(new: New) -> None:
    """The control."""
    lines = [line for line in SCRIPT.splitlines(keepends=True) if b"setexpr" not in line]
    assert len(lines) == len(SCRIPT.splitlines()) - 2
    machine = used(new(script=b"".join(lines)), "a b", 99, 0)
    install(machine, "b", running="a")
    assert [boot(machine, reset=reset) for reset in (False, True, True, True, True)] == ["b"] * 5


@pytest.mark.parametrize("proves_itself", [True, False])
def test_after_the_environment_was_damaged_either_slot_has_to_prove_itself(new: New, proves_itself: bool) -> None:
    """Slot b was the good one. Slot a may be older and still fine, or half written over by an installation."""
    machine = used(new(), "b a", 0, 99)
    assert boot(machine) == "b"
    machine.cut_power()
    flip_bit(machine.environment, 100)
    assert boot(machine) == "a"
    assert "bad CRC" in machine.said()
    assert left(machine) == ("2", "3")
    if proves_itself:
        say(machine, "set-state", "a", "good", running="a")
        assert [boot(machine, reset=reset) for reset in (False, True, True)] == ["a"] * 3
    else:
        assert [boot(machine, reset=True) for _ in range(3)] == ["a", "a", "b"]


@pytest.mark.parametrize("kernel", [None, uboot.fails(), b"torn"])
def test_a_slot_that_cannot_be_started_is_left_even_if_it_was_good_once(new: New, kernel: bytes | None) -> None:
    machine = used(new(), "b a", 99, 99)
    assert boot(machine) == "b"
    machine.cut_power()
    machine.change_files(BOARD, {"EFI/sluice/b.efi": kernel})
    assert boot(machine) == "a", "it has started again by itself meanwhile"
    assert machine.said().count(SAVED) == 4, "once to be counted, and its three tries"
    assert left(machine) == ("99", "0")


def test_when_no_slot_has_tries_left_both_are_tried_again(new: New) -> None:
    machine = used(new(), "b a", 0, 0)
    assert boot(machine) == "b"
    assert "No slot has tries left" in machine.said()
    assert left(machine) == ("3", "2")


def test_the_boot_command_that_the_board_is_built_with_finds_the_script_and_the_slot(new: New) -> None:
    """Where nothing sets devtype, devnum, distro_bootpart and kernel_addr_r: imx8mq_phanbell has none of them.

    The variables beside it are those of U-Boot's include/configs/imx8mq_phanbell.h, with virtio for mmc, and loadaddr
    this machine's CONFIG_SYS_LOAD_ADDR, as there it is that board's: a bare `source` takes the script from there.
    """
    asked = tomllib.loads((BOARD.folder / "board.toml").read_text())["vendor"][0]["what"]
    command = re.search(r'CONFIG_BOOTCOMMAND="(.*)"', asked)
    assert command is not None
    machine = new(script=SCRIPT.replace(b'"mmc ', b'"virtio '))
    machine.set_variables(
        {
            "bootcmd": f"virtio scan; {command[1]}",
            "bootdelay": "0",
            "loadaddr": "0x40200000",
            "mmcdev": "0",
            "mmcpart": "1",
            "script": "boot.scr",
            "loadbootscript": "fatload virtio ${mmcdev}:${mmcpart} ${loadaddr} ${script}",
            "bootscript": "echo Running bootscript from mmc ...; source",
            "BOOT_ORDER": "b a",
            "BOOT_a_LEFT": "99",
            "BOOT_b_LEFT": "1",
        }
    )
    assert [boot(machine), boot(machine, reset=True)] == ["b", "a"]
    assert "Running bootscript" in machine.said()
