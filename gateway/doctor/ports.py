"""What the place where a device is plugged in tells of it: speed, power, driver, lasting name, and who has it open."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from gateway.devices.sysfs import SysDevice, devices

_SELF_POWERED: Final = 0x40  # USB 2.0 §9.6.3, bmAttributes of a configuration
_HUB_CLASS: Final = "09"
_VIDEO_CLASS: Final = "0e"
_COMMUNICATION_CLASS: Final = "02"
_SERIAL_DRIVERS: Final = {"0403": "ftdi_sio", "10c4": "cp210x", "1a86": "ch341", "067b": "pl2303", "04d8": "cdc_acm"}


@dataclass(frozen=True, slots=True)
class Problem:
    """What is wrong, and what to do."""

    found: str
    remedy: str


def slow_port(device: SysDevice, *, needs_mbit: int, why: str) -> Problem | None:
    """Tell whether a USB device runs below the speed it is built for."""
    speed = device.number("speed")
    if speed is None or speed >= needs_mbit:
        return None
    return Problem(
        f"at {speed:g} Mbit/s ({_generation(speed)}) instead of {needs_mbit}: {why}",
        f"plug it into a USB 3 port (blue, or marked SS) with the cable it came with; now it is at port {device.name}",
    )


def _generation(speed: float) -> str:
    return "USB 1" if speed <= 12 else "USB 2" if speed <= 480 else "USB 3"


def weak_power(device: SysDevice) -> Problem | None:
    """Tell whether a USB device hangs on a hub that has no power of its own, or its port was switched off."""
    trips = device.number("port/over_current_count")
    if trips:
        return Problem(
            f"its port was switched off {trips:g} times because too much current was drawn",
            "use a hub with its own power supply, and a short, thick cable; look for `over-current` in `dmesg`",
        )
    needs = device.number("bMaxPower")
    for hub in device.parents():
        if hub.text("bDeviceClass") != _HUB_CLASS or hub.name.startswith("usb"):
            continue
        attributes = hub.text("bmAttributes")
        if attributes and not int(attributes, 16) & _SELF_POWERED:
            wants = f"it may draw {needs:g} mA, " if needs else ""
            return Problem(
                f"under-powered: {wants}and hangs on hub {hub.name}, which has no power supply of its own",
                "plug the power supply into the hub, or the device into the machine itself",
            )
    return None


def sleepy(device: SysDevice) -> Problem | None:
    """Tell whether the kernel may put a device to sleep that does not wake up well."""
    if device.text("power/control") != "auto":
        return None
    return Problem(
        f"the kernel may put it to sleep ({device.name}/power/control is auto)",
        "install the udev rules (`udev/install`), and plug it in again",
    )


def driverless_cameras(root: Path) -> Iterator[SysDevice]:
    """Yield USB cameras that no driver has taken, as their first interface."""
    for interface in devices(root, "bus", "usb", "devices"):
        control = (interface.text("bInterfaceClass"), interface.text("bInterfaceSubClass")) == (_VIDEO_CLASS, "01")
        if control and not interface.driver:
            yield interface


def driverless_adapters(root: Path) -> Iterator[tuple[SysDevice, str]]:
    """Yield interfaces of USB serial adapters that no driver has taken, each with the driver for it."""
    for interface in devices(root, "bus", "usb", "devices"):
        kind = interface.text("bInterfaceClass")
        if interface.driver or kind not in ("ff", _COMMUNICATION_CLASS):
            continue
        vendor = SysDevice(interface.path.parent).text("idVendor").lower()
        if kind == _COMMUNICATION_CLASS:
            yield interface, "cdc_acm"
        elif vendor in _SERIAL_DRIVERS:
            yield interface, _SERIAL_DRIVERS[vendor]


def usb_device_of(sysfs: SysDevice) -> SysDevice | None:
    """Return the USB device that a node of the kernel's belongs to; None if it is on no USB."""
    return next((parent for parent in sysfs.parents() if parent.text("idVendor")), None)


def lasting_names(root: Path, node: Path) -> list[str]:
    """Return the names in /dev/sluice that stand for a node now."""
    target = Path("/dev") / node.name
    return sorted(
        f"/dev/sluice/{link.name}"
        for link in (root / "dev" / "sluice").glob("*")
        if link.is_symlink() and Path(os.path.normpath(Path("/dev/sluice") / link.readlink())) == target
    )


def holders(root: Path, node: Path) -> list[tuple[int, str]]:
    """Return who has a node open, as number and name of each process; of other users only where that may be seen."""
    found = []
    for process in sorted((root / "proc").glob("[0-9]*")):
        try:
            open_files = [file.readlink() for file in (process / "fd").iterdir()]
            words = (process / "cmdline").read_bytes().decode(errors="replace").split("\0")
        except OSError:
            continue
        if node in open_files:
            found.append((int(process.name), " ".join(words).strip() or process.name))
    return found
