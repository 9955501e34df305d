"""Checks of what is plugged in besides accelerators: cameras, serial lines, IIO sensors, TPM; and of the udev rules."""

from collections.abc import Iterator
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from gateway.config import CameraSource, Config, IioSource, ModbusSource, SerialSource
from gateway.devices.accelerators import accelerators
from gateway.devices.sysfs import SysDevice, devices
from gateway.doctor.accelerator import check_accelerator
from gateway.doctor.diagnosis import Diagnosis
from gateway.doctor.machine_view import Machine
from gateway.doctor.ports import (
    driverless_adapters,
    driverless_cameras,
    holders,
    lasting_names,
    slow_port,
    usb_device_of,
    weak_power,
)
from gateway.sources.presence import find_iio, local_device

__all__ = [
    "Machine",
    "check_accelerator",
    "check_cameras",
    "check_iio",
    "check_rules",
    "check_serial",
    "check_tpm",
]

_RULES: Final = ("etc/udev/rules.d", "run/udev/rules.d", "usr/lib/udev/rules.d", "lib/udev/rules.d")
_TPM_IDS: Final = ("MSFT0101", "NTZ", "STM0125", "IFX", "NSC")


def check_rules(config: Config, machine: Machine) -> Diagnosis:
    """Look for the udev rules of this program: names that last, and rights, come from them."""
    there = [folder for folder in _RULES if any((machine.root / folder).glob("60-sluice-*.rules"))]
    if there:
        return Diagnosis("udev rules", "ok", f"installed in /{there[0]}")
    if not accelerators(machine.root) and all(local_device(source) is None for source in config.sources.values()):
        return Diagnosis("udev rules", "skipped", "not installed, and no device of this machine is used")
    found = "not installed: devices have no lasting names in /dev/sluice, and some no rights"
    return Diagnosis(
        "udev rules", "warning", found, "run `udev/install` from the program's sources; the image has them"
    )


def check_cameras(config: Config, machine: Machine) -> Iterator[Diagnosis]:
    """Look at the video devices that the configuration names, or at those that are there."""
    for interface in driverless_cameras(machine.root):
        found = f"a USB camera at port {interface.path.parent.name}, and no driver has taken it"
        yield Diagnosis("cameras", "warning", found, "`modprobe uvcvideo`, then plug it in again; see `dmesg`")
    named = {
        name: Path(source.device)
        for name, source in config.sources.items()
        if isinstance(source, CameraSource) and source.device.startswith("/dev/")
    }
    for name, device in named.items():
        yield _camera(f"camera {name}", machine, device)
    if not any(isinstance(source, CameraSource) for source in config.sources.values()):
        there = ", ".join(_named(machine, path) for path in machine.devices("video[0-9]*"))
        found = f"the configuration names no camera; there is {there}" if there else "no camera is named"
        yield Diagnosis("cameras", "skipped", found)


def _camera(check: str, machine: Machine, device: Path) -> Diagnosis:
    seen = _device(check, machine, device, "video")
    if seen.verdict != "ok":
        return seen
    node = machine.at(device).resolve()
    video = SysDevice(machine.root / "sys" / "class" / "video4linux" / node.name)
    if video.text("index") not in ("", "0") and not lasting_names(machine.root, node):
        remedy = f"name the camera's first node: {_links(machine, 'camera-*') or '`v4l2-ctl --list-devices`'}"
        return Diagnosis(check, "failed", f"{device} gives no pictures: it is the camera's node for metadata", remedy)
    others = [(number, words) for number, words in holders(machine.root, node) if "gateway" not in words]
    if others:
        shown = ", ".join(f"{words} (process {number})" for number, words in others)
        return Diagnosis(
            check, "warning", f"{device} is in use by {shown}", "end that program: one at a time gets pictures"
        )
    usb = usb_device_of(video)
    if usb is not None:
        for problem in (slow_port(usb, needs_mbit=480, why="pictures do not get through"), weak_power(usb)):
            if problem is not None:
                return Diagnosis(check, "warning", f"{device}: {problem.found}", problem.remedy)
    return seen


def check_serial(config: Config, machine: Machine) -> Iterator[Diagnosis]:
    """Look at the serial devices that the configuration names, and at adapters without a driver."""
    for interface, driver in driverless_adapters(machine.root):
        found = f"a USB serial adapter at port {interface.path.parent.name}, and no driver has taken it"
        yield Diagnosis(
            "serial lines", "warning", found, f"`modprobe {driver}`; if it is not there, the kernel lacks it"
        )
    for name, source in config.sources.items():
        if isinstance(source, SerialSource):
            yield _serial(f"serial {name}", machine, source.device)
        elif isinstance(source, ModbusSource) and urlsplit(source.device).scheme == "serial":
            yield _serial(f"modbus {name}", machine, Path(urlsplit(source.device).path))


def _serial(check: str, machine: Machine, device: Path) -> Diagnosis:
    seen = _device(check, machine, device, "dialout")
    if seen.verdict != "ok":
        return seen
    node = machine.at(device).resolve()
    if SysDevice(machine.root / "sys" / "class" / "tty" / node.name).text("console") == "Y":
        remedy = f"take `console={node.name}` from the kernel's command line, or use another line"
        return Diagnosis(
            check, "failed", f"{device} is the kernel's console: its messages get between the readings", remedy
        )
    others = [(number, words) for number, words in holders(machine.root, node) if "gateway" not in words]
    if others:
        shown = ", ".join(f"{words} (process {number})" for number, words in others)
        return Diagnosis(
            check, "warning", f"{device} is in use by {shown}", "end that program: each gets a part of the bytes"
        )
    return seen


