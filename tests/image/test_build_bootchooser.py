"""The boot-chooser back end against a boot loader that does what systemd-boot does with counters."""

import os
import re
import subprocess
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from types import ModuleType

import pytest

from image.builder import disk
from image.builder.boards import load

SCRIPT = Path(__file__).parents[2] / "image/overlay/usr/lib/sluice/bootchooser"
BOARDS = Path(__file__).parents[2] / "image/boards"
UBOOT = BOARDS / "coral-devboard/overlay/usr/lib/sluice/bootchooser-board"
JETSON = BOARDS / "jetson/overlay/usr/lib/sluice/bootchooser-board"


def _module() -> ModuleType:
    loader = SourceFileLoader("bootchooser", str(SCRIPT))
    spec = spec_from_loader("bootchooser", loader)
    assert spec is not None
    module = module_from_spec(spec)
    loader.exec_module(module)
    return module


CHOOSER = _module()


class Machine:
    """An ESP, and systemd-boot 257.

    Entries with no tries left come last, then the highest version comes first. The counter of what is booted is counted
    down by renaming. What is asked for once goes before that, by id: the name of the file without the counter.
    """

    def __init__(self, esp: Path) -> None:
        self.esp = esp
        self.folder = esp / "loader/entries"
        self.folder.mkdir(parents=True)
        (self.folder / "sluice-a.conf").write_text("title A\nsort-key sluice\nversion 1\nefi /EFI/sluice/a.efi\n")
        self.slot = "a"

    def run(self, *words: str) -> tuple[int, str]:
        cmdline = f"quiet rauc.slot={self.slot} ro"
        answer: tuple[int, str] = CHOOSER.act(list(words), CHOOSER.Entries(self.esp, 3), cmdline)
        return answer

    def boot(self, once: str = "") -> str:
        """Do what the loader does. once: `LoaderEntryOneShot`."""

        def rank(file: Path) -> tuple[bool, int]:
            match = re.search(r"\+([0-9]+)", file.name)
            version = re.search(r"version ([0-9]+)", file.read_text())
            assert version is not None
            return (match is None or int(match[1]) > 0, int(version[1]))

        by_rank = sorted(self.folder.glob("*.conf"), key=rank, reverse=True)
        asked = [file for file in by_rank if re.sub(r"\+[0-9]+(-[0-9]+)?\.", ".", file.name) == once]
        chosen = [*asked, *by_rank][0]
        match = re.fullmatch(r"sluice-([ab])([^+]*)(?:\+([0-9]+)(?:-([0-9]+))?)?\.conf", chosen.name)
        assert match is not None
        if match[3] is not None:
            left, done = max(int(match[3]) - 1, 0), int(match[4] or 0) + 1
            chosen.rename(self.folder / f"sluice-{match[1]}{match[2]}+{left}-{done}.conf")
        self.slot = match[1]
        return self.slot

    def install(self, slot: str) -> None:
        """What RAUC says to its back end around an installation."""
        self.run("set-state", slot, "bad")
        assert self.run("set-primary", slot)[0] == 0


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_a_new_device_has_one_good_slot_and_it_is_not_on_trial(machine: Machine) -> None:
    assert machine.run("get-primary") == (0, "a")
    assert machine.run("get-state", "a") == (0, "good")
    assert machine.run("get-state", "b") == (0, "bad")
    assert machine.run("on-trial")[0] == 1


def test_an_installed_slot_is_booted_on_trial_and_stays_after_it_is_marked_good(machine: Machine) -> None:
    machine.install("b")
    assert machine.run("get-primary") == (0, "b")
    assert machine.boot() == "b"
    assert machine.run("on-trial")[0] == 0
    machine.run("set-state", "b", "good")
    assert machine.run("on-trial")[0] == 1
    assert [machine.boot() for _ in range(5)] == ["b"] * 5


def test_a_slot_that_runs_is_called_good_only_after_it_was_marked(machine: Machine) -> None:
    machine.install("b")
    assert machine.run("get-state", "b") == (0, "good"), "it can be started"
    machine.boot()
    assert machine.run("get-state", "b") == (0, "bad")
    assert machine.run("get-state", "a") == (0, "good")
    assert machine.run("get-primary") == (0, "b"), "and is started again while it has tries"
    machine.run("set-state", "b", "good")
    assert machine.run("get-state", "b") == (0, "good")


def test_the_entry_that_starts_the_device_is_not_written_anew_where_nothing_changes(machine: Machine) -> None:
    entry = machine.folder / "sluice-a.conf"
    machine.run("set-state", "a", "good")  # at each boot; the builder's may differ from the script's own
    before = entry.stat()
    machine.run("set-state", "a", "good")
    assert entry.stat().st_ino == before.st_ino
    entry.write_text("torn")
    machine.run("set-state", "a", "good")
    assert "efi /EFI/sluice/a.efi" in entry.read_text()


