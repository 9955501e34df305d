"""Every udev rule does to its device what it is for, and nothing to any other: judged by udev's own engine."""

import os
import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.udev.rules_run import OWN_RULES, REPOSITORY, Outcome, evaluate, groups, missing

pytestmark = pytest.mark.skipif(bool(missing()), reason=missing() or "all is here")

USB2 = "/sys/devices/pci0000:00/0000:00:14.0/usb2"
USB1 = "/sys/devices/pci0000:00/0000:00:14.0/usb1"
PCI = "/sys/devices/pci0000:00/0000:00:1c.0/0000:01:00.0"
SOC = "/sys/devices/platform/soc@0/30800000.bus"
I2C = f"{SOC}/30a20000.i2c/i2c-1"
CAPTURE = 'ENV{ID_V4L_CAPABILITIES}=":capture:"'


@dataclass(frozen=True)
class Case:
    """A recorded device, and what udev is to make of it."""

    rule: str  # which file is for it: 60-sluice-<rule>.rules
    recording: str
    device: str
    kind: str = ""  # empty: it is none that a pipeline could use
    group: str = ""
    links: frozenset[str] = frozenset()
    action: str = "add"
    answers: str = ""

    def __str__(self) -> str:
        return f"{self.recording}-{self.device.rpartition('/')[2]}-{self.action}"

    def run(self, work: Path, rules: list[Path] | None = None) -> Outcome:
        """Evaluate the rules, ours or others."""
        return evaluate(
            work,
            self.recording,
            self.device,
            action=self.action,
            rules=rules or (),
            answers=self.answers,
        )


