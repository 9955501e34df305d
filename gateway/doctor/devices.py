"""Checks of what is plugged in: accelerator, cameras, TPM."""

import ctypes
import ctypes.util
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from gateway.config import CameraSource, Config, SerialSource
from gateway.doctor.diagnosis import Diagnosis

EDGETPU_LIBRARY: Final = "libedgetpu.so.1"
EDGETPU_USB: Final = {("1a6e", "089a"): "not initialised yet", ("18d1", "9302"): "initialised"}
"""Vendor and product of a Coral USB accelerator, before and after its firmware was loaded."""


def _loads(library: str) -> bool:
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True


def _may_open(node: Path) -> bool:
    return os.access(node, os.R_OK | os.W_OK)


@dataclass(frozen=True, slots=True)
class Machine:
    """Where devices are found; tests bring a tree of their own."""

    root: Path = Path("/")
    library_loads: Callable[[str], bool] = _loads
    may_open: Callable[[Path], bool] = _may_open

    def devices(self, pattern: str) -> list[Path]:
        """Return device nodes, in order."""
        return sorted((self.root / "dev").glob(pattern))


def check_accelerator(config: Config, machine: Machine) -> Diagnosis:
    """Look for an Edge TPU and the library that drives it."""
    wanted = any(pipeline.backend == "edgetpu" for pipeline in config.pipelines.values())
    found = [*_usb_accelerators(machine), *(f"PCIe at /dev/{path.name}" for path in machine.devices("apex_[0-9]*"))]
    library = machine.library_loads(EDGETPU_LIBRARY)
    if not found:
        if not wanted:
            return Diagnosis("accelerator", "skipped", "no Edge TPU here, and no pipeline asks for one")
        remedy = "plug it in, look at `lsusb` and `dmesg`; or set backend: litert-cpu"
        return Diagnosis("accelerator", "failed", "a pipeline asks for an Edge TPU, and none is here", remedy)
    shown = ", ".join(found)
    if not library:
        remedy = f"install {EDGETPU_LIBRARY} (Debian: libedgetpu1-std), or set backend: litert-cpu"
        return Diagnosis("accelerator", "failed" if wanted else "warning", f"{shown}, without its library", remedy)
    closed = [path for path in machine.devices("apex_[0-9]*") if not machine.may_open(path)]
    if closed:
        remedy = "add the gateway's user to the group `apex`"
        return Diagnosis("accelerator", "failed", f"{closed[0]} may not be opened by this user", remedy)
    return Diagnosis("accelerator", "ok", shown)


def _usb_accelerators(machine: Machine) -> Iterator[str]:
    for device in sorted((machine.root / "sys" / "bus" / "usb" / "devices").glob("*")):
        ids = (_word(device / "idVendor"), _word(device / "idProduct"))
        if ids in EDGETPU_USB:
            yield f"USB {ids[0]}:{ids[1]} at {device.name}, {EDGETPU_USB[ids]}"


def _word(file: Path) -> str:
    try:
        return file.read_text(encoding="ascii", errors="replace").strip().lower()
    except OSError:
        return ""


def check_cameras(config: Config, machine: Machine) -> Iterator[Diagnosis]:
    """Look at the video devices that the configuration names, or at those that are there."""
    named = {
        name: Path(source.device)
        for name, source in config.sources.items()
        if isinstance(source, CameraSource) and source.device.startswith("/dev/")
    }
    for name, device in named.items():
        yield _device(f"camera {name}", machine, device, "video")
    if not any(isinstance(source, CameraSource) for source in config.sources.values()):
        there = ", ".join(f"/dev/{path.name}" for path in machine.devices("video[0-9]*"))
        found = f"the configuration names no camera; there is {there}" if there else "no camera is named"
        yield Diagnosis("cameras", "skipped", found)


def check_serial(config: Config, machine: Machine) -> Iterator[Diagnosis]:
    """Look at the serial devices that the configuration names."""
    for name, source in config.sources.items():
        if isinstance(source, SerialSource):
            yield _device(f"serial {name}", machine, source.device, "dialout")


def _device(check: str, machine: Machine, device: Path, group: str) -> Diagnosis:
    node = machine.root / device.relative_to("/") if device.is_absolute() else device
    if not node.exists():
        there = ", ".join(f"/dev/{path.name}" for path in machine.devices(f"{device.name.rstrip('0123456789')}*"))
        remedy = f"plug it in; there is {there}" if there else "plug it in, and look at `dmesg`"
        return Diagnosis(check, "failed", f"{device} is not there", remedy)
    if not machine.may_open(node):
        remedy = f"add the gateway's user to the group `{group}`: usermod -aG {group} sluice"
        return Diagnosis(check, "failed", f"{device} may not be opened by this user", remedy)
    return Diagnosis(check, "ok", f"{device} is there and may be opened")


def check_tpm(machine: Machine) -> Diagnosis:
    """Look for a TPM 2.0: `vault.level tpm` needs one."""
    node = machine.root / "dev" / "tpmrm0"
    if not node.exists():
        if (machine.root / "dev" / "tpm0").exists():
            remedy = "load the resource manager: it comes with Linux 4.12 and TPM 2.0"
            return Diagnosis("tpm", "warning", "a TPM is here without /dev/tpmrm0: perhaps TPM 1.2", remedy)
        return Diagnosis("tpm", "skipped", "no TPM here: keys cannot be sealed to this machine")
    if not machine.may_open(node):
        remedy = "add the gateway's user to the group `tss`: usermod -aG tss sluice"
        return Diagnosis("tpm", "warning", "/dev/tpmrm0 may not be opened by this user", remedy)
    if not machine.library_loads("libtss2-esys.so.0"):
        return Diagnosis("tpm", "warning", "/dev/tpmrm0 is here, libtss2 is not", "install libtss2-esys (Debian)")
    return Diagnosis("tpm", "ok", "/dev/tpmrm0 and libtss2 are here")
