"""Reads devices and their attributes in sysfs, below a root that tests choose.

Source: the kernel's `Documentation/ABI/testing/sysfs-bus-usb` and `Documentation/admin-guide/sysfs-rules.rst`.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

ROOT: Final = Path("/")


@dataclass(frozen=True, slots=True)
class SysDevice:
    """A directory of a device."""

    path: Path

    @property
    def name(self) -> str:
        """Its name in the kernel, e.g. `2-1`, `0000:01:00.0`, `video0`."""
        return self.path.name

    def text(self, attribute: str) -> str:
        """Return an attribute without the white space around it; empty if it is not there or cannot be read."""
        try:
            return (self.path / attribute).read_text(encoding="utf-8", errors="replace").strip()
        except OSError:
            return ""

    def number(self, attribute: str) -> float | None:
        """Return an attribute that is a number, also one with a unit (`896mA`); None if it is none."""
        digits = self.text(attribute).rstrip("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ%")
        try:
            return float(digits)
        except ValueError:
            return None

    @property
    def driver(self) -> str:
        """The driver that is bound to it; empty if none is."""
        link = self.path / "driver"
        return link.readlink().name if link.is_symlink() else ""

    def parents(self) -> Iterator["SysDevice"]:
        """Yield the devices it hangs on, the nearest first."""
        at = self.path.resolve().parent
        while at.name not in ("devices", ""):
            if (at / "uevent").exists():
                yield SysDevice(at)
            at = at.parent


def devices(root: Path, *where: str) -> list[SysDevice]:
    """Return the devices of a bus or class in order, e.g. `devices(root, "bus", "usb", "devices")`."""
    directory = root.joinpath("sys", *where)
    try:
        return [SysDevice(path.resolve()) for path in sorted(directory.iterdir())]
    except OSError:
        return []
