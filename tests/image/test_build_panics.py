"""The initrd's count of panics, on a folder in the place of the firmware's variables."""

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from image.builder import initrd, layers
from tests.image.test_build_scripts import SCRIPTS, UNITS, called

INITRD = SCRIPTS.parents[3] / "initrd" / "91sluice-panics"
CRASH = "cfc8fc79-be2e-4ddc-97f0-9f98bfe298a0"
LOADER = "4a67b082-0a4c-41cf-b6c7-440b29bb8c4f"
PARTS_OF_A_DUMP = 3
SHELLS = [shell for shell in ("dash", "busybox") if shutil.which(shell)] or ["sh"]


@dataclass
class Firmware:
    """Variables of a firmware, over several starts of the slot that the boot loader takes."""

    folder: Path
    slot: str = "a"
    on_trial: bool = False
    shell: str = "sh"
    started: list[str] = field(default_factory=list)
    _now: int = 1_770_000_000

    def __post_init__(self) -> None:
        self.variables.mkdir(parents=True)

    @property
    def variables(self) -> Path:
        return self.folder / "efivars"

    def dumps(self) -> set[str]:
        """Return the times of the panics of which there are dumps, all of whose parts are there."""
        files = [file.name.split("-") for file in self.variables.glob("dump-*")]
        firsts = {words[4] for words in files if words[2:4] == ["1", "1"]}
        assert len([words for words in files if words[3] == "1"]) == PARTS_OF_A_DUMP * len(firsts)
        return firsts

    def panic(self, *, oops: bool = False) -> None:
        """Leave what the kernel does (drivers/firmware/efi/efi-pstore.c): after an oops a panic is the second dump."""
        self._now += 31
        for count in range(1, 3 if oops else 2):
            for part in range(1, PARTS_OF_A_DUMP + 1):
                later = self._now + (part > 1)  # a second may end meanwhile
                (self.variables / f"dump-type0-{part}-{count}-{later}-C-{CRASH}").write_bytes(b"\7\0\0\0words")

    def start(self) -> str:
        """Start the slot that the loader takes; returns that of which the root is read then."""
        asked = self.variables / f"LoaderEntryOneShot-{LOADER}"
        slot = self.slot
        if asked.exists():
            entry = asked.read_bytes()[4:].decode("utf-16-le").rstrip("\0")
            slot = entry.removeprefix("sluice-").removesuffix(".conf")
            asked.unlink()  # as the loader does before it takes it
        counted = self.variables / f"LoaderBootCountPath-{LOADER}"
        counted.unlink(missing_ok=True)
        if self.on_trial:
            counted.write_bytes(b"\6\0\0\0")
        bin_folder = self.folder / "bin"
        bin_folder.mkdir(exist_ok=True)
        restarted = self.folder / "restarted"
        restarted.unlink(missing_ok=True)
        (bin_folder / "systemctl").write_text(f'#!/bin/sh\necho "$*" >{restarted}\n')
        (bin_folder / "modprobe").write_text("#!/bin/sh\n")
        for each in bin_folder.iterdir():
            each.chmod(0o755)
        (self.folder / "cmdline").write_text(f"ro rauc.slot={slot} quiet\n")
        words = [self.shell, "sh"] if self.shell == "busybox" else [self.shell]
        done = subprocess.run(
            [*words, str(INITRD / "panics.sh")],
            env={
                "PATH": f"{bin_folder}:{os.environ['PATH']}",
                "SLUICE_EFIVARS": str(self.variables),
                "SLUICE_SCRATCH": str(self.folder / "scratch"),
                "SLUICE_CMDLINE": str(self.folder / "cmdline"),
                "SLUICE_CONSOLE": str(self.folder / "console"),
            },
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        if restarted.exists():
            assert restarted.read_text() == "--force reboot\n"
            return self.start()
        self.started.append(slot)
        return slot


@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.parametrize("slot", ["a", "b"])
def test_a_system_that_panicked_three_times_is_left_for_the_other_slot(tmp_path: Path, slot: str, shell: str) -> None:
    firmware = Firmware(tmp_path, slot, shell=shell)
    other = {"a": "b", "b": "a"}[slot]
    for _ in range(3):
        assert firmware.start() == slot
        firmware.panic()
    assert firmware.start() == other
    assert (firmware.variables / f"SluiceLeft-{CRASH}").read_bytes() == b"\7\0\0\0" + slot.encode()
    assert f"slot {slot} has ended in a panic 3 times" in (tmp_path / "console").read_text()
    assert firmware.dumps() == {str(firmware._now)}, "the last one is there to be told of"


def test_a_start_that_was_healthy_begins_the_count_anew_and_an_oops_counts_once(tmp_path: Path) -> None:
    firmware = Firmware(tmp_path)
    for _ in range(4):
        for _ in range(2):
            firmware.panic(oops=True)
            assert firmware.start() == "a"
        for file in firmware.variables.glob("dump-*"):
            file.unlink()  # as systemd-pstore.service does, which sluice-good.service starts
    assert not list(firmware.variables.glob("Sluice*"))


def test_where_the_other_slot_panics_too_neither_is_left_for_good(tmp_path: Path) -> None:
    firmware = Firmware(tmp_path)
    for _ in range(12):
        firmware.start()
        firmware.panic()
        assert len(firmware.dumps()) <= 3, "the firmware has little space"
    assert set(firmware.started) == {"a", "b"}


def test_the_tries_of_a_system_on_trial_are_the_boot_loaders_and_do_not_count_against_the_one_before(
    tmp_path: Path,
) -> None:
    firmware = Firmware(tmp_path, "b", on_trial=True)
    for _ in range(3):
        assert firmware.start() == "b"
        firmware.panic()
    firmware.slot, firmware.on_trial = "a", False
    assert firmware.start() == "a"
    assert not (firmware.variables / f"SluiceLeft-{CRASH}").exists()


def test_without_a_dump_nothing_happens(tmp_path: Path) -> None:
    firmware = Firmware(tmp_path)
    assert firmware.start() == "a"
    assert list(firmware.variables.iterdir()) == []


CHOOSER = 'case "$*" in get-current) echo b ;; "set-primary b") ;; *) exit 2 ;; esac'


@pytest.mark.parametrize("name", ["bootchooser", "bootchooser-board"])
@pytest.mark.parametrize(("left", "is_taken"), [("a", True), ("b", False)])
def test_the_slot_that_was_started_instead_is_the_one_that_starts_from_then_on(
    tmp_path: Path, left: str, name: str, *, is_taken: bool
) -> None:
    variable = tmp_path / "SluiceLeft"
    variable.write_bytes(b"\7\0\0\0" + left.encode())
    programs = {name: CHOOSER, "on-trial": "exit 1"}
    calls = called(tmp_path, "left", programs=programs, SLUICE_LEFT=str(variable), SLUICE_LIB=str(tmp_path / "bin"))
    assert (f"{name} set-primary b" in calls) is is_taken
    assert not variable.exists()


@pytest.mark.parametrize("content", [b"", b"\7\0\0\0"])
def test_a_variable_that_names_no_slot_chooses_none(tmp_path: Path, content: bytes) -> None:
    """Such as where the firmware had no space for it."""
    variable = tmp_path / "SluiceLeft"
    variable.write_bytes(content)
    programs = {"bootchooser": CHOOSER}
    calls = called(tmp_path, "left", programs=programs, SLUICE_LEFT=str(variable), SLUICE_LIB=str(tmp_path / "bin"))
    assert not [call for call in calls if "set-" in call]
    assert not variable.exists()


@pytest.mark.parametrize(("words", "is_there"), [("set-primary a", False), ("try a", False), ("get-state a", True)])
def test_whoever_chooses_a_slot_meanwhile_is_not_overruled(tmp_path: Path, words: str, *, is_there: bool) -> None:
    """Such as an update that was installed before the slot that runs was found healthy."""
    variable, chooser = tmp_path / "SluiceLeft", tmp_path / "bootchooser"
    variable.write_bytes(b"\7\0\0\0a")
    (tmp_path / "efi/loader/entries").mkdir(parents=True)
    (tmp_path / "tries").write_text("3\n")
    (tmp_path / "cmdline").write_text("rauc.slot=b\n")
    text = (SCRIPTS / "bootchooser").read_text()
    assert f'"/sys/firmware/efi/efivars/SluiceLeft-{CRASH}"' in text
    places = {
        f"/sys/firmware/efi/efivars/SluiceLeft-{CRASH}": str(variable),
        '"/efi"': f'"{tmp_path}/efi"',
        "/proc/cmdline": f"{tmp_path}/cmdline",
        "/usr/lib/sluice/tries": f"{tmp_path}/tries",
    }
    for old, new in places.items():
        text = text.replace(old, new)
    chooser.write_text(text)
    subprocess.run([sys.executable, chooser, *words.split()], check=True, capture_output=True)
    assert variable.exists() is is_there


def test_the_parts_that_count_panics_fit_each_other() -> None:
    """The initrd has them; dumps stay until a start was healthy, and go into the log then."""
    assert "sluice-panics" in initrd._MODULES
    assert "systemd-pstore.service" in layers.DISABLED
    assert "systemctl start systemd-pstore.service" in (UNITS / "sluice-good.service").read_text()
    assert "Storage=journal" in (SCRIPTS.parents[2] / "etc/systemd/pstore.conf.d/10-sluice.conf").read_text()
    good = (UNITS / "sluice-good.service").read_text()
    assert good.index("mark-good") < good.index("/usr/lib/sluice/left") < good.index("systemd-pstore")
    assert f"SluiceLeft-{CRASH}" in (SCRIPTS / "left").read_text()
    assert "SluiceLeft-$crash" in (INITRD / "panics.sh").read_text()
    assert "systemd-veritysetup@root.service" in (INITRD / "sluice-panics.service").read_text().split("Before=")[1]


def test_a_system_that_is_never_healthy_does_not_add_its_panics_up_over_months() -> None:
    """It starts each time, and may run for weeks: such as a proven one whose camera has died."""
    assert "sluice-lasted.timer" in layers.ENABLED
    assert "OnBootSec=1h" in (UNITS / "sluice-lasted.timer").read_text()
    assert "RuntimeMaxSec=40min" in (UNITS / "sluice-health.service").read_text(), "that has decided before"
    assert "ExecStart=/usr/bin/systemctl start systemd-pstore.service" in (UNITS / "sluice-lasted.service").read_text()