CASES = [
    Case(
        "accelerator", "coral-usb-before-firmware", f"{USB2}/2-1", "accelerator", "plugdev",
        frozenset({"accelerator", "accelerator-pci-0000:00:14.0-usb-0:1"}),
    ),
    Case(
        "accelerator", "coral-usb", f"{USB2}/2-1", "accelerator", "plugdev",
        frozenset({"accelerator", "accelerator-pci-0000:00:14.0-usb-0:1"}),
    ),
    Case(
        "accelerator", "coral-pcie", f"{PCI}/apex/apex_0", "accelerator", "apex",
        frozenset({"accelerator", "accelerator-pci-0000:01:00.0"}),
    ),
    Case("accelerator", "coral-pcie", PCI),
    Case(
        "camera", "camera-uvc", f"{USB1}/1-2/1-2:1.0/video4linux/video0", "camera", "video",
        frozenset({"camera-pci-0000:00:14.0-usb-0:2:1.0"}), answers=CAPTURE,
    ),
    Case(
        "camera", "camera-uvc", f"{USB1}/1-2/1-2:1.0/video4linux/video0", "camera", "video",
        frozenset({"camera-pci-0000:00:14.0-usb-0:2:1.0"}),
    ),
    # The node for metadata, with and without what the driver says of it; and a second picture of a depth camera.
    Case("camera", "camera-uvc", f"{USB1}/1-2/1-2:1.0/video4linux/video1", group="video"),
    Case(
        "camera", "camera-uvc", f"{USB1}/1-2/1-2:1.0/video4linux/video1", "camera", "video",
        frozenset({"camera-pci-0000:00:14.0-usb-0:2:1.0-1"}), answers=CAPTURE,
    ),
    Case(
        "camera", "camera-csi", f"{SOC}/30a90000.csi/video4linux/video0", "camera", "video",
        frozenset({"camera-platform-30a90000.csi"}), answers=CAPTURE,
    ),
    Case(
        "camera", "camera-csi", "/sys/devices/platform/soc@0/38310000.video-codec/video4linux/video1",
        group="video", answers='ENV{ID_V4L_CAPABILITIES}=":video_output:"',
    ),
    Case("camera", "camera-csi", f"{SOC}/30a90000.csi/media0", group="video"),
    Case(
        "serial", "serial-ftdi", f"{USB1}/1-4/1-4:1.0/ttyUSB0/tty/ttyUSB0", "serial", "dialout",
        frozenset({"serial-pci-0000:00:14.0-usb-0:4:1.0-port0", "serial-FTDI_Dual_RS232-HS_FT7ABCDE-if00-port0"}),
    ),
    Case(
        "serial", "serial-ftdi", f"{USB1}/1-4/1-4:1.1/ttyUSB1/tty/ttyUSB1", "serial", "dialout",
        frozenset({"serial-pci-0000:00:14.0-usb-0:4:1.1-port0", "serial-FTDI_Dual_RS232-HS_FT7ABCDE-if01-port0"}),
    ),
    Case(
        "serial", "serial-ch340", f"{USB1}/1-5/1-5:1.0/ttyUSB2/tty/ttyUSB2", "serial", "dialout",
        frozenset({"serial-pci-0000:00:14.0-usb-0:5:1.0-port0"}),
    ),
    Case(
        "serial", "serial-acm", f"{USB1}/1-6/1-6:1.0/tty/ttyACM0", "serial", "dialout",
        frozenset({
            "serial-pci-0000:00:14.0-usb-0:6:1.0", "serial-Arduino_Arduino_Uno_85436323631351D09222-if00",
        }),
    ),
    Case(
        "serial", "serial-uart", f"{SOC}/30880000.serial/tty/ttymxc2", "serial", "dialout",
        frozenset({"serial-platform-30880000.serial"}),
    ),
    Case("serial", "serial-uart", f"{SOC}/30860000.serial/tty/ttymxc0", group="dialout"),  # the console
    Case("serial", "serial-uart", "/sys/devices/platform/serial8250/tty/ttyS3", group="dialout"),  # no hardware
    Case(
        "iio", "iio-adxl345", f"{I2C}/1-0053/iio:device0", "iio", "iio",
        frozenset({"iio-adxl345-1-0053", "iio-motor_left"}),
    ),
    Case("iio", "iio-adxl345", f"{I2C}/1-0053/trigger0"),
    Case("gpio", "gpio-expander", f"{I2C}/1-0020/gpiochip5", "gpio", "gpio", frozenset({"gpio-1-0020"})),
    Case(
        "gpio", "gpio-expander", "/sys/devices/platform/soc@0/30000000.bus/30200000.gpio/gpiochip0", "gpio", "gpio",
        frozenset({"gpio-30200000.gpio"}),
    ),
    Case("gpio", "gpio-expander", "/sys/devices/platform/soc@0/30000000.bus/30200000.gpio/gpio/gpiochip512"),
    Case("tpm", "tpm", "/sys/devices/LNXSYSTM:00/LNXSYBUS:00/MSFT0101:00/tpmrm/tpmrm0", "tpm", "tss"),
]  # fmt: skip
UNTOUCHED = [
    Case("tpm", "tpm", "/sys/devices/LNXSYSTM:00/LNXSYBUS:00/MSFT0101:00/tpm/tpm0"),
    Case("", "watchdog", "/sys/devices/pci0000:00/0000:00:06.0/watchdog/watchdog0"),
    Case("", "usb-keyboard", f"{USB1}/1-9"),
    Case("", "coral-usb-on-weak-usb2-hub", f"{USB1}/1-3"),
]


def numbered(cases: list[Case]) -> list[object]:
    return [pytest.param(case, id=f"{at:02}-{case}") for at, case in enumerate(cases)]


@pytest.mark.parametrize("case", numbered(CASES))
def test_a_device_gets_its_group_and_its_lasting_names(case: Case, tmp_path: Path) -> None:
    outcome = case.run(tmp_path)
    assert outcome.links == case.links, outcome.log
    assert outcome.properties.get("SLUICE_KIND", "") == case.kind
    # systemd makes a .device unit of what has this tag, under each of its names; the gateway listens for the other.
    assert ({"sluice", "systemd"} <= outcome.tags) == bool(case.kind)
    assert ("sluice" in outcome.tags) == bool(case.kind)
    if case.group:
        assert (outcome.group, oct(outcome.mode)) == (case.group, "0o660"), outcome.log


