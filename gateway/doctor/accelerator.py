"""Checks of Edge TPU accelerators: there, driven, reachable, fed and fast. Nothing is opened."""

from collections.abc import Iterator
from typing import Final

from gateway.config import Config
from gateway.devices.accelerators import Accelerator, accelerators
from gateway.doctor.diagnosis import Diagnosis
from gateway.doctor.machine_view import Machine
from gateway.doctor.ports import Problem, sleepy, slow_port, weak_power

EDGETPU_LIBRARY: Final = "libedgetpu.so.1"
_HOT_MILLICELSIUS: Final = 85_000.0
"""From here on the driver lowers the clock, where it does not name its own limit (`trip_point0_temp`)."""


def check_accelerator(config: Config, machine: Machine) -> Iterator[Diagnosis]:
    """Look for Edge TPUs and the library that drives them."""
    wanted = any(pipeline.backend == "edgetpu" for pipeline in config.pipelines.values())
    found = accelerators(machine.root)
    if not found:
        if not wanted:
            yield Diagnosis("accelerator", "skipped", "no Edge TPU here, and no pipeline asks for one")
            return
        remedy = (
            "plug it in, look at `lsusb` (1a6e:089a or 18d1:9302), `lspci -d 1ac1:` and `dmesg`; "
            "or set backend: litert-cpu"
        )
        yield Diagnosis("accelerator", "failed", "a pipeline asks for an Edge TPU, and none is here", remedy)
        return
    for accelerator in found:
        yield from _one(accelerator, machine, wanted=wanted)
    if not machine.library_loads(EDGETPU_LIBRARY):
        remedy = f"install {EDGETPU_LIBRARY} (Debian: libedgetpu1-std), or set backend: litert-cpu"
        shown = ", ".join(accelerator.place for accelerator in found)
        yield Diagnosis("accelerator", "failed" if wanted else "warning", f"{shown}, without its library", remedy)


def _one(accelerator: Accelerator, machine: Machine, *, wanted: bool) -> Iterator[Diagnosis]:
    check = f"accelerator {accelerator.place}"
    broken = _unusable(accelerator, machine)
    if broken is not None:
        yield Diagnosis(check, "failed" if wanted else "warning", broken.found, broken.remedy)
    weak = [problem for problem in _weak(accelerator) if problem is not None]
    for problem in weak:
        yield Diagnosis(check, "warning", problem.found, problem.remedy)
    if broken is None and not weak:
        yield Diagnosis(check, "ok", _shown(accelerator))


def _shown(accelerator: Accelerator) -> str:
    device = accelerator.device
    if accelerator.kind == "pci":
        return f"PCIe at {device.name}, driven by {device.driver or 'apex'}"
    ids = f"{device.text('idVendor')}:{device.text('idProduct')}"
    firmware = "" if accelerator.ready else ", firmware not loaded yet: that happens at its first use"
    speed = device.number("speed")
    return f"USB {ids} at port {device.name}{f', {speed:g} Mbit/s' if speed else ''}{firmware}"


def _unusable(accelerator: Accelerator, machine: Machine) -> Problem | None:
    """Tell what keeps a program from opening it."""
    group = "apex" if accelerator.kind == "pci" else "plugdev"
    device, node = accelerator.device, accelerator.node
    if accelerator.kind == "pci" and not accelerator.ready:
        loaded = (machine.root / "sys" / "module" / "apex").exists()
        return Problem(
            f"PCIe at {device.name}, and "
            + ("its driver apex has not taken it" if loaded else "its driver, the module apex, is not loaded"),
            "see `dmesg | grep -e apex -e gasket`"
            if loaded
            else "`modprobe apex`; Linux does not bring it: install gasket-dkms, or the module of your board's maker",
        )
    status = device.text(f"apex/{node.name}/status") if accelerator.kind == "pci" and node is not None else ""
    if status not in ("", "ALIVE"):
        return Problem(f"its driver calls it {status}", "power the machine off and on; see `dmesg | grep apex`")
    if node is None:
        return None
    if not node.exists():
        return Problem(
            f"the kernel sees it, and {machine.shown(node)} is not there",
            "start udev; a container needs `--device /dev/bus/usb` or `--device /dev/apex_0`",
        )
    if not machine.may_open(node):
        return Problem(
            f"{machine.shown(node)} may not be opened by this user",
            f"install the udev rules (`udev/install`) and add the user to the group: usermod -aG {group} sluice",
        )
    return None


def _weak(accelerator: Accelerator) -> Iterator[Problem | None]:
    """Tell what makes it slower or less reliable than it could be."""
    device = accelerator.device
    if accelerator.kind == "usb":
        yield slow_port(device, needs_mbit=5000, why="each picture takes ten times as long on its way to it")
        yield weak_power(device)
        yield sleepy(device)
        return
    if accelerator.node is not None:
        apex = f"apex/{accelerator.node.name}"
        temperature = device.number(f"{apex}/temp")
        limit = device.number(f"{apex}/trip_point0_temp") or _HOT_MILLICELSIUS
        if temperature is not None and temperature >= limit:
            found = f"{temperature / 1000:.0f} °C: from {limit / 1000:.0f} °C on it slows itself down"
            yield Problem(found, "cool it: a heat sink, a fan, a cooler place")
    yield sleepy(device)