def test_the_entry_of_a_new_device_is_what_the_script_would_write(machine: Machine, tmp_path: Path) -> None:
    board = load(SCRIPT.parents[4], "uefi-amd64")
    (tmp_path / "loader.efi").write_bytes(b"")
    disk.esp_tree(tmp_path / "esp", board, tmp_path / "loader.efi", {}, 0)
    made = (tmp_path / "esp/loader/entries/sluice-a.conf").read_text()
    CHOOSER.Entries(machine.esp, 3).write("a", None, 1)
    assert (machine.folder / "sluice-a.conf").read_text() == made


def test_a_slot_that_never_proves_itself_is_left_after_three_boots(machine: Machine) -> None:
    machine.install("b")
    assert [machine.boot() for _ in range(5)] == ["b", "b", "b", "a", "a"]
    assert machine.run("get-state", "b") == (0, "bad")
    assert machine.run("get-primary") == (0, "a")


def test_a_slot_that_somebody_blesses_at_each_boot_is_never_left(machine: Machine) -> None:
    """The control, and why systemd-bless-boot is masked: it removes the counter whatever the gateway thinks."""
    machine.install("b")
    booted = []
    for _ in range(5):
        booted.append(machine.boot())
        for file in machine.folder.glob("sluice-b-trial+*.conf"):
            file.rename(machine.folder / "sluice-b.conf")
    assert booted == ["b"] * 5


def test_an_installation_that_was_cut_short_leaves_the_old_slot(machine: Machine) -> None:
    machine.install("b")
    machine.boot()
    machine.run("set-state", "b", "good")
    machine.run("set-state", "a", "bad")  # the next installation begins, and the power goes
    assert machine.boot() == "b"
    assert machine.run("get-primary") == (0, "b")


@pytest.mark.parametrize("of_a_trial", ["-trial", ""])  # without: of a script before this one
def test_of_two_entries_that_a_power_cut_left_the_newer_counts_and_the_older_goes(
    machine: Machine, of_a_trial: str
) -> None:
    (machine.folder / f"sluice-b{of_a_trial}+0-3.conf").write_text("version 2\n")
    (machine.folder / f"sluice-b{of_a_trial}+3.conf").write_text("version 3\n")
    assert machine.run("get-state", "b") == (0, "good")
    machine.run("set-state", "b", "good")
    assert sorted(file.name for file in machine.folder.glob("*b*")) == ["sluice-b.conf"]


@pytest.mark.parametrize("boots", range(4))
def test_only_a_slot_that_has_proved_itself_is_started_when_it_is_asked_for_once(machine: Machine, boots: int) -> None:
    """As an initrd does where its own system panics at each start. What is on trial, or was given up, is not meant."""
    machine.install("b")
    for _ in range(boots):
        assert machine.boot() == "b"
    machine.slot = "a"
    machine.run("set-primary", "a")  # it was withdrawn, however many tries it has
    assert machine.boot("sluice-b.conf") == "a"
    machine.run("set-state", "b", "good")
    assert machine.boot("sluice-b.conf") == "b"
    assert machine.boot() == "a"


def test_going_back_by_hand_needs_no_trial_of_what_was_good(machine: Machine) -> None:
    machine.install("b")
    machine.boot()
    machine.run("set-state", "b", "good")
    machine.run("set-primary", "a")
    assert machine.boot() == "a"
    assert machine.run("on-trial")[0] == 1


def test_a_good_slot_that_is_tried_is_on_trial_and_left_again_for_the_one_that_was(
    machine: Machine,
) -> None:
    """As image/overlay/usr/lib/sluice/emergency does where the slot that has proved itself cannot start any more."""
    machine.run("set-state", "b", "bad")
    machine.run("set-primary", "b")
    machine.boot()
    machine.run("set-state", "b", "good")
    assert machine.run("get-state", "a") == (0, "good")
    assert machine.run("try", "a") == (0, "")
    assert [machine.boot() for _ in range(5)] == ["a", "a", "a", "b", "b"]
    assert machine.run("on-trial")[0] == 1
    assert machine.run("get-state", "a") == (0, "bad")


# ---- U-Boot --------------------------------------------------------------------------------------------

_PRINTENV = """#!/bin/sh
[ "$1" = -n ] && sed -n "s/^$2=//p" @ | grep .
"""
_SETENV = """#!/bin/sh
put() { sed -i "/^$1=/d" @; echo "$1=$2" >>@; }
# As libubootenv 0.3 does: a line of a script that has no `=` is left out.
if [ "$1" = -s ]; then while IFS= read -r line; do case $line in *=*) put "${line%%=*}" "${line#*=}" ;; esac; done
else put "$1" "$2"; fi
"""


