"""The boot-chooser back end against a boot loader that does what systemd-boot does with counters."""

import re
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).parents[2] / "image/overlay/usr/lib/sluice/bootchooser"


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
    down by renaming.
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

    def boot(self) -> str:
        def rank(file: Path) -> tuple[bool, int]:
            match = re.search(r"\+([0-9]+)", file.name)
            version = re.search(r"version ([0-9]+)", file.read_text())
            assert version is not None
            return (match is None or int(match[1]) > 0, int(version[1]))

        chosen = max(self.folder.glob("*.conf"), key=rank)
        match = re.fullmatch(r"sluice-([ab])(?:\+([0-9]+)(?:-([0-9]+))?)?\.conf", chosen.name)
        assert match is not None
        if match[2] is not None and int(match[2]) > 0:
            done = int(match[3] or 0) + 1
            chosen.rename(self.folder / f"sluice-{match[1]}+{int(match[2]) - 1}-{done}.conf")
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
        for file in machine.folder.glob("sluice-b+*.conf"):
            file.rename(machine.folder / "sluice-b.conf")
    assert booted == ["b"] * 5


def test_an_installation_that_was_cut_short_leaves_the_old_slot(machine: Machine) -> None:
    machine.install("b")
    machine.boot()
    machine.run("set-state", "b", "good")
    machine.run("set-state", "a", "bad")  # the next installation begins, and the power goes
    assert machine.boot() == "b"
    assert machine.run("get-primary") == (0, "b")


def test_of_two_entries_that_a_power_cut_left_the_newer_counts_and_the_older_goes(machine: Machine) -> None:
    (machine.folder / "sluice-b+0-3.conf").write_text("version 2\n")
    (machine.folder / "sluice-b+3.conf").write_text("version 3\n")
    assert machine.run("get-state", "b") == (0, "good")
    machine.run("set-state", "b", "good")
    assert sorted(file.name for file in machine.folder.glob("*b*")) == ["sluice-b.conf"]


def test_going_back_by_hand_needs_no_trial_of_what_was_good(machine: Machine) -> None:
    machine.install("b")
    machine.boot()
    machine.run("set-state", "b", "good")
    machine.run("set-primary", "a")
    assert machine.boot() == "a"
    assert machine.run("on-trial")[0] == 1


@pytest.mark.parametrize("words", [(), ("get-state",), ("get-state", "c"), ("set-state", "a", "fine"), ("erase",)])
def test_what_is_not_understood_changes_nothing(machine: Machine, words: tuple[str, ...]) -> None:
    before = {file.name: file.read_text() for file in machine.folder.iterdir()}
    assert machine.run(*words)[0] == 2
    assert {file.name: file.read_text() for file in machine.folder.iterdir()} == before
