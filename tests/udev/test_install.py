"""What is installed beside the rules: where it goes, that it fits together, and what the helper for IIO does."""

import grp
import os
import re
import shutil
import stat
import subprocess
from pathlib import Path

import pytest

from tests.simulators.sysfs import SysfsTree
from tests.udev.rules_run import OWN_RULES, REPOSITORY, groups

UDEV = REPOSITORY / "udev"
DEVICE = "sys/devices/platform/soc@0/30800000.bus/30a20000.i2c/i2c-1/1-0053/iio:device0"


def installed(root: Path) -> set[str]:
    return {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()}


def test_everything_is_put_where_udev_and_systemd_look_for_it_and_taken_away_again(tmp_path: Path) -> None:
    subprocess.run([UDEV / "install", "--root", tmp_path], check=True, capture_output=True)
    rules = {f"usr/lib/udev/rules.d/{rule.name}" for rule in OWN_RULES.glob("*.rules")}
    assert installed(tmp_path) == rules | {
        "usr/lib/udev/sluice-iio",
        "usr/lib/systemd/system/gateway.service.d/50-sluice-devices.conf",
        "usr/lib/sysusers.d/sluice.conf",
    }
    assert len(rules) == 6
    assert os.access(tmp_path / "usr/lib/udev/sluice-iio", os.X_OK)
    subprocess.run([UDEV / "install", "--root", tmp_path, "--uninstall"], check=True, capture_output=True)
    assert installed(tmp_path) == {"usr/lib/sysusers.d/sluice.conf"}


def test_a_word_that_is_not_understood_changes_nothing(tmp_path: Path) -> None:
    asked = subprocess.run([UDEV / "install", "--rot", tmp_path], check=False, capture_output=True, text=True)
    assert asked.returncode == 2
    assert "--root DIRECTORY" in asked.stderr
    assert not installed(tmp_path)


def test_a_root_that_is_not_there_is_not_made(tmp_path: Path) -> None:
    asked = subprocess.run([UDEV / "install", "--root", tmp_path / "typo"], check=False, capture_output=True, text=True)
    assert asked.returncode == 1
    assert "typo: no such directory" in asked.stderr
    assert not (tmp_path / "typo").exists()


def test_the_program_that_a_rule_runs_is_the_one_that_is_installed() -> None:
    run = re.findall(r'RUN\+="(\S+)', (OWN_RULES / "60-sluice-iio.rules").read_text())
    assert run == ["/usr/lib/udev/sluice-iio"]


def test_the_service_has_every_group_and_may_open_every_kind_of_device_that_the_rules_give_out() -> None:
    service = (REPOSITORY / "gateway/units/gateway.service").read_text()
    drop_in = (UDEV / "50-sluice-devices.conf").read_text()
    lines = re.findall(r"^SupplementaryGroups=(.*)$", service + drop_in, re.MULTILINE)
    has = {group for line in lines for group in line.split()}
    given = {group for rule in OWN_RULES.glob("*.rules") for group in re.findall(r'GROUP="(\w+)"', rule.read_text())}
    assert given <= has <= set(groups())
    allowed = set(re.findall(r"^DeviceAllow=char-(\w+) rw$", service + drop_in, re.MULTILINE))
    # The names that drivers have in /proc/devices.
    assert {"video4linux", "media", "apex", "usb_device", "tpm", "iio", "gpiochip"} <= allowed
    assert {"ttyUSB", "ttyACM", "ttyS", "ttyAMA", "ttymxc", "ttyTHS"} <= allowed


def test_kinds_that_a_module_makes_are_known_before_the_service_starts() -> None:
    """What /proc/devices does not list at the start stays closed to the service until it is started again."""
    drop_in = (UDEV / "50-sluice-devices.conf").read_text()
    for order in ("Wants", "After"):
        modules = set(re.findall(r"modprobe@(\w+)\.service", "".join(re.findall(rf"^{order}=.*$", drop_in, re.M))))
        assert modules == {"videodev", "usbserial", "cdc_acm", "industrialio", "apex"}


@pytest.fixture
def sensor(tmp_path: Path) -> Path:
    """An IIO device whose attributes belong to its owner alone, as the kernel makes them."""
    SysfsTree(tmp_path).plug("iio-adxl345")
    device = tmp_path / DEVICE
    for attribute in device.rglob("*"):
        if attribute.is_file():
            attribute.chmod(0o644)
    return device


def writable(device: Path) -> set[str]:
    return {
        str(path.relative_to(device))
        for path in device.rglob("*")
        if path.is_file() and path.stat().st_mode & stat.S_IWGRP
    }


def test_the_attributes_that_set_a_sensor_up_are_given_to_the_group_and_no_others(sensor: Path) -> None:
    group = grp.getgrgid(os.getgid()).gr_name
    outside = sensor.parent / "elsewhere"
    outside.write_text("")
    outside.chmod(0o644)
    (sensor / "buffer" / "link_en").symlink_to(outside)
    (sensor / "scan_elements" / "link_en").symlink_to(outside)
    assert writable(sensor) == set()
    subprocess.run([UDEV / "sluice-iio", sensor], check=True, env=os.environ | {"SLUICE_IIO_GROUP": group})
    assert writable(sensor) == {
        "buffer/enable",
        "buffer/length",
        "buffer/watermark",
        "in_accel_sampling_frequency",
        "scan_elements/in_accel_x_en",
        "trigger/current_trigger",
    }
    assert not outside.stat().st_mode & stat.S_IWGRP


def test_what_the_gateway_writes_to_a_sensor_is_what_is_given_to_it() -> None:
    source = (REPOSITORY / "gateway/sources/iio.py").read_text()
    helper = (UDEV / "sluice-iio").read_text()
    for attribute in ("current_trigger", "sampling_frequency"):
        assert attribute in source
        assert attribute in helper
    for name in set(re.findall(r'"buffer" / "(\w+)"', source)):
        assert f'"$device"/buffer/{name}' in helper


def test_a_device_that_went_away_meanwhile_is_no_error(tmp_path: Path) -> None:
    subprocess.run([UDEV / "sluice-iio", tmp_path / "gone"], check=True)


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze (Debian: systemd)")
def test_systemd_understands_the_drop_in(tmp_path: Path) -> None:
    unit = (REPOSITORY / "gateway/units/gateway.service").read_text()
    unit = re.sub(r"^ExecStart=.*$", "ExecStart=/bin/true", unit, flags=re.MULTILINE)
    (tmp_path / "gateway.service").write_text(unit)
    (tmp_path / "gateway.service.d").mkdir()
    shutil.copy(UDEV / "50-sluice-devices.conf", tmp_path / "gateway.service.d")
    checked = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(tmp_path / "gateway.service")],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    words = [line for line in checked.stderr.splitlines() if "50-sluice-devices" in line or "Unknown" in line]
    assert not words