class UBoot:
    """A board of which U-Boot has the environment, with the two programs that change it stood in for."""

    def __init__(self, folder: Path) -> None:
        self.file, self.cmdline = folder / "environment", folder / "cmdline"
        self.file.touch()
        (folder / "bin").mkdir()
        for name, text in (("fw_printenv", _PRINTENV), ("fw_setenv", _SETENV)):
            (folder / "bin" / name).write_text(text.replace("@", str(self.file)))
            (folder / "bin" / name).chmod(0o755)
        self._environment = {"PATH": f"{folder / 'bin'}:{os.environ['PATH']}", "SLUICE_CMDLINE": str(self.cmdline)}
        self.boot()

    def run(self, *words: str) -> tuple[int, str]:
        done = subprocess.run([UBOOT, *words], env=self._environment, capture_output=True, text=True, check=False)
        return done.returncode, done.stdout.strip()

    def boot(self) -> str:
        """Do what boot.cmd does with the environment."""
        values = {"BOOT_ORDER": "a b", "BOOT_a_LEFT": "99", "BOOT_b_LEFT": "0"}
        values |= dict(line.split("=", 1) for line in self.file.read_text().splitlines())
        slot = next(each for each in values["BOOT_ORDER"].split() if int(values[f"BOOT_{each}_LEFT"]) > 0)
        if values[f"BOOT_{slot}_LEFT"] != "99":
            values[f"BOOT_{slot}_LEFT"] = str(int(values[f"BOOT_{slot}_LEFT"]) - 1)
        self.file.write_text("".join(f"{name}={value}\n" for name, value in values.items()))
        self.cmdline.write_text(f"quiet rauc.slot={slot} ro\n")
        return slot


def test_on_a_board_with_u_boot_a_slot_is_tried_left_kept_and_chosen_again(tmp_path: Path) -> None:
    board = UBoot(tmp_path)
    assert board.run("get-current") == board.run("get-primary") == (0, "a")
    assert board.run("on-trial")[0] == 1
    board.run("set-state", "b", "bad")
    board.run("set-primary", "b")
    assert board.run("get-primary") == (0, "b")
    assert [board.boot() for _ in range(4)] == ["b", "b", "b", "a"]
    assert board.run("get-state", "b") == (0, "bad")
    board.run("set-primary", "b")
    assert board.boot() == "b"
    assert board.run("on-trial")[0] == 0
    assert board.run("get-state", "b") == (0, "bad"), "it runs, and was not marked yet"
    board.run("set-state", "b", "good")
    assert board.run("get-state", "b") == (0, "good")
    assert [board.boot() for _ in range(5)] == ["b"] * 5
    board.run("set-primary", "a")
    assert board.boot() == "a"
    assert board.run("on-trial")[0] == 1, "what was good needs no trial"
    assert board.run("try", "b")[0] == 0
    assert [board.boot() for _ in range(4)] == ["b", "b", "b", "a"], "but where it is to prove itself again"


_NVBOOTCTRL = """#!/bin/sh
case $3 in
get-current-slot) cat @/current ;;
set-active-boot-slot) echo "$4" >@/next; rm -f "@/unbootable-$4" ;;
is-slot-bootable) test ! -e "@/unbootable-$4" ;;
set-slot-as-unbootable) touch "@/unbootable-$4" ;;
*) exit 1 ;;
esac
"""


def test_on_a_jetson_a_slot_is_on_trial_until_it_was_marked_good_and_then_no_more(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/nvbootctrl").write_text(_NVBOOTCTRL.replace("@", str(tmp_path)))
    (tmp_path / "bin/nvbootctrl").chmod(0o755)
    (tmp_path / "efi").mkdir()
    environment = {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "SLUICE_ESP": str(tmp_path / "efi")}

    def run(*words: str) -> tuple[int, str]:
        done = subprocess.run([JETSON, *words], env=environment, capture_output=True, text=True, check=False)
        return done.returncode, done.stdout.strip()

    (tmp_path / "current").write_text("0\n")
    assert run("get-current") == (0, "a")
    assert run("on-trial")[0] == 0
    run("set-state", "a", "good")
    assert run("on-trial")[0] == 1
    assert run("get-state", "a") == (0, "good")
    run("set-state", "b", "bad")
    assert run("get-state", "b") == (0, "bad")
    run("set-primary", "b")
    assert (tmp_path / "next").read_text() == "1\n"
    (tmp_path / "current").write_text("1\n")
    assert (run("on-trial")[0], run("get-state", "b")) == (0, (0, "bad"))
    run("set-state", "b", "good")
    assert (run("on-trial")[0], run("get-state", "b")) == (1, (0, "good"))
    assert run("try", "b")[0] == 0
    assert run("on-trial")[0] == 0, "it is to prove itself again"
    run("set-state", "b", "good")
    # The next installation into that slot begins with this.
    run("set-state", "b", "bad")
    assert run("on-trial")[0] == 0
    assert [run(*words)[0] for words in ((), ("get-state", "c"), ("set-state", "a", "fine"))] == [2, 2, 2]


@pytest.mark.parametrize(
    "words", [(), ("get-state",), ("get-state", "c"), ("set-state", "a", "fine"), ("erase",), ("try",), ("try", "c")]
)
def test_what_is_not_understood_changes_nothing(machine: Machine, words: tuple[str, ...]) -> None:
    before = {file.name: file.read_text() for file in machine.folder.iterdir()}
    assert machine.run(*words)[0] == 2
    assert {file.name: file.read_text() for file in machine.folder.iterdir()} == before
