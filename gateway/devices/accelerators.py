"""Which Edge TPU accelerators are plugged in, as the kernel sees them; nothing is opened."""

from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from gateway.devices.sysfs import ROOT, SysDevice, devices

Kind = Literal["usb", "pci"]

USB_IDS: Final = {("1a6e", "089a"): False, ("18d1", "9302"): True}
"""Vendor and product of a Coral USB accelerator, and whether its firmware is loaded: it leaves the bus in between."""
PCI_ID: Final = ("0x1ac1", "0x089a")


@dataclass(frozen=True, slots=True)
class Accelerator:
    """One accelerator."""

    kind: Kind
    device: SysDevice
    ready: bool  # USB: its firmware is loaded; PCIe: its driver has made a node
    node: Path | None  # what a program opens; None where there is none

    @property
    def place(self) -> str:
        """Where it is plugged in; stays the same when its firmware is loaded."""
        return f"{self.kind}:{self.device.name}"


def accelerators(root: Path = ROOT) -> list[Accelerator]:
    """Return all accelerators, USB first."""
    return [*_usb(root), *_pci(root)]


def _usb(root: Path) -> list[Accelerator]:
    found = []
    for device in devices(root, "bus", "usb", "devices"):
        ready = USB_IDS.get((device.text("idVendor").lower(), device.text("idProduct").lower()))
        if ready is None:
            continue
        bus, number = device.number("busnum"), device.number("devnum")
        node = root / f"dev/bus/usb/{bus:03.0f}/{number:03.0f}" if bus is not None and number is not None else None
        found.append(Accelerator("usb", device, ready, node))
    return found


def _pci(root: Path) -> list[Accelerator]:
    functions = [
        device
        for device in devices(root, "bus", "pci", "devices")
        if (device.text("vendor"), device.text("device")) == PCI_ID
    ]
    nodes = {apex.path.parent.parent: root / "dev" / apex.name for apex in devices(root, "class", "apex")}
    return [Accelerator("pci", function, function.path in nodes, nodes.get(function.path)) for function in functions]