def check_iio(config: Config, machine: Machine) -> Iterator[Diagnosis]:
    """Look at the Industrial I/O sensors that the configuration names."""
    bus = machine.root / "sys" / "bus" / "iio" / "devices"
    for name, source in config.sources.items():
        if isinstance(source, IioSource):
            yield _iio(f"iio {name}", machine, bus, source)


def _iio(check: str, machine: Machine, bus: Path, source: IioSource) -> Diagnosis:
    path = Path(source.device)
    device = find_iio(bus, str(machine.at(path)) if path.is_absolute() else source.device)
    if device is None:
        names = [SysDevice(each).text("name") for each in sorted(bus.glob("iio:device*"))]
        remedy = (
            f"there is {', '.join(names)}"
            if names
            else "check the wiring (`i2cdetect -y BUS`) and that a driver is bound to it (device tree, `dmesg`)"
        )
        return Diagnosis(check, "failed", f"no IIO device {source.device}", remedy)
    if not source.buffered:
        return Diagnosis(check, "ok", f"{source.device} is {device.name}, polled")
    if not (device / "buffer").is_dir():
        return Diagnosis(
            check, "failed", f"{device.name} has no buffer", "set buffered: false; its driver cannot do it"
        )
    node = machine.root / "dev" / device.name
    locked = [
        each
        for each in (node, device / "buffer" / "enable", *device.glob("scan_elements/*_en"))
        if not machine.may_open(each)
    ]
    if locked:
        remedy = "install the udev rules (`udev/install`) and add the user to the group: usermod -aG iio sluice"
        return Diagnosis(check, "failed", f"{machine.shown(locked[0])} may not be written by this user", remedy)
    trigger = device / "trigger" / "current_trigger"
    own = f"{SysDevice(device).text('name')}-dev{device.name.removeprefix('iio:device')}"
    triggers = [SysDevice(each).text("name") for each in sorted(bus.glob("trigger*"))]
    if trigger.exists() and not SysDevice(device).text("trigger/current_trigger") and own not in triggers:
        choice = ", ".join(triggers) or "none yet: load iio-trig-hrtimer and make one"
        remedy = f"write the name of a trigger ({choice}) to {machine.shown(trigger)}"
        return Diagnosis(check, "failed", f"nothing starts the conversions of {device.name}", remedy)
    return Diagnosis(check, "ok", f"{source.device} is {device.name}, buffered")


def _device(check: str, machine: Machine, device: Path, group: str) -> Diagnosis:
    node = machine.at(device)
    if not node.exists():
        if node.is_symlink():
            remedy = "plug it in again; see `udevadm info` and `dmesg`"
            return Diagnosis(check, "failed", f"{device} leads to nothing", remedy)
        pattern = f"{device.name.rstrip('0123456789')}*"
        links = _links(machine, f"{device.name.partition('-')[0]}-*") if device.parent.name == "sluice" else ""
        there = links or ", ".join(_named(machine, path) for path in machine.devices(pattern))
        remedy = f"plug it in; there is {there}" if there else "plug it in, and look at `dmesg`"
        return Diagnosis(check, "failed", f"{device} is not there", remedy)
    if not machine.may_open(node):
        remedy = f"add the gateway's user to the group `{group}`: usermod -aG {group} sluice"
        return Diagnosis(check, "failed", f"{device} may not be opened by this user", remedy)
    lasting = lasting_names(machine.root, node.resolve())
    also = f"; {lasting[0]} stays the same whatever is plugged in" if lasting and str(device) not in lasting else ""
    return Diagnosis(check, "ok", f"{device} is there and may be opened{also}")


def _named(machine: Machine, node: Path) -> str:
    lasting = lasting_names(machine.root, node)
    return f"/dev/{node.name}" + (f" ({lasting[0]})" if lasting else "")


def _links(machine: Machine, pattern: str) -> str:
    return ", ".join(f"/dev/sluice/{path.name}" for path in machine.devices(f"sluice/{pattern}"))


def check_tpm(machine: Machine) -> Diagnosis:
    """Look for a TPM 2.0: `vault.level tpm` needs one."""
    node = machine.root / "dev" / "tpmrm0"
    if not node.exists():
        if (machine.root / "dev" / "tpm0").exists():
            version = SysDevice(machine.root / "sys" / "class" / "tpm" / "tpm0").text("tpm_version_major")
            if version == "1":
                remedy = (
                    "switch TPM 2.0 on in the firmware, if it offers that; else vault.level software is all there is"
                )
                return Diagnosis("tpm", "warning", "a TPM 1.2 is here; TPM 2.0 is needed", remedy)
            remedy = "load the resource manager: it comes with Linux 4.12 and TPM 2.0"
            return Diagnosis("tpm", "warning", "a TPM is here without /dev/tpmrm0: perhaps TPM 1.2", remedy)
        listed = [
            each.name for each in devices(machine.root, "bus", "acpi", "devices") if each.name.startswith(_TPM_IDS)
        ]
        if listed:
            remedy = "`modprobe tpm_crb` or `modprobe tpm_tis`; see `dmesg | grep -i tpm`"
            return Diagnosis(
                "tpm", "warning", f"the firmware lists a TPM ({listed[0]}), and no driver has taken it", remedy
            )
        return Diagnosis("tpm", "skipped", "no TPM here: keys cannot be sealed to this machine")
    if not machine.may_open(node):
        remedy = "add the gateway's user to the group `tss`: usermod -aG tss sluice"
        return Diagnosis("tpm", "warning", "/dev/tpmrm0 may not be opened by this user", remedy)
    if not machine.library_loads("libtss2-esys.so.0"):
        return Diagnosis("tpm", "warning", "/dev/tpmrm0 is here, libtss2 is not", "install libtss2-esys (Debian)")
    return Diagnosis("tpm", "ok", "/dev/tpmrm0 and libtss2 are here")