@pytest.mark.parametrize("case", numbered([case for case in CASES if case.kind]))
def test_without_its_rule_a_device_has_neither_name_nor_tag(case: Case, tmp_path: Path) -> None:
    others = [rule for rule in OWN_RULES.glob("*.rules") if rule.name != f"60-sluice-{case.rule}.rules"]
    outcome = case.run(tmp_path, others)
    assert not outcome.links
    assert "SLUICE_KIND" not in outcome.properties
    assert "sluice" not in outcome.tags
    if case.group not in ("video", "dialout"):  # udev's own rules know these
        assert outcome.group != case.group or oct(outcome.mode) != "0o660"


@pytest.mark.parametrize("case", numbered(UNTOUCHED))
def test_what_is_none_of_ours_is_left_as_it_was(case: Case, tmp_path: Path) -> None:
    (tmp_path / "with").mkdir()
    (tmp_path / "without").mkdir()
    none = tmp_path / "60-none.rules"
    none.write_text("# no rule\n")
    with_rules, without = case.run(tmp_path / "with"), case.run(tmp_path / "without", [none])
    assert not with_rules.links
    assert (with_rules.group, with_rules.mode, with_rules.runs) == (without.group, without.mode, without.runs)
    assert with_rules.tags == without.tags
    assert "60-sluice" not in "".join(line for line in with_rules.log.splitlines() if "Reading" not in line)


@pytest.mark.parametrize("recording", ["coral-usb-before-firmware", "coral-usb"])
def test_a_coral_is_never_put_to_sleep(recording: str, tmp_path: Path) -> None:
    awake = Case("accelerator", recording, f"{USB2}/2-1")
    (tmp_path / "with").mkdir()
    (tmp_path / "without").mkdir()
    others = [rule for rule in OWN_RULES.glob("*.rules") if "accelerator" not in rule.name]
    assert awake.run(tmp_path / "with").attributes == {"power/control": "on"}
    assert awake.run(tmp_path / "without", others).attributes == {}


def test_the_function_of_a_pcie_coral_is_kept_awake_too(tmp_path: Path) -> None:
    outcome = Case("accelerator", "coral-pcie-without-driver", PCI).run(tmp_path)
    assert outcome.attributes == {"power/control": "on"}


def test_of_two_accelerators_the_faster_has_the_common_name(tmp_path: Path) -> None:
    def priority(case: Case) -> int:
        work = tmp_path / case.recording
        work.mkdir()
        return case.run(work).priority

    waiting, usb, pci = (priority(case) for case in CASES[:3])
    assert waiting < usb < pci


def test_a_device_that_leaves_is_not_named_again(tmp_path: Path) -> None:
    leaving = Case("accelerator", "coral-usb", f"{USB2}/2-1", action="remove").run(tmp_path)
    assert not leaving.links
    assert "60-sluice" not in "".join(line for line in leaving.log.splitlines() if "Reading" not in line)


def assignments(rule_file: Path) -> list[str]:
    """Return the rules of a file that assign something, as they stand there."""
    whole = re.sub(r"\\\n", "\\\\\x00", rule_file.read_text())  # a continued line is one rule
    lines = [line.replace("\\\x00", "\\\n") for line in whole.splitlines()]
    jumps = re.compile(r"(GOTO|LABEL|IMPORT\{\w+\})=\"[^\"]*\"$")
    return [line for line in lines if line and not line.startswith("#") and not jumps.search(line)]


ASSIGNMENTS = [
    pytest.param(rule_file, text, id=f"{rule_file.stem}-{at}")
    for rule_file in sorted(OWN_RULES.glob("*.rules"))
    for at, text in enumerate(assignments(rule_file))
]


@pytest.fixture(scope="module")
def untouched(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Case], Outcome]:
    """What becomes of a device with all rules as they are; worked out once."""
    known: dict[Case, Outcome] = {}

    def outcome(case: Case) -> Outcome:
        if case not in known:
            known[case] = case.run(tmp_path_factory.mktemp("whole"))
        return known[case]

    return outcome


