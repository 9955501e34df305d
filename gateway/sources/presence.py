"""Whether the device of a source is there at all: asked before it is opened again, so that nobody knocks in vain."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from gateway.config import CameraSource, IioSource, ModbusSource, SerialSource, Source

IIO_DEVICES: Final = Path("/sys/bus/iio/devices")


@dataclass(frozen=True, slots=True)
class LocalDevice:
    """A device of this machine's that a source reads."""

    path: str  # as configured
    there: Callable[[], bool]  # only looks, and never blocks for long


def local_device(settings: Source) -> LocalDevice | None:
    """Return the device of a source; None for what is reached over the network or is none."""
    match settings:
        case CameraSource(device=device) if device.startswith("/dev/"):
            return LocalDevice(device, partial(_exists, Path(device)))
        case SerialSource(device=path):
            return LocalDevice(str(path), partial(_exists, path))
        case ModbusSource(device=url) if urlsplit(url).scheme == "serial":
            path = Path(urlsplit(url).path)
            return LocalDevice(str(path), partial(_exists, path))
        case IioSource(device=wanted):
            return LocalDevice(wanted, lambda: find_iio(IIO_DEVICES, wanted) is not None)
        case _:
            return None


def find_iio(devices: Path, wanted: str) -> Path | None:
    """Find an IIO device in sysfs; None if it is not there.

    Args:
        devices: the folder of the bus.
        wanted: its name (`adxl345`, `iio:device0`), its label, its directory, or its node (`/dev/sluice/iio-…`).
    """
    path = Path(wanted)
    if path.is_absolute():
        if path.is_dir():
            return path
        found = devices / path.resolve().name
        return found if path.exists() and found.is_dir() else None
    for device in sorted(devices.glob("iio:device*")):
        if wanted in (device.name, _text(device / "name"), _text(device / "label")):
            return device
    return None


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # a folder that may not be looked into
        return False


def _text(file: Path) -> str | None:
    try:
        return file.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return None