@pytest.mark.slow
@pytest.mark.parametrize(("rule_file", "text"), ASSIGNMENTS)
def test_no_rule_is_there_for_nothing(
    rule_file: Path, text: str, untouched: Callable[[Case], Outcome], tmp_path: Path
) -> None:
    """Each rule taken out by itself changes what becomes of some device."""
    mutant = tmp_path / rule_file.name
    mutant.write_text(rule_file.read_text().replace(text, "", 1))
    rules = [mutant, *(other for other in OWN_RULES.glob("*.rules") if other.name != rule_file.name)]

    def changes(at: int, case: Case) -> bool:
        work = tmp_path / str(at)
        work.mkdir()
        return _told(untouched(case)) != _told(case.run(work, rules))

    meant_for = [case for case in CASES if case.rule == rule_file.stem.removeprefix("60-sluice-")]
    assert any(changes(at, case) for at, case in enumerate(meant_for)), f"nothing changes without: {text}"


def _told(outcome: Outcome) -> tuple[object, ...]:
    kind = {name: value for name, value in outcome.properties.items() if name.startswith("SLUICE")}
    given = re.findall(r"60-sluice[^:]*:\d+ ((?:GROUP|MODE).*)", outcome.log)
    return (
        outcome.links,
        outcome.tags,
        outcome.group,
        outcome.mode,
        outcome.runs,
        outcome.attributes,
        outcome.priority,
        kind,
        given,
    )


def test_every_group_that_a_rule_names_is_made_for_the_service() -> None:
    named = {group for rule in OWN_RULES.glob("*.rules") for group in re.findall(r'GROUP="(\w+)"', rule.read_text())}
    assert named == {"plugdev", "apex", "video", "dialout", "iio", "gpio", "tss"}
    assert named <= set(groups())


def verifier() -> list[str]:
    """Return a `udevadm verify`: of this machine, or of the tools that the image is built with."""
    helped = subprocess.run(["udevadm", "verify", "--help"], capture_output=True, text=True, check=False)
    if helped.returncode == 0:
        return ["udevadm", "verify"]
    cache = Path(os.environ.get("SLUICE_IMAGE_CACHE", REPOSITORY / "var" / "image" / "cache"))
    for tree in sorted(cache.glob("tools-*/usr/bin/udevadm")):
        usr = tree.parents[1]
        for loader in usr.glob("lib*/ld-linux-*.so.*"):
            libraries = [str(each) for each in usr.glob("lib/*-linux-gnu*")]
            paths = ":".join([*libraries, *(f"{each}/systemd" for each in libraries)])
            command = [str(loader), "--library-path", paths, str(tree), "verify"]
            if subprocess.run([*command, "--help"], capture_output=True, check=False).returncode == 0:
                return command
    pytest.skip(
        "this udevadm cannot verify rules, systemd 254 can (the image is built with one: make image TARGET=uefi-amd64)"
    )


def test_udev_finds_no_mistake_in_the_rules() -> None:
    rules = [str(rule) for rule in sorted(OWN_RULES.glob("*.rules"))]
    checked = subprocess.run(
        [*verifier(), "--resolve-names=never", *rules], capture_output=True, text=True, check=False
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr


@pytest.mark.parametrize("mistake", ['SUBSYSTEM="usb", GOTO="nowhere"', 'KERNEL=="a" NAMES="b"', 'SYMLINK=="x"'])
def test_udev_would_find_a_mistake(mistake: str, tmp_path: Path) -> None:
    wrong = tmp_path / "60-wrong.rules"
    wrong.write_text(mistake + "\n")
    checked = subprocess.run(
        [*verifier(), "--resolve-names=never", str(wrong)], capture_output=True, text=True, check=False
    )
    assert checked.returncode != 0


def test_the_tools_for_this_are_named_when_they_are_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda _name: None)
    assert "umockdev" in missing()
